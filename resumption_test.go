//go:build unix

package prefork_test

// Whether clients resume their TLS sessions, whichever child they meet. The
// keys themselves are in tickets_test.go.

import (
	"crypto/tls"
	"fmt"
	"net"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// visitor is a client that comes again and again.
type visitor struct {
	t      *testing.T
	config *tls.Config
	met    map[string]bool // who has answered
}

func (a *authority) visitor(version uint16) *visitor {
	return &visitor{t: a.t, met: map[string]bool{}, config: &tls.Config{
		RootCAs: a.pool, ServerName: "localhost", MinVersion: version, MaxVersion: version,
		ClientSessionCache: tls.NewLRUClientSessionCache(1),
	}}
}

// come has the visitor ask once who answers, on a new connection, and says
// whether it resumed its session.
func (v *visitor) come(addr string) bool {
	v.t.Helper()
	body, resumed := v.ask(addr, "/")
	v.met[body] = true
	return resumed
}

func (v *visitor) ask(addr, path string) (body string, resumed bool) {
	v.t.Helper()
	raw, err := net.Dial("tcp", addr)
	require.NoError(v.t, err)
	conn := tls.Client(raw, v.config)
	defer func() { _ = conn.Close() }()
	_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", path)
	require.NoError(v.t, err)
	_, body = answer(v.t, conn)
	return body, conn.ConnectionState().DidResume
}

const visits = 24

// visit has the visitor come many times, and returns how often it resumed.
func (v *visitor) visit(addr string) int {
	v.t.Helper()
	resumed := 0
	for range visits {
		if v.come(addr) {
			resumed++
		}
	}
	return resumed
}

// settle has the visitor come until it always resumes, which it does when the
// children have heard of keys, and returns how often it did not before.
func (v *visitor) settle(addr string) int {
	v.t.Helper()
	full := 0
	eventually(v.t, func() bool {
		n := v.visit(addr)
		full += visits - n
		return n == visits
	}, "the visitor does not always resume")
	return full
}

func (a *authority) visitors() []*visitor {
	a.issue("server", "localhost")
	return []*visitor{a.visitor(tls.VersionTLS12), a.visitor(tls.VersionTLS13)}
}

// TestResumption: over four children, after the death of one, and of all after
// a reload.
func TestResumption(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	visitors := a.visitors()
	s := start(t, "tls", options{"enable_prefork": true, "Children": 4, "Open": "files", "Dir": a.dir, "At": "operate"})
	pids := s.readyPIDs(4)
	for _, v := range visitors {
		assert.False(t, v.come(s.addr))
		assert.Equal(t, visits, v.visit(s.addr))
		if spreads {
			assert.GreaterOrEqual(t, len(v.met), 2, "children that answered")
		}
	}
	for _, pid := range pids[:3] {
		kill(t, pid, syscall.SIGKILL)
	}
	pids = s.readyPIDs(7)
	for _, v := range visitors {
		assert.Equal(t, visits, v.visit(s.addr), "after recoveries")
	}
	require.Equal(t, "<nil>", s.operate("reload"))
	require.Equal(t, "<nil>", s.operate("scale 6"))
	s.readyPIDs(13)
	for _, v := range visitors {
		v.met = map[string]bool{}
		assert.Equal(t, visits, v.visit(s.addr), "after a reload")
		for _, pid := range pids {
			assert.NotContains(t, v.met, fmt.Sprint(pid), "all children are new")
		}
	}
	s.stop()

	again := start(t, "tls", options{"enable_prefork": true, "Children": 1, "Open": "files", "Dir": a.dir})
	for _, v := range visitors {
		assert.False(t, v.come(again.addr), "the keys have ended with their master")
	}
	again.stop()
}

// TestHelloOfAResumedSession: Fiber's ClientHelloInfo is there in a child that
// has had no full handshake.
func TestHelloOfAResumedSession(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	visitors := a.visitors()
	s := start(t, "tls", options{"enable_prefork": true, "Children": 1, "Open": "files", "Dir": a.dir, "At": "operate"})
	for _, v := range visitors {
		assert.False(t, v.come(s.addr))
		require.Equal(t, "<nil>", s.operate("reload"))
		body, resumed := v.ask(s.addr, "/hello")
		assert.True(t, resumed)
		assert.Equal(t, "localhost true", body)
	}
	s.stop()
}

// TestResumptionOfListeners: however TLS comes around the listener.
func TestResumptionOfListeners(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	a.issue("server", "localhost")
	for _, how := range []string{"new", "reuseport", "net with config", "net, tls everywhere"} {
		s := start(t, "listener", options{"enable_prefork": true, "Children": 4, "Open": how, "TLS": true, "Dir": a.dir})
		v := a.visitor(tls.VersionTLS13)
		assert.False(t, v.come(s.addr), how)
		assert.Equal(t, visits, v.visit(s.addr), how)
		s.stop()
	}
}

// TestResumptionIsTheApplications, if it sees to that.
func TestResumptionIsTheApplications(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	visitors := a.visitors()
	for run := range 2 {
		s := start(t, "tls", options{"enable_prefork": true, "Children": 2, "Open": "own keys", "Dir": a.dir})
		for _, v := range visitors {
			assert.Equal(t, run > 0, v.come(s.addr), "its key is that of the run before")
			assert.Equal(t, visits, v.visit(s.addr))
		}
		s.stop()
	}
	s := start(t, "tls", options{"enable_prefork": true, "Children": 2, "Open": "no tickets", "Dir": a.dir})
	for _, v := range visitors {
		assert.Zero(t, v.visit(s.addr))
	}
	s.stop()
}

// TestResumptionAcrossUpgrades, and by children that the new program starts.
func TestResumptionAcrossUpgrades(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	visitors := a.visitors()
	path := filepath.Join(t.TempDir(), "app")
	install(t, build(t, "A"), path)
	s := startApp(t, path, "TESTAPP_TLS="+a.dir, "TESTAPP_CHILDREN=4")
	for _, v := range visitors {
		assert.False(t, v.come(s.addr))
	}
	for _, version := range []string{"B", "A"} {
		install(t, build(t, version), path)
		s.upgrade()
		for _, v := range visitors {
			assert.Equal(t, visits, v.visit(s.addr), "after the upgrade")
		}
		require.Equal(t, "<nil>", s.operate("reload"))
		for _, v := range visitors {
			assert.Equal(t, visits, v.visit(s.addr), "children of the new program")
		}
	}
	for _, v := range visitors {
		for body := range v.met {
			assert.Regexp(t, `^[AB] \d+$`, body)
		}
	}
	s.stop()
}

// TestKeysAreNotOnADisk: where the state of an upgrade is a file that is not in
// memory, the new program has new keys, and so have the children that it takes over.
func TestKeysAreNotOnADisk(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	visitors := a.visitors()
	path := filepath.Join(t.TempDir(), "app")
	install(t, buildChanged(t, "ondisk", map[string][2]string{
		"prefork_linux.go": {"unix.MemfdCreate(\"prefork state\", ", "unix.MemfdCreate(\"prefork state\", 1<<20|"},
	}), path)
	s := startApp(t, path, "TESTAPP_TLS="+a.dir, "TESTAPP_CHILDREN=2")
	for _, v := range visitors {
		assert.False(t, v.come(s.addr))
	}
	install(t, build(t, "A"), path)
	s.upgrade()
	for _, v := range visitors {
		assert.Positive(t, v.settle(s.addr))
	}
	s.stop()
}

// TestResumptionAcrossVersions: from a version of this library that shares no
// keys, and back to it.
func TestResumptionAcrossVersions(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	visitors := a.visitors()
	path := filepath.Join(t.TempDir(), "app")
	install(t, keyless(t), path)
	s := startApp(t, path, "TESTAPP_TLS="+a.dir, "TESTAPP_CHILDREN=2")
	for _, v := range visitors {
		if resumed := v.visit(s.addr); spreads {
			assert.Less(t, resumed, visits-1, "each child has its own keys")
		}
	}
	// The old master gives the new children none, the new master does.
	install(t, build(t, "A"), path)
	s.upgrade()
	for _, v := range visitors {
		assert.Positive(t, v.settle(s.addr))
	}
	install(t, keyless(t), path)
	s.upgrade()
	require.Equal(t, "<nil>", s.operate("reload"))
	for _, v := range visitors {
		assert.Less(t, v.visit(s.addr), visits)
		for body := range v.met {
			assert.Regexp(t, `^(A|keyless) \d+$`, body)
		}
	}
	s.stop()
}

// keyless builds a version of the library as it was before there were keys.
func keyless(t *testing.T) string {
	t.Helper()
	return buildChanged(t, "keyless", map[string][2]string{
		"internal/control/control.go": {"\tcase Tickets:\n\t\tm.Keys = p.keys()\n", ""},
		"upgrade.go":                  {"*keptTickets `json:\",omitempty\"`", "*keptTickets `json:\"-\"`"},
		"prefork.go":                  {"m.makeTickets(tlsConfig, ", "m.makeTickets(nil, "},
		"child.go":                    {"config != nil && in.tls", "config != nil && false"},
	})
}
