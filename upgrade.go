package prefork

// An upgrade in place: when a rolling reload has shown that the executable on
// disk starts and serves, the master replaces its own image with it. The
// process stays, and with it its pid, its listeners and its children; what
// the new program has to know of them is handed over in a file that only it
// can read. How the image is replaced is in prefork_unix.go.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/fiber-prefork/prefork/internal/control"
	"github.com/fiber-prefork/prefork/internal/report"
	"github.com/fiber-prefork/prefork/internal/socket"
)

// stateVersion is the version of handover. A program takes over state of its
// own version only; its children tell which that is.
const stateVersion = 1

// envState names the descriptor of the state: "<version> <pid> <descriptor>".
const envState = "FIBER_PREFORK_STATE"

// Upgrade replaces the program, of the children and of the master, by the
// executable as it now is on disk. It begins with a reload, see [App.Reload]:
// if that fails, the old children, and in any case the old master, go on. Then
// the master replaces its own image: it keeps its pid, its listeners and its
// children, and main begins anew in it. There Listen, or Listener with a
// NewListener, for the same address returns to the running server instead of
// starting one; OnListen and the banner come again. SIGUSR2 does the same.
//
// It may be called as Reload. If all goes well it does not return: the program
// that has called it is gone, without its shutdown hooks. Otherwise it returns
// an [ErrReload], or an [ErrUpgrade] when the children were reloaded and the
// master was not replaced.
//
// A server on a listener that the application has opened itself, and one
// beside which another runs in the same process, cannot be upgraded.
func (a *App) Upgrade(ctx context.Context) error {
	return a.ask(ctx, &ask{kind: askUpgrade})
}

// upgradable says why m cannot be upgraded.
func (m *master) upgradable() error {
	switch {
	case m.env.key == "":
		return errors.New("the application has opened the listener itself; use Listen or NewListener")
	case here.masters.Load() > 1:
		return errors.New("another prefork server runs in this process")
	}
	return nil
}

// handover is what the next program is told of a server.
type handover struct {
	Version    int
	PID        int
	Key        string
	App        int
	Mode       ListenerMode
	Children   int // that were configured
	Generation int
	Slots      []keptSlot
	Signals    []int // that are watched
	Unwatched  bool  // none is: they are the application's
	Ended      []ended
	Program    string       // path of the executable, as it was named at the first start
	Tickets    *keptTickets `json:",omitempty"`
}

type keptSlot struct {
	Socket     socket.Kept
	Generation int
	Recoveries int
	Count      int
	Backoff    int
	Delay      time.Duration
	LastPID    int           `json:",omitempty"`
	RespawnIn  time.Duration `json:",omitempty"`
	Child      *keptProcess  `json:",omitempty"`
}

type keptProcess struct {
	PID       int
	Control   int // descriptor
	Unread    []byte
	StartedAt time.Time
	Ready     bool
	ReadyAt   time.Time
	Interval  time.Duration
	Page      int // descriptor
}

// errUnsettled says that something has happened to a child, which this program
// has to see to.
var errUnsettled = errors.New("a child has ended meanwhile")

// replace replaces this program. It returns only if that is impossible.
func (m *master) replace() error {
	img := m.images[m.generation]
	if img == nil {
		return errors.New("no executable")
	}
	// What the application is to hear of this program it hears now.
	m.calls.flushWithin(hookGrace)
	m.notify.queue.flushWithin(hookGrace)
	m.log.infof("replacing the program of the master: pid %d", os.Getpid())
	m.log.queue.flushWithin(hookGrace)
	m.holdChildren()
	state, keep := m.handover()
	var err error
	switch {
	case m.stopping.sent():
		err = errStoppedReload
	case m.upgradable() != nil: // meanwhile
		err = m.upgradable()
	case !m.settled(): // a child has left meanwhile
		err = errUnsettled
	default:
		err = replaceImage(img, state, keep)
	}
	// Still here.
	m.signals.again()
	for _, s := range m.slots {
		for _, p := range s.processes() {
			p.hold.end(p.control)
		}
	}
	return err
}

// holdChildren stops receiving from the children, between two messages. What
// comes until then is handled, and may bring another child.
func (m *master) holdChildren() {
	for again := true; again; {
		again = false
		for _, s := range m.slots {
			for _, p := range s.processes() {
				if p.hold.on.Load() {
					continue
				}
				again = true
				p.hold.begin(p.control)
				for held := false; !held; {
					select {
					case <-p.hold.held:
						held = true
					case <-p.read:
						held = true
					case e := <-m.events: // it may be what p waits to get rid of
						m.handle(e)
					}
				}
			}
		}
		select {
		case e := <-m.events:
			m.handle(e)
			again = true
		default:
		}
	}
}

// handover returns what the next program has to know, and a function that
// makes the descriptors in it survive, or not.
func (m *master) handover() (*handover, func(keep bool) error) {
	now := time.Now()
	h := &handover{
		Version: stateVersion, PID: os.Getpid(), Key: m.env.key, App: m.app.index, Mode: m.cfg.ListenerMode,
		Children: m.cfg.Children, Generation: m.generation, Ended: here.history.all(),
		Unwatched: m.cfg.DisableSignals, Program: here.program, Tickets: m.tickets.keep(now),
	}
	return h, func(keep bool) error {
		var failed error
		h.Slots = nil
		for _, s := range m.slots {
			kept, err := s.socket.Keep(keep)
			failed = errors.Join(failed, err)
			k := keptSlot{
				Socket: kept, Generation: s.Generation, Recoveries: s.Recoveries, LastPID: s.lastPID,
				Count: s.policy.count, Backoff: s.policy.backoff, Delay: s.policy.last,
			}
			if !s.respawnAt.IsZero() {
				k.RespawnIn = max(1, s.respawnAt.Sub(now))
			}
			if p := s.process; p != nil {
				fd, err := p.control.Keep(keep)
				page, pageErr := p.page.Keep(keep)
				failed = errors.Join(failed, err, pageErr)
				k.Child = &keptProcess{
					PID: p.pid, Control: fd, Unread: p.control.Unread(), StartedAt: p.startedAt,
					Ready: !p.readyAt.IsZero(), ReadyAt: p.readyAt, Interval: p.interval, Page: page,
				}
			}
			h.Slots = append(h.Slots, k)
		}
		return failed
	}
}

// parseHandover reads what the program before this one has left.
func parseHandover(b []byte) (*handover, error) {
	h := &handover{}
	if err := json.Unmarshal(b, h); err != nil {
		return nil, err
	}
	switch {
	case h.Version != stateVersion:
		return nil, fmt.Errorf("of version %d, want %d", h.Version, stateVersion)
	case h.PID != os.Getpid():
		return nil, fmt.Errorf("of process %d", h.PID)
	case len(h.Slots) == 0 || len(h.Slots) > maxChildren:
		return nil, fmt.Errorf("%d slots", len(h.Slots))
	case h.Mode != ListenerModeReuseport && h.Mode != ListenerModeShared:
		return nil, fmt.Errorf("listener mode %d", h.Mode)
	}
	return h, nil
}

// resume takes over the sockets and children of the program before this one.
func (m *master) resume() error {
	h := m.kept
	if want := m.cfg.ListenerMode; want != ListenerModeAuto && want != h.Mode {
		m.log.warnf("ListenerMode %v: this server has %v until it is started anew", want, h.Mode)
	}
	m.cfg.ListenerMode = h.Mode
	m.generation, m.newest = h.Generation, h.Generation
	m.steering.indexes = []int{-1} // not known
	var shared *socket.Socket
	for i, k := range h.Slots {
		at := shared
		if at == nil {
			var err error
			if at, err = socket.Adopt(k.Socket); err != nil {
				return fmt.Errorf("prefork: take over slot %d: %w", i, err)
			}
			if h.Mode == ListenerModeShared {
				shared = at
			}
		}
		s := m.newSlot(i, at)
		s.Generation, s.Recoveries, s.lastPID = k.Generation, k.Recoveries, k.LastPID
		s.policy.count, s.policy.backoff, s.policy.last = k.Count, k.Backoff, k.Delay
		if k.RespawnIn > 0 {
			s.respawnAt = time.Now().Add(k.RespawnIn)
		}
		m.slots = append(m.slots, s)
		m.size = len(m.slots)
		if k.Child == nil {
			if s.respawnAt.IsZero() {
				s.respawnAt = time.Now()
			}
			continue
		}
		if err := m.adopt(s, k.Child); err != nil {
			return fmt.Errorf("prefork: take over slot %d: %w", i, err)
		}
	}
	if m.cfg.Children != h.Children {
		if err := m.scale(m.cfg.Children); err != nil {
			return err
		}
	}
	m.log.infof("goes on as pid %d: %d children of generation %d", os.Getpid(), m.size, m.generation)
	m.publish()
	return nil
}

// adopt makes a process that the program before this one has started the child of s.
func (m *master) adopt(s *slot, k *keptProcess) error {
	conn, err := control.Open(uintptr(k.Control), k.Unread...)
	if err != nil {
		return err
	}
	page, err := report.Open(uintptr(k.Page))
	if err != nil {
		return err
	}
	now := time.Now()
	p := &process{
		heard: now, looked: now, page: page,
		slot: s, pid: k.PID, generation: s.Generation, startedAt: k.StartedAt, control: conn,
		interval: k.Interval, read: make(chan struct{}), hold: newHold(),
	}
	switch {
	case k.Ready:
		p.readyAt = k.ReadyAt
		p.limits = m.newLimits(p.readyAt)
	case m.cfg.ChildStartTimeout > 0:
		p.deadline = p.startedAt.Add(m.cfg.ChildStartTimeout)
	}
	s.fill(p)
	_ = m.sendTickets(p) // those of the program before, or new ones
	return p.attendPID(m.events)
}

// hold ends the receiving from a child for a while, or for good.
type hold struct {
	on   *atomic.Bool
	held chan struct{}
	goOn chan struct{}
}

func newHold() hold {
	return hold{on: &atomic.Bool{}, held: make(chan struct{}, 1), goOn: make(chan struct{}, 1)}
}

func (h hold) begin(c *control.Conn) {
	h.on.Store(true)
	c.ReceiveWithin(0)
}

func (h hold) end(c *control.Conn) {
	h.on.Store(false)
	c.ReceiveAgain()
	select {
	case h.goOn <- struct{}{}:
	default: // nobody receives any more
	}
}

// receive gives all that p says to events, until its channel ends.
func (p *process) receive(events chan<- event) {
	defer close(p.read)
	for {
		message, err := p.control.Receive()
		switch {
		case err == nil:
			events <- event{process: p, message: &message}
		case errors.Is(err, os.ErrDeadlineExceeded) && p.hold.on.Load():
			p.hold.held <- struct{}{}
			<-p.hold.goOn
		default:
			return
		}
	}
}

// claim returns what the program before this one has left of the server at
// key, once. If it is another server's, the program has changed its address:
// the old listeners and children are let go.
func (t *thisProcess) claim(key string) *handover {
	h := t.kept.Swap(nil)
	if h == nil || h.Key == key {
		return h
	}
	logger{}.warnf("serves %q now: the children that serve %q drain", key, h.Key)
	h.release()
	return nil
}

// release lets go of what was handed over: the children see the end of their
// channel, and drain.
func (h *handover) release() {
	for _, k := range h.Slots {
		if s, err := socket.Adopt(k.Socket); err == nil {
			s.Unlink()
			_ = s.Close()
		}
		if k.Child != nil {
			if conn, err := control.Open(uintptr(k.Child.Control)); err == nil {
				_ = conn.Close()
			}
			if page, err := report.Open(uintptr(k.Child.Page)); err == nil {
				page.Close()
			}
		}
	}
}

// keptSocket returns the first socket of the server at key that the program
// before this one has left, for a listener that is not served yet; nil if
// there is none.
func (t *thisProcess) keptSocket(key string) *socket.Socket {
	h := t.kept.Load()
	if h == nil || h.Key != key {
		return nil
	}
	s, err := socket.Adopt(h.Slots[0].Socket)
	if err != nil {
		return nil
	}
	return s
}

// endedBefore says whether the program before this one has served at key
// already, and how that ended: this one's main comes to it again on its way
// to the server that goes on.
func (t *thisProcess) endedBefore(app int, key string) (over bool, err error) {
	h := t.kept.Load()
	if h == nil || h.Key == key && h.App == app {
		return false, nil
	}
	return t.history.find(app, key)
}
