// Package prefork makes a Fiber application serve from several processes that
// survive what happens to one of them: swap fiber.New for prefork.New and
// fiber.ListenConfig for prefork.ListenConfig.
//
// A master binds the sockets, starts children by running its own executable
// again, hands each its socket, and replaces children that die. The master
// still holds a dead child's socket, so nothing that waits in its accept
// queue is lost. See the docs folder of the repository.
package prefork

// The life of a server in the master, top to bottom: bind → spawn → ready →
// supervise → drain. How a server is asked for is in listen.go, what a child
// does in child.go, when a child that died is replaced in recovery.go, who
// accepts for a slot without a child in cover.go, what an operator changes in
// reload.go and upgrade.go, what the children's TLS shares in tickets.go, and
// what depends on the system in prefork_unix.go and internal/socket.

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gofiber/fiber/v3"

	"github.com/fiber-prefork/prefork/internal/control"
	"github.com/fiber-prefork/prefork/internal/report"
	"github.com/fiber-prefork/prefork/internal/socket"
)

// App is a Fiber application that can prefork. All of Fiber's methods are
// there; those that prefork changes are documented here.
type App struct {
	*fiber.App

	hooks *Hooks
	index int // of the apps of this process, in the order in which they are made

	mu     sync.Mutex
	server server // the latest, also after its end; nil before Listen
}

// server is a running master or child.
type server interface {
	shutdown(ctx context.Context) error
	snapshot() []Child
}

// New makes a Fiber app, as fiber.New does, that can prefork.
func New(config ...fiber.Config) *App {
	return Wrap(fiber.New(config...))
}

// Wrap makes an existing Fiber app prefork. Handlers that are registered with
// its hooks already still run.
func Wrap(app *fiber.App) *App {
	a := &App{App: app, index: int(here.apps.Add(1)) - 1}
	a.hooks = &Hooks{Hooks: app.Hooks(), app: a}
	app.Hooks().OnPreStartupMessage(a.bannerEntries)
	return a
}

// Hooks returns the hooks of the app.
func (a *App) Hooks() *Hooks { return a.hooks }

// Use is fiber.App.Use, and mounts a prefork.App like a fiber.App.
func (a *App) Use(args ...any) fiber.Router {
	args = slices.Clone(args)
	for i, arg := range args {
		if sub, ok := arg.(*App); ok {
			args[i] = sub.App
		}
	}
	return a.App.Use(args...)
}

// Shutdown drains the server and returns when that is over. In the master it
// drains all children: they stop accepting, finish what they have accepted
// and exit. In a child it drains that child only, which the master then
// replaces. It may be called by any goroutine, any number of times, from any
// hook but those of the shutdown itself. The first caller's deadline holds;
// all get the same result, or the error of their own context if that ends first.
//
// Children that are left after ListenConfig.ShutdownTimeout are killed;
// Shutdown and OnPostShutdown then get context.DeadlineExceeded.
func (a *App) Shutdown() error {
	return a.ShutdownWithContext(context.Background())
}

// ShutdownWithTimeout is Shutdown with another deadline; 0 or less kills at once.
func (a *App) ShutdownWithTimeout(timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return a.ShutdownWithContext(ctx)
}

// ShutdownWithContext is Shutdown with ctx's end as the deadline. If ctx has
// no deadline, ListenConfig.ShutdownTimeout holds too.
func (a *App) ShutdownWithContext(ctx context.Context) error {
	if s := a.current(); s != nil {
		return s.shutdown(ctx)
	}
	return a.App.ShutdownWithContext(ctx)
}

// Children returns the slots and who fills them, by slot. It is empty in a
// child and without prefork. It may be called by any goroutine at any time.
func (a *App) Children() []Child {
	if s := a.current(); s != nil {
		return s.snapshot()
	}
	return nil
}

func (a *App) current() server {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.server
}

func (a *App) setServer(s server) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.server = s
}

// master returns the master that serves a, or nil.
func (a *App) master() *master {
	m, _ := a.current().(*master)
	return m
}

// ChildState says what a slot's child is doing.
type ChildState string

// The states of a child, in the order in which it goes through them.
const (
	// ChildStarting is a process that has not said yet that it accepts connections.
	ChildStarting ChildState = "starting"
	// ChildReady is a child that accepts connections.
	ChildReady ChildState = "ready"
	// ChildSilent is a child that was ready and is three reports late: it may
	// be stopped, starved or hung. Others accept its connections too.
	ChildSilent ChildState = "silent"
	// ChildDraining is a child that finishes what it has accepted.
	ChildDraining ChildState = "draining"
	// ChildDown is a slot without a process: it waits for its recovery.
	ChildDown ChildState = "down"
)

// Child is a slot and the process that fills it.
type Child struct {
	// Slot is the place, from 0.
	Slot int
	// PID is the process id, 0 if the slot is down.
	PID int
	// Generation is the reload that the child belongs to, from 0.
	Generation int
	// State is what it is doing.
	State ChildState
	// StartedAt is when the process was started.
	StartedAt time.Time
	// Recoveries is how often the slot's child has been replaced since the
	// server started.
	Recoveries int
}

// slot is a place for a child. It outlives its children. Only the supervise
// goroutine touches it.
type slot struct {
	Child

	socket    *socket.Socket
	policy    recovery
	process   *process   // that fills the slot; nil when down
	next      *process   // that starts, to take its place: see reload.go
	leaving   []*process // that drain while the slot is filled by another, or removed
	respawnAt time.Time  // zero unless the slot waits for its recovery
	lastPID   int        // of the child that died, until its replacement is ready
	lost      *process   // that has ended, or leaves by itself, and is not judged yet
	exit      *ChildExit // how it did
	judgeAt   time.Time  // when it is
	recycleAt time.Time  // a recycling that failed is not tried again before
	removed   bool       // by Scale: it gets no new child, and goes when its queue is empty
	closing   bool       // it is removed, and nobody is to cover it any more
	closeAt   time.Time  // not before: handshakes that have begun may still bring a connection
}

// process is a child's process as the master holds it.
type process struct {
	slot       *slot
	pid        int
	generation int
	startedAt  time.Time
	control    *control.Conn
	signal     func(os.Signal)
	read       chan struct{} // closed when nothing is received any more

	// The supervise goroutine's.
	asked    bool          // to go
	readyAt  time.Time     // zero until it is
	deadline time.Time     // of its start or its drain; zero when none
	failure  string        // why it is killed
	interval time.Duration // of its reports
	page     *report.Page  // where it makes them
	beat     uint64        // of the last one that was seen
	heard    time.Time     // when that was made
	looked   time.Time     // when it was looked for last
	quiet    bool          // it says that nothing happens
	arrived  uint64        // how many connections had come when they were counted
	waiting  time.Time     // since when connections wait for it though it is quiet; zero if none does
	suspect  time.Time     // when it is looked at again, because it is late
	silent   bool          // it is late
	abortAt  time.Time     // when it was asked to abort; zero if it was not
	covers   []*slot       // whose listeners it has been given
	replace  string        // why it is to be recycled, "" if it is not
	limits   limits        // on its life

	hold hold // ends receiving for another program: see upgrade.go
}

// signalWatch is the watching of signals: its end, and its beginning anew
// after it was undone.
type signalWatch struct{ stop, again func() }

// master is one server in the master, from Listen to the end of its drain.
type master struct {
	app     *App
	cfg     ListenConfig // its ListenerMode is never auto once the slots are bound
	log     logger
	env     childEnv // of every child, but for the slot
	slots   []*slot
	parked  *parked
	end     *ending
	signals signalWatch
	calls   *calls   // runs hooks in order, never on the supervise goroutine
	notify  notifier // tells the service manager, in order too

	credential *credential
	kept       *handover             // what the program before this one has left, nil if there was none
	fiberFork  []fiber.OnForkHandler // that were registered with Fiber itself
	tickets    *tickets              // nil without TLS

	events    chan event
	stopping  latch      // a shutdown has begun: nothing is started any more
	drainAsk  latch      // the children are to drain
	killAsk   latch      // the children are to be killed
	started   chan error // gets the outcome of the start, once
	drained   latch      // no child is left
	published atomic.Pointer[[]Child]

	// Only the supervise goroutine touches these until drained.
	size       int            // of slots that are not removed: the first ones
	awake      time.Time      // since when the master was not stopped
	steering   steering       // of new connections
	generation int            // of the latest reload that came to its end
	newest     int            // of the latest that began
	images     map[int]*image // of generations; that of this process for others
	reload     *reload        // that runs
	queued     *reload        // that comes next
	starting   bool
	draining   bool
	deadline   <-chan struct{} // of the drain
	drainErr   error
	cause      error // why the server ended by itself, nil if it was asked to
}

// event is something that happened to a child, or that somebody asks for.
// Exactly one of message, exit and ask is there.
type event struct {
	process *process
	message *control.Message
	exit    *ChildExit
	ask     *ask
}

var (
	// errStopped is the outcome of a start that a shutdown has overtaken,
	// errStoppedReload of a reload.
	errStopped       = errors.New("stopped while starting")
	errStoppedReload = errors.New("stopped while reloading")
)

// abortTimeout is the drain deadline of a start that failed.
const abortTimeout = 500 * time.Millisecond

// childDeadline is how long a child's drain may take when the master's may
// take d: a tenth less, at most half a second, so that the child's
// OnPostShutdown handlers run before it is killed.
func childDeadline(d time.Duration) time.Duration { return d - min(d/10, 500*time.Millisecond) }

// secondSignal is how long after the first a signal is a second word and not
// the same one again: timeout(1), for one, signals its child and its group.
const secondSignal = 500 * time.Millisecond

// hookGrace is how long the end of a drain waits for OnChildExit handlers.
const hookGrace = 500 * time.Millisecond

// serveMaster is the whole life of a master. bind gives the first socket.
func (a *App) serveMaster(cfg ListenConfig, tlsConfig *tls.Config, key string, bind func() (*socket.Socket, error)) (err error) {
	_ = os.Unsetenv(envFiber) // whoever set it: this process is a master
	m := &master{
		app: a, cfg: cfg, log: logger{custom: cfg.PreforkLogger, queue: newCalls()},
		end: newEnding(), calls: newCalls(), starting: true,
		env:    childEnv{master: os.Getpid(), app: a.index, tls: tlsConfig != nil, key: key},
		events: make(chan event, 64), started: make(chan error, 1),
		images: make(map[int]*image), awake: time.Now(),
		stopping: newLatch(), drainAsk: newLatch(), killAsk: newLatch(), drained: newLatch(),
	}
	if m.credential, err = lookUp(cfg.ChildCredential); err != nil {
		return err
	}
	if err := m.register(); err != nil {
		return err
	}
	defer here.masters.Add(-1)
	here.sockets.Private(true)
	m.notify = newNotifier(m.log)
	m.kept = here.claim(key)
	m.makeTickets(tlsConfig, time.Now())
	defer func() { here.history.add(a.index, key, err) }()
	defer m.log.queue.flushWithin(hookGrace)
	defer m.drained.send() // whatever happens: the app may listen again

	// Bind: every slot listens before the first child starts.
	defer m.closeSockets()
	if err := m.bind(bind); err != nil {
		return err
	}
	addr := m.slots[0].socket.Addr()
	if cfg.ListenerAddrFunc != nil {
		cfg.ListenerAddrFunc(addr)
	}

	// From here on Fiber's shutdown, whoever calls it, finds a listener to
	// close, and closing it is the drain.
	m.parked = newParked(addr, tlsConfig, m.drain)
	defer func() {
		m.drained.send()              // Close waits for it
		_ = a.App.Server().Shutdown() // which keeps a listener that nobody has closed
	}()
	go func() { _ = a.App.Server().Serve(m.parked) }()
	<-m.parked.accepting
	if m.stopping.sent() { // before Fiber could find it
		return nil
	}

	// Spawn, wait for ready, supervise. To begin watching signals takes as long
	// as starting a child: both at once, but a hook that runs can count on it.
	watched, unwatch := make(chan struct{}), func() {}
	go func() {
		unwatch = m.watch()
		close(watched)
	}()
	m.post(func() { <-watched })
	m.fiberFork = forkHandlers(a.App.Hooks())
	m.spawnAll()
	<-watched
	defer unwatch()
	go m.supervise()
	defer m.finish()
	err = <-m.started
	m.calls.flushUntil(m.drained.c)
	if err == nil {
		// To Fiber this is a server like any other: OnListen, the banner, the
		// routes, BeforeServeFunc. It returns when the parked listener is closed.
		err = a.App.Listener(m.parked, m.fiberConfig())
	}
	if err != nil && !errors.Is(err, errStopped) {
		return err
	}

	<-m.drained.c
	return m.cause
}

// register makes m the server of its app, unless that has one that runs.
func (m *master) register() error {
	m.app.mu.Lock()
	defer m.app.mu.Unlock()
	if old, ok := m.app.server.(*master); ok && !old.drained.sent() {
		return fmt.Errorf("prefork: %w", ErrAlreadyRunning)
	}
	m.app.server = m
	here.masters.Add(1)
	return nil
}

// bind gives every slot its socket: the first one and siblings of it where the
// kernel spreads connections over them, else the first one for all.
func (m *master) bind(bind func() (*socket.Socket, error)) error {
	if m.kept != nil {
		return m.resume()
	}
	first, err := bind()
	if err != nil {
		return fmt.Errorf("prefork: %w", err)
	}
	m.slots = []*slot{{socket: first}}
	asked := m.cfg.ListenerMode
	if m.cfg.ListenerMode == ListenerModeAuto && first.Addr().Network() == "unix" {
		m.cfg.ListenerMode = ListenerModeShared
	}
	if m.cfg.ListenerMode == ListenerModeShared && m.cfg.DisableReuseportFallback {
		return fmt.Errorf("prefork: listen on %v: %w: this listener can only be shared", first.Addr(), ErrReuseportUnsupported)
	}
	if m.cfg.ListenerMode != ListenerModeShared {
		switch err := first.EnableReuseport(); {
		case err == nil:
			m.cfg.ListenerMode = ListenerModeReuseport
		case !errors.Is(err, socket.ErrReuseport):
			return fmt.Errorf("prefork: listen on %v: %w", first.Addr(), err)
		case m.cfg.DisableReuseportFallback || m.cfg.ListenerMode == ListenerModeReuseport:
			return fmt.Errorf("prefork: listen on %v: %w: %w", first.Addr(), ErrReuseportUnsupported, err)
		default:
			m.log.warnf("all children share one listener: %v", err)
			m.cfg.ListenerMode = ListenerModeShared
		}
	}
	m.slots = m.slots[:0]
	for len(m.slots) < m.cfg.Children {
		err := m.addSlot(first)
		if denied(err) && asked == ListenerModeAuto && !m.cfg.DisableReuseportFallback {
			// first is of the service manager, which may bind what we may not.
			m.log.warnf("all children share one listener: %v", err)
			for _, s := range m.slots[1:] {
				_ = s.socket.Close()
			}
			m.cfg.ListenerMode, m.slots = ListenerModeShared, m.slots[:1]
			continue
		}
		if err != nil {
			return fmt.Errorf("prefork: %w", err)
		}
	}
	m.publish()
	return nil
}

// denied says whether a listener could not be opened beside one that is open.
func denied(err error) bool {
	return errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EACCES)
}

// addSlot adds a slot at the end. The first one gets first.
func (m *master) addSlot(first *socket.Socket) (err error) {
	at := first
	if len(m.slots) > 0 && m.cfg.ListenerMode == ListenerModeReuseport {
		if at, err = first.Sibling(); err != nil {
			return fmt.Errorf("listener of slot %d: %w", len(m.slots), err)
		}
	}
	m.slots = append(m.slots, m.newSlot(len(m.slots), at))
	m.size = len(m.slots)
	return nil
}

func (m *master) newSlot(i int, at *socket.Socket) *slot {
	return &slot{
		Child: Child{Slot: i, State: ChildDown}, socket: at,
		policy: recovery{
			limit: m.cfg.MaxChildRecoveries, window: m.cfg.RecoveryWindow,
			interval: m.cfg.PreforkRecoverInterval, jitter: rand.Float64,
		},
	}
}

// fiberConfig is what Fiber's Listener gets in the master.
func (m *master) fiberConfig() fiber.ListenConfig {
	plain := m.cfg.fiber()
	plain.EnablePrefork = false // Fiber would warn that it cannot prefork a listener
	plain.GracefulContext = nil // see watch: Fiber runs the hooks twice when Shutdown is called too
	// The children have the TLS; Fiber would warn that a listener ignores it.
	plain.TLSConfig, plain.TLSConfigFunc, plain.AutoCertManager, plain.TLSMinVersion = nil, nil, nil, 0
	plain.CertFile, plain.CertKeyFile, plain.CertClientFile = "", "", ""
	return plain
}

// watch turns signals into what they ask for, the end of the application's
// context into the shutdown, and a second signal into the kill, until stop is
// called.
func (m *master) watch() (stop func()) {
	guardOutput()
	m.signals = signalWatch{stop: func() {}, again: func() {}}
	if !m.cfg.DisableSignals {
		var first time.Time
		m.signals = watchSignals(func(sig os.Signal) {
			switch {
			case !asksToEnd(sig):
				m.signalled(sig)
			case first.IsZero():
				first = time.Now()
				m.log.infof("%v: draining", sig)
				go func() { _ = m.shutdown(context.Background()) }()
			case time.Since(first) >= secondSignal:
				m.killAsk.send()
			}
		})
	}
	stopContext := func() bool { return true }
	if m.cfg.GracefulContext != nil {
		stopContext = context.AfterFunc(m.cfg.GracefulContext, func() { _ = m.shutdown(context.Background()) })
	}
	stopReaping := reapStrangers()
	return func() {
		m.signals.stop()
		stopContext()
		stopReaping()
	}
}

// spawnAll starts the first children.
func (m *master) spawnAll() {
	if m.kept != nil {
		return
	}
	for _, s := range m.slots {
		if m.stopping.sent() || m.draining {
			return
		}
		m.spawn(s)
	}
}

// supervise keeps every slot filled until the server ends and no child is
// left. Nobody else touches the slots any more.
func (m *master) supervise() {
	defer m.drained.send()
	defer m.endReloads(errStoppedReload)
	m.awake = time.Now()
	stopping, drainAsk, killAsk := m.stopping.c, m.drainAsk.c, m.killAsk.c
	timer := time.NewTimer(0)
	defer timer.Stop()
	for !m.draining || m.alive() > 0 {
		if m.starting && !m.stopping.sent() && (m.kept != nil || m.allReady()) {
			m.starting = false
			m.notify.ready(m.count())
			m.publish()
			m.started <- nil
		}
		m.advance(time.Now())
		m.arrange()
		m.publish()
		now := time.Now()
		wait := m.nextDue(now)
		timer.Reset(wait)
		select {
		case e := <-m.events:
			m.notePause(now.Add(wait))
			m.handle(e)
		case <-timer.C:
			m.notePause(now.Add(wait))
			m.due(time.Now())
		case <-stopping: // OnPreShutdown handlers run now: their time counts
			stopping = nil
			m.notify.stopping()
			m.endReloads(errStoppedReload)
			if !m.draining {
				m.deadline = m.end.context(m.cfg.ShutdownTimeout).Done()
			}
		case <-drainAsk:
			drainAsk = nil
			m.beginDrain(m.end.context(m.cfg.ShutdownTimeout))
		case <-m.deadline:
			m.deadline = nil
			m.killAll("the drain deadline has passed", context.DeadlineExceeded)
		case <-killAsk:
			killAsk = nil
			m.killAll("second signal", context.Canceled)
		}
	}
	m.due(time.Now()) // the last ends
	m.publish()
	if m.starting {
		m.started <- cmp.Or(m.cause, errStopped)
	}
}

// spawn starts a child in s, which is empty. A failure is retried; while the
// server starts it is the end.
func (m *master) spawn(s *slot) {
	p, err := m.start(s, s.Generation)
	if err != nil {
		if m.starting {
			m.abort(&ChildError{Reason: ErrChildStart, Slot: s.Slot, Status: err.Error(), Cause: err})
			return
		}
		delay := s.policy.failed()
		s.respawnAt = time.Now().Add(delay)
		m.log.errorf("slot %d: cannot start a child: %v; next try in %v", s.Slot, err, delay.Round(time.Millisecond))
		return
	}
	s.fill(p)
	m.post(func() { m.app.hooks.forked(m.fiberFork, p.pid) })
}

// start starts a child of a generation for s.
func (m *master) start(s *slot, generation int) (*process, error) {
	env := m.env
	env.slot, env.generation = s.Slot, generation
	p := &process{slot: s, generation: generation, read: make(chan struct{}), hold: newHold()}
	if err := p.start(s.socket, env, m.images[generation], m.credential, m.cfg.ChildProcs, m.events); err != nil {
		return nil, err
	}
	_ = m.sendTickets(p) // it fails if the child is gone already
	if m.cfg.ChildStartTimeout > 0 {
		p.deadline = p.startedAt.Add(m.cfg.ChildStartTimeout)
	}
	return p, nil
}

// fill makes p the child of s.
func (s *slot) fill(p *process) {
	s.process, s.respawnAt = p, time.Time{}
	s.PID, s.StartedAt, s.Generation, s.State = p.pid, p.startedAt, p.generation, ChildStarting
	if !p.readyAt.IsZero() {
		s.State = ChildReady
	}
}

// handle takes in what happened to a child, or what is asked for.
func (m *master) handle(e event) {
	if e.ask != nil {
		m.asked(e.ask)
		return
	}
	p, s := e.process, e.process.slot
	if e.message != nil {
		e.message.Text = printable(e.message.Text)
	}
	switch {
	case e.exit != nil:
		m.exited(p, *e.exit)
	case e.message.Kind == control.Ready && p.readyAt.IsZero():
		m.ready(p, e.message)
	case e.message.Kind == control.Status:
		m.log.infof("slot %d pid %d: %s", s.Slot, p.pid, e.message.Text)
		if p == s.process && !p.asked {
			m.leaves(s, e.message.Text)
		}
	case e.message.Kind == control.Arrival:
		m.lookSoon(time.Now())
	case e.message.Kind == control.Replace:
		m.log.infof("slot %d pid %d: %s: asks to be replaced", s.Slot, p.pid, e.message.Text)
		p.replace = e.message.Text
	case e.message.Kind == control.Overdue:
		m.log.warnf("slot %d pid %d: connections were cut off at the drain deadline", s.Slot, p.pid)
		if m.draining && m.drainErr == nil {
			m.drainErr = context.DeadlineExceeded
		}
	}
}

// ready notes that p accepts connections.
func (m *master) ready(p *process, message *control.Message) {
	if p.asked || p.failure != "" {
		return // it has to go all the same
	}
	s, now := p.slot, time.Now()
	p.readyAt, p.deadline = now, time.Time{}
	p.interval = min(max(message.Interval, minReportInterval), maxReportInterval)
	p.heard, p.looked = now, now
	p.limits = m.newLimits(now)
	switch p {
	case s.next:
		if !m.takesOver(p, message.State) {
			return
		}
	case s.process:
		s.State = ChildReady
	default:
		return
	}
	child, lastPID := s.Child, s.lastPID
	s.lastPID = 0
	m.post(func() { m.app.hooks.ready(child) })
	if lastPID != 0 {
		m.log.infof("slot %d pid %d: ready after %v, replaces pid %d",
			s.Slot, s.PID, now.Sub(p.startedAt).Round(time.Millisecond), lastPID)
		m.post(func() { m.app.hooks.recovered(lastPID, child.PID) })
	}
}

// abort ends a start that failed, without the hooks of a shutdown: the server
// never ran.
func (m *master) abort(cause error) {
	if m.cause == nil {
		m.cause = cause
	}
	m.stopping.send()
	ctx, cancel := context.WithTimeout(context.Background(), abortTimeout)
	context.AfterFunc(ctx, cancel)
	m.beginDrain(ctx)
}

// giveUp ends a server that cannot go on, the ordinary way.
func (m *master) giveUp(cause error) {
	m.log.errorf("draining the rest: %s", oneLine(cause))
	m.cause = cause
	m.stopping.send()
	go func() { _ = m.shutdown(context.Background()) }()
}

// beginDrain closes the port and asks all children to drain until ctx's end.
func (m *master) beginDrain(ctx context.Context) {
	if m.draining {
		return
	}
	m.draining = true
	m.deadline = ctx.Done()
	m.stopping.send()
	m.closeSockets() // first: what is queued belongs to the children alone then
	within := m.cfg.ShutdownTimeout
	if deadline, ok := ctx.Deadline(); ok {
		within = time.Until(deadline)
	}
	for _, s := range m.slots {
		s.respawnAt = time.Time{}
		for _, p := range []*process{s.process, s.next} {
			if p != nil {
				m.askToDrain(p, within, true)
			}
		}
		for _, p := range s.leaving { // that it should empty the queue after all
			_ = p.control.Send(control.Message{Kind: control.Drain, Within: within, Last: true})
		}
		if s.process != nil {
			s.State = ChildDraining
		}
	}
}

// askToDrain asks p to end within a time. One that does not is killed. If it
// is not the last, others accept what is queued.
func (m *master) askToDrain(p *process, within time.Duration, last bool) {
	p.asked = true
	p.deadline = time.Now().Add(within)
	p.failure = "the drain deadline has passed"
	// It fails if the child is dying anyway; one that is stuck is killed in the end.
	_ = p.control.Send(control.Message{Kind: control.Drain, Within: max(childDeadline(within), time.Millisecond), Last: last})
	if p.readyAt.IsZero() && !m.cfg.DisableSignals {
		p.signal(terminate) // it does not listen to the channel yet, and has nothing to lose
	}
}

// killAll ends the children that are left.
func (m *master) killAll(why string, err error) {
	m.draining = true
	m.stopping.send()
	m.closeSockets()
	m.drainErr = err
	m.parked.release() // an OnPreShutdown handler that hangs must not keep Listen
	for _, s := range m.slots {
		s.respawnAt = time.Time{}
		for _, p := range s.processes() {
			m.log.warnf("slot %d pid %d: killed: %s", s.Slot, p.pid, why)
			p.asked = true
			p.signal(os.Kill)
		}
	}
}

// shutdown is App.Shutdown in the master.
func (m *master) shutdown(ctx context.Context) error {
	return m.end.run(ctx, m.cfg.ShutdownTimeout, func() error {
		m.stopping.send()
		// No deadline for Fiber itself: what it waits for is m.drain.
		return m.app.App.ShutdownWithContext(context.Background())
	})
}

// drain drains all children and returns when they are gone: it is the Close
// of the parked listener.
func (m *master) drain() error {
	m.drainAsk.send()
	<-m.drained.c
	// OnChildExit of the last ones comes before OnPostShutdown; but a handler
	// may be waiting for us.
	m.calls.flushWithin(hookGrace)
	if m.drainErr != nil {
		return m.drainErr
	}
	return m.cause
}

// finish ends a server that Fiber has not ended: a failed BeforeServeFunc, a
// handler that panicked. It waits for the hooks that are still to run.
func (m *master) finish() {
	m.stopping.send()
	_ = m.drain()
	// Fiber holds its lock from the first OnPreShutdown handler to the last
	// OnPostShutdown handler, and takes it to register one, even none.
	ended := inTime(m.cfg.ShutdownTimeout, func() { m.app.App.Hooks().OnPostShutdown() })
	if !ended || !m.calls.flushWithin(m.cfg.ShutdownTimeout) {
		m.log.warnf("a hook has not returned after %v: left behind", m.cfg.ShutdownTimeout)
	}
}

// closeSockets gives up the master's hold on all listeners, and on the
// executables: no child is started any more.
func (m *master) closeSockets() {
	for _, s := range m.slots {
		s.socket.Unlink()
		_ = s.socket.Close()
	}
	for _, img := range m.images {
		img.close()
	}
}

func (m *master) alive() int {
	n := 0
	for _, s := range m.slots {
		n += len(s.processes())
	}
	return n
}

// processes are those of s that live.
func (s *slot) processes() []*process {
	all := slices.Clip(s.leaving)
	for _, p := range []*process{s.process, s.next} {
		if p != nil {
			all = append(all, p)
		}
	}
	return all
}

// serving says whether the child of s accepts connections.
func (s *slot) serving() bool {
	p := s.process
	return p != nil && !p.readyAt.IsZero() && !p.asked && !p.silent
}

// active are the slots that are to be filled.
func (m *master) active() []*slot { return m.slots[:m.size] }

func (m *master) allReady() bool {
	ready, all := m.count()
	return ready == all
}

// count says how many slots have a child that accepts connections, and how
// many there are.
func (m *master) count() (ready, all int) {
	for _, s := range m.active() {
		if s.serving() {
			ready++
		}
	}
	return ready, m.size
}

// post runs a hook's handlers soon. What they see of the children is what the
// supervise goroutine knows now.
func (m *master) post(run func()) {
	m.publish()
	m.calls.post(0, run)
}

// publish makes the state of the slots visible to other goroutines.
func (m *master) publish() {
	children := make([]Child, 0, len(m.slots))
	for _, s := range m.slots {
		if !s.removed || s.PID != 0 {
			children = append(children, s.Child)
		}
	}
	m.published.Store(&children)
	if !m.starting && !m.stopping.sent() {
		m.notify.count(m.count())
	}
}

// snapshot is App.Children in the master.
func (m *master) snapshot() []Child {
	if p := m.published.Load(); p != nil {
		return slices.Clone(*p)
	}
	return nil
}
