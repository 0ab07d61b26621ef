package prefork

// TLS session tickets: the keys that all children of a server share, so that
// a client can resume its session at whichever child it meets. The master
// makes and rotates them, and has them in memory only. A child sets them on
// the config that it serves with, unless the application sees to that itself.
// What a message with keys looks like is in internal/control.

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/fiber-prefork/prefork/internal/control"
)

const (
	ticketRotation = 24 * time.Hour
	// ticketLifetime is how old a session may be that crypto/tls resumes.
	ticketLifetime = 7 * 24 * time.Hour
	// ticketWait is how long a child waits for keys before it serves: the
	// master has sent them before main began, unless it is of a version that
	// does not.
	ticketWait = time.Second
)

// tickets are the keys of a server as its master holds them.
type tickets struct {
	// keys are the one that encrypts, the one that will next, and those that
	// did, the latest first. The second is known to all children a rotation
	// before the first of them uses it: none meets a ticket that it cannot
	// read, in whatever order they hear of a rotation, and if they miss one.
	keys    [][32]byte
	since   time.Time   // the first encrypts
	retired []time.Time // since when those that did do not any more: keys[2:]
}

func newTickets(now time.Time) *tickets {
	return &tickets{keys: [][32]byte{newTicketKey(), newTicketKey()}, since: now}
}

func newTicketKey() (key [32]byte) {
	_, _ = rand.Read(key[:]) // never fails
	return key
}

// rotateAt says when rotate is due. The time in which the machine slept does
// not count.
func (t *tickets) rotateAt() time.Time { return t.since.Add(ticketRotation) }

// rotate makes the next key the one that encrypts, and forgets those that have
// encrypted nothing for so long that no session of theirs can be resumed.
func (t *tickets) rotate(now time.Time) {
	kept := slices.IndexFunc(t.retired, func(at time.Time) bool { return now.Sub(at) >= ticketLifetime })
	if kept < 0 {
		kept = len(t.retired)
	}
	t.keys = slices.Concat([][32]byte{t.keys[1], newTicketKey(), t.keys[0]}, t.keys[2:2+kept])
	t.retired = slices.Concat([]time.Time{now}, t.retired[:kept])
	t.since = now
}

// keptTickets are tickets as the next program gets them.
type keptTickets struct {
	Keys    [][]byte
	Since   time.Duration   // how long the first has encrypted
	Retired []time.Duration // how long each of the last has not
}

func (t *tickets) keep(now time.Time) *keptTickets {
	if t == nil {
		return nil
	}
	k := &keptTickets{Since: now.Sub(t.since)}
	for i := range t.keys {
		k.Keys = append(k.Keys, t.keys[i][:])
	}
	for _, at := range t.retired {
		k.Retired = append(k.Retired, now.Sub(at))
	}
	return k
}

// tickets is the inverse of tickets.keep: nil if that has not made k.
func (k *keptTickets) tickets(now time.Time) *tickets {
	if k == nil || len(k.Keys) < 2 || len(k.Retired) != len(k.Keys)-2 {
		return nil
	}
	t := &tickets{since: now.Add(-k.Since)}
	for _, key := range k.Keys {
		if len(key) != len(t.keys[0]) {
			return nil
		}
		t.keys = append(t.keys, [32]byte(key))
	}
	for _, age := range k.Retired {
		t.retired = append(t.retired, now.Add(-age))
	}
	return t
}

// makeTickets makes the keys of m, or takes over those of the program before,
// if there is TLS.
func (m *master) makeTickets(tlsConfig *tls.Config, now time.Time) {
	if m.kept != nil {
		m.tickets = m.kept.Tickets.tickets(now)
		m.kept.Tickets = nil // which would remember them for ever
	}
	switch {
	case tlsConfig == nil:
		m.tickets = nil
	case m.tickets == nil:
		m.tickets = newTickets(now)
	}
}

// sendTickets gives p the keys, if there are any.
func (m *master) sendTickets(p *process) error {
	if m.tickets == nil {
		return nil
	}
	return p.control.Send(control.Message{Kind: control.Tickets, Keys: m.tickets.keys})
}

// rotateTickets rotates the keys if it is time to.
func (m *master) rotateTickets(now time.Time) {
	if m.tickets == nil || now.Before(m.tickets.rotateAt()) {
		return
	}
	m.tickets.rotate(now)
	m.log.infof("session tickets: new key, %d old ones are kept", len(m.tickets.retired))
	for _, s := range m.slots {
		for _, p := range s.processes() {
			if err := m.sendTickets(p); err != nil && !p.asked {
				// It has the key that the others use now.
				m.log.warnf("slot %d pid %d: session tickets: keys not sent, until the next rotation: %v", s.Slot, p.pid, err)
			}
		}
	}
}

// sharedTickets are the keys of a server as a child gets them.
type sharedTickets struct {
	came latch // the first keys are there

	mu     sync.Mutex
	keys   [][32]byte  // the latest, until the config has them
	config *tls.Config // that gets them; nil while it is not served, and if it has others
	mark   []byte      // of those that it got
	log    logger
	slot   int
}

// receive takes in what the master has sent.
func (t *sharedTickets) receive(keys [][32]byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.keys = keys
	t.came.send()
	t.set()
}

// serve makes config, which is to be served with, have the keys from now on.
// If none come it has those that crypto/tls makes.
func (t *sharedTickets) serve(config *tls.Config, log logger, slot int) {
	if !takesTickets(config, nil) {
		return
	}
	select {
	case <-t.came.c:
	case <-time.After(ticketWait):
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.config, t.log, t.slot = config, log, slot
	t.set()
}

// set gives the config the keys. t.mu is held.
func (t *sharedTickets) set() {
	if t.config == nil || t.keys == nil {
		return
	}
	if !takesTickets(t.config, t.mark) {
		t.log.infof("slot %d pid %d: session tickets: the application has set keys: left to it", t.slot, os.Getpid())
		t.config = nil
		return
	}
	t.config.SetSessionTicketKeys(t.keys)
	var same tls.Config
	same.SetSessionTicketKeys(t.keys)
	t.keys, t.mark = nil, ticketMark(&same)
}

// takesTickets says whether the application leaves the session tickets of
// config to us: they are on, and nobody has set other keys than those with
// that mark. config may be in use.
func takesTickets(config *tls.Config, mark []byte) bool {
	c := config.Clone()
	if c.SessionTicketsDisabled || c.WrapSession != nil || c.UnwrapSession != nil {
		return false
	}
	is := ticketMark(c)
	return is != nil && (bytes.Equal(is, mark) || bytes.Equal(is, ticketMark(&tls.Config{})))
}

// ticketMark tells by which key config, which it changes, encrypts tickets,
// without revealing it: it is the ticket of an empty session. All configs
// without a key of their own have the same mark.
func ticketMark(config *tls.Config) []byte {
	config.Rand = constant{}
	// Of keys that crypto/tls has made itself none is young enough: it makes
	// another, out of that.
	config.Time = func() time.Time { return time.Unix(1<<40, 0) }
	mark, err := config.EncryptTicket(tls.ConnectionState{}, &tls.SessionState{})
	if err != nil {
		return nil // tickets are off
	}
	return mark
}

// constant is a source of no randomness.
type constant struct{}

func (constant) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 0xa5 // no application's key
	}
	return len(b), nil
}
