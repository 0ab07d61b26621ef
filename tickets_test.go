package prefork

// Session tickets without processes: the master's keys, and what a child does
// with them.

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/fiber-prefork/prefork/internal/control"
)

func TestTicketsRotate(t *testing.T) {
	now := time.Now()
	keys := newTickets(now)
	last := map[[32]byte]time.Time{} // when a key encrypted last
	for day := range 30 {
		assert.Equal(t, now.Add(ticketRotation), keys.rotateAt())
		last[keys.keys[0]] = keys.rotateAt()
		next := keys.keys[1]
		assert.NotContains(t, last, next, "it has not encrypted yet")
		now = keys.rotateAt().Add(time.Duration(day) * time.Minute) // the master is late
		last[keys.keys[0]] = now
		keys.rotate(now)
		assert.Equal(t, next, keys.keys[0])
		seen := map[[32]byte]bool{}
		for _, key := range keys.keys {
			assert.False(t, seen[key])
			seen[key] = true
		}
		for key, at := range last {
			assert.Equal(t, now.Sub(at) < ticketLifetime, seen[key], "of %v ago", now.Sub(at))
		}
		assert.LessOrEqual(t, len(keys.keys), 10)
	}
	keys.rotate(now.Add(30 * 24 * time.Hour))
	assert.Len(t, keys.keys, 3, "after a long pause: the one that encrypted until now is kept")
}

func TestTicketsAreKept(t *testing.T) {
	now := time.Now()
	keys := newTickets(now)
	for range 3 {
		now = keys.rotateAt()
		keys.rotate(now)
	}
	b, err := json.Marshal(&handover{Tickets: keys.keep(now.Add(time.Hour))})
	require.NoError(t, err)
	var h handover
	require.NoError(t, json.Unmarshal(b, &h))
	again := h.Tickets.tickets(now.Add(time.Hour))
	require.NotNil(t, again)
	assert.Equal(t, keys.keys, again.keys)
	assert.True(t, keys.since.Equal(again.since))
	for i, at := range keys.retired {
		assert.True(t, at.Equal(again.retired[i]))
	}

	key := make([]byte, 32)
	for _, k := range []*keptTickets{
		nil,
		{},
		{Keys: [][]byte{key}},
		{Keys: [][]byte{key, key[:31]}},
		{Keys: [][]byte{key, key}, Retired: []time.Duration{1}},
		{Keys: [][]byte{key, key, key}},
	} {
		assert.Nil(t, k.tickets(now), "%+v", k)
	}
	var none *tickets
	assert.Nil(t, none.keep(now))
}

// identity is a certificate for a TLS server, and what its clients trust.
func identity(t *testing.T) (*tls.Config, *x509.CertPool) {
	t.Helper()
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return &tls.Config{Certificates: s.TLS.Certificates, MinVersion: tls.VersionTLS12}, pool
}

// meet has a client connect to a server, and says whether it resumed.
func meet(t testing.TB, server, client *tls.Config) bool {
	t.Helper()
	near, far := net.Pipe()
	defer func() { _, _ = near.Close(), far.Close() }()
	var both sync.WaitGroup
	defer both.Wait()
	both.Go(func() {
		conn := tls.Server(far, server)
		_, _ = conn.Write([]byte{1}) // after the tickets of TLS 1.3
		_, _ = conn.Read(make([]byte, 1))
	})
	conn := tls.Client(near, client)
	_, err := conn.Read(make([]byte, 1))
	require.NoError(t, err)
	resumed := conn.ConnectionState().DidResume
	_, err = conn.Write([]byte{1})
	require.NoError(t, err)
	return resumed
}

// returning is a client that has been at a server.
func returning(t testing.TB, pool *x509.CertPool, version uint16, server *tls.Config) *tls.Config {
	t.Helper()
	client := &tls.Config{
		RootCAs: pool, ServerName: "example.com", MinVersion: version, MaxVersion: version,
		ClientSessionCache: tls.NewLRUClientSessionCache(1),
	}
	assert.False(t, meet(t, server, client))
	return client
}

func newSharedTickets() *sharedTickets { return &sharedTickets{came: newLatch()} }

// TestRotationsInAnyOrder: while some children have heard of a rotation and
// others have not, or have missed one, each reads the tickets of all.
func TestRotationsInAnyOrder(t *testing.T) {
	config, pool := identity(t)
	keys := newTickets(time.Now())
	var children []*sharedTickets
	for range 3 {
		child := newSharedTickets()
		child.receive(keys.keys)
		child.serve(config.Clone(), logger{}, 0)
		children = append(children, child)
	}
	all := func(what string) {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			for i, from := range children {
				for j, to := range children {
					assert.True(t, meet(t, to.config, returning(t, pool, version, from.config)), "%s: from %d to %d", what, i, j)
				}
			}
		}
	}
	all("at first")
	old := returning(t, pool, tls.VersionTLS12, children[0].config)
	older := returning(t, pool, tls.VersionTLS13, children[0].config)
	for day, heard := range [][]int{{0, 1, 2}, {2, 0}, {1, 2, 0}} {
		keys.rotate(keys.rotateAt())
		for n, i := range heard {
			children[i].receive(keys.keys)
			all(fmt.Sprintf("rotation %d, heard by %d", day, n+1))
		}
	}
	for _, child := range children {
		assert.True(t, meet(t, child.config, old), "its first ticket is of three keys ago")
	}
	for range 7 {
		keys.rotate(keys.rotateAt())
	}
	children[0].receive(keys.keys)
	assert.False(t, meet(t, children[0].config, older))
}

// TestLeftToTheApplication: keys are set on a config that is left to us only.
func TestLeftToTheApplication(t *testing.T) {
	config, pool := identity(t)
	own := func() *tls.Config {
		c := config.Clone()
		c.SetSessionTicketKeys([][32]byte{{1}})
		return c
	}
	oldKey := config.Clone()
	//lint:ignore SA1019 applications have it
	oldKey.SessionTicketKey = [32]byte{1} //nolint:staticcheck // the same
	wrap := func(tls.ConnectionState, *tls.SessionState) ([]byte, error) { return nil, nil }
	unwrap := func([]byte, tls.ConnectionState) (*tls.SessionState, error) { return nil, nil } //nolint:nilnil // never called
	used := config.Clone()
	returning(t, pool, tls.VersionTLS13, used)
	for name, c := range map[string]struct {
		config *tls.Config
		takes  bool
	}{
		"new":           {config.Clone(), true},
		"in use":        {used, true},
		"copy of used":  {used.Clone(), true},
		"for others":    {&tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return config, nil }}, true},
		"disabled":      {&tls.Config{SessionTicketsDisabled: true}, false},
		"old key":       {oldKey, false},
		"keys":          {own(), false},
		"zero key":      {func() *tls.Config { c := config.Clone(); c.SetSessionTicketKeys([][32]byte{{}}); return c }(), false},
		"copy with key": {own().Clone(), false},
		"wrap":          {&tls.Config{WrapSession: wrap}, false},
		"unwrap":        {&tls.Config{UnwrapSession: unwrap}, false},
	} {
		before := ticketMark(c.config.Clone())
		shared := newSharedTickets()
		shared.receive(newTickets(time.Now()).keys)
		shared.serve(c.config, logger{}, 0)
		assert.Equal(t, c.takes, shared.config != nil, name)
		assert.Equal(t, c.takes, !bytes.Equal(before, ticketMark(c.config.Clone())), name)
	}
}

// TestKeysOfTheApplicationStay, whenever it sets them.
func TestKeysOfTheApplicationStay(t *testing.T) {
	config, pool := identity(t)
	keys := newTickets(time.Now())
	var said lines
	shared := newSharedTickets()
	shared.receive(keys.keys)
	shared.serve(config, logger{custom: &said}, 7)
	keys.rotate(keys.rotateAt())
	shared.receive(keys.keys)
	assert.Empty(t, said)

	config.SetSessionTicketKeys([][32]byte{{1}})
	client := returning(t, pool, tls.VersionTLS13, config)
	for range 2 {
		keys.rotate(keys.rotateAt())
		shared.receive(keys.keys)
		assert.True(t, meet(t, config, client))
	}
	require.Len(t, said, 1)
	assert.Regexp(t, `slot 7 pid \d+: session tickets: the application has set keys: left to it`, said[0])
}

// TestOtherConfigsForClients: one that GetConfigForClient returns has the keys
// of the one that is served, unless it has its own.
func TestOtherConfigsForClients(t *testing.T) {
	config, pool := identity(t)
	other := config.Clone()
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return other, nil }
	a, b := config.Clone(), config.Clone()
	keys := newTickets(time.Now())
	for _, c := range []*tls.Config{a, b} {
		shared := newSharedTickets()
		shared.receive(keys.keys)
		shared.serve(c, logger{}, 0)
	}
	other = config.Clone()
	client := returning(t, pool, tls.VersionTLS13, a)
	other = config.Clone() // that of another process
	assert.True(t, meet(t, b, client))
}

// TestKeysThatComeLate, or never: the child serves all the same.
func TestKeysThatComeLate(t *testing.T) {
	config, pool := identity(t)
	synctest.Test(t, func(t *testing.T) {
		shared := newSharedTickets()
		began := time.Now()
		shared.serve(config, logger{}, 0)
		assert.Equal(t, ticketWait, time.Since(began))
		assert.True(t, meet(t, config, returning(t, pool, tls.VersionTLS13, config)))

		keys := newTickets(time.Now())
		shared.receive(keys.keys)
		other := config.Clone()
		other.SetSessionTicketKeys(keys.keys)
		assert.True(t, meet(t, other, returning(t, pool, tls.VersionTLS13, config)))
	})
}

// TestRotationWhileServing is for the race detector.
func TestRotationWhileServing(t *testing.T) {
	config, pool := identity(t)
	keys := newTickets(time.Now())
	shared := newSharedTickets()
	shared.receive(keys.keys)
	shared.serve(config, logger{}, 0)
	client := returning(t, pool, tls.VersionTLS13, config)
	done := make(chan struct{})
	var rotating sync.WaitGroup
	rotating.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				keys.rotate(keys.rotateAt())
				keys.retired = keys.retired[:0] // whatever comes in between is readable
				keys.keys = keys.keys[:2]
				shared.receive(keys.keys)
			}
		}
	})
	for range 50 {
		meet(t, config, client)
	}
	close(done)
	rotating.Wait()
}

// TestRotationIsDue: the supervise loop wakes up for a rotation and tells the
// children, also beside one that does not listen.
func TestRotationIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said lines
		m := &master{
			log: logger{custom: &said}, stopping: newLatch(), tickets: newTickets(time.Now()),
			cfg: ListenConfig{ReportInterval: time.Second, HangTimeout: -1},
		}
		heard := make(chan control.Message, 1)
		var ends []net.Conn
		for i := range 2 {
			mine, theirs := net.Pipe()
			ends = append(ends, mine, theirs)
			s := &slot{Child: Child{Slot: i}}
			s.process = &process{slot: s, pid: 100 + i, control: control.NewConn(mine, nil)}
			m.slots = append(m.slots, s)
			if i == 0 {
				continue // it is stopped
			}
			go func() {
				in := control.NewConn(theirs, nil)
				for {
					message, err := in.Receive()
					if err != nil {
						return
					}
					heard <- message
				}
			}()
		}
		m.tickets.since = time.Now().Add(-time.Minute)
		for range 3 {
			next, at := m.tickets.keys[1], m.tickets.rotateAt()
			wakeUps := 0
			for len(heard) == 0 {
				wait := m.nextDue(time.Now())
				time.Sleep(wait)
				m.due(time.Now())
				synctest.Wait()
				wakeUps++
			}
			assert.LessOrEqual(t, wakeUps, 25, "it wakes up once an hour anyway")
			assert.WithinDuration(t, at, time.Now(), time.Second)
			message := <-heard
			assert.Equal(t, control.Tickets, message.Kind)
			assert.Equal(t, m.tickets.keys, message.Keys)
			assert.Equal(t, next, message.Keys[0])
		}
		for _, end := range ends {
			_ = end.Close()
		}
		all := strings.Join(said, "\n")
		assert.Contains(t, all, "session tickets: new key, 3 old ones are kept")
		assert.Regexp(t, `slot 0 pid 100: session tickets: keys not sent, until the next rotation: .*i/o timeout`, all)
		assert.NotContains(t, all, "slot 1")
	})
}
