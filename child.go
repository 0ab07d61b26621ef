package prefork

// The child's side: what it inherits, how it serves it, what it tells the
// master, and how it drains. What it accepts from is in accept.go. Nothing
// here runs in a master.

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/fiber-prefork/prefork/internal/control"
	"github.com/fiber-prefork/prefork/internal/report"
	"github.com/fiber-prefork/prefork/internal/socket"
	"github.com/fiber-prefork/prefork/internal/systemd"
)

const (
	envFiber = "FASTHTTP_PREFORK_CHILD" // what fiber.IsChild looks at: "1"
	envChild = "FIBER_PREFORK_CHILD"    // ours: a childEnv

	envHistory = "FIBER_PREFORK_HISTORY" // ours: a history

	listenerFD = 3
	controlFD  = 4
	pageFD     = 5
	imageFD    = 6 // of the executable, or any: only its number matters, see start
)

const (
	// drainPoll is how often a draining child looks whether all connections are gone.
	drainPoll = 5 * time.Millisecond
	// lingerTime is how long a drain waits for the request on a connection that
	// was opened just before.
	lingerTime = 20 * time.Millisecond
	// selfGrace is how long a child that drains by itself goes on accepting
	// what is queued: the master may be about to ask all of them, if a signal
	// was for all, and else has others do it.
	selfGrace = 500 * time.Millisecond
	// closeTime is how long before the drain deadline idle connections are
	// closed at the latest: fasthttp looks every 100 ms whether they are gone.
	closeTime = 300 * time.Millisecond
	// idlePoll is how often it looks how long they have not been used.
	idlePoll = 100 * time.Millisecond
	// acceptWarning is the least time between two warnings that accept fails.
	acceptWarning = 10 * time.Second
	// leaveGrace is how long main may take to end after Listen has returned
	// before the child sends itself the signal that main may be waiting for.
	leaveGrace = time.Second
)

// childEnv is what the master tells a child through its environment.
type childEnv struct {
	master     int    // pid
	slot       int    // from 0
	generation int    // from 0
	app        int    // index of the app that is served
	tls        bool   // the listener that the master was given has TLS around it
	key        string // listenerKey of what is served; "" for a foreign listener
}

const envVersion = "1"

func (e childEnv) String() string {
	return fmt.Sprintf("%s %d %d %d %d %t %s", envVersion, e.master, e.slot, e.generation, e.app, e.tls, e.key)
}

// parseChildEnv is the inverse of childEnv.String.
func parseChildEnv(s string) (childEnv, error) {
	fields := strings.SplitN(s, " ", 7)
	if len(fields) != 7 || fields[0] != envVersion {
		return childEnv{}, fmt.Errorf("%s=%q: not of version %s", envChild, s, envVersion)
	}
	var numbers [4]int
	for i := range numbers {
		n, err := strconv.ParseInt(fields[i+1], 10, 32)
		if err != nil || n < 0 {
			return childEnv{}, fmt.Errorf("%s=%q: field %d is not a number", envChild, s, i+1)
		}
		numbers[i] = int(n)
	}
	if fields[5] != "true" && fields[5] != "false" {
		return childEnv{}, fmt.Errorf("%s=%q: field 5 is not a boolean", envChild, s)
	}
	return childEnv{
		master: numbers[0], slot: numbers[1], generation: numbers[2], app: numbers[3],
		tls: fields[5] == "true", key: fields[6],
	}, nil
}

// IsChild reports whether this process is a child that serves for a master of
// this package. It is decided when the process starts and never changes: a
// program that a child runs is not a child. fiber.IsChild agrees.
func IsChild() bool { return here.inherited != nil }

// here is this process. What it inherited is found when it starts, before main
// can run another program that would get a copy of it. A child's main repeats
// what the master's did; app numbers and history are how it finds its place.
var here = newThisProcess()

type thisProcess struct {
	inherited *inheritance // nil in a master
	apps      atomic.Int64 // made so far
	masters   atomic.Int64 // that run
	history   *history
	kept      atomic.Pointer[handover] // of the program that was here before, until a server claims it
	signals   chan os.Signal           // that came since; nil if there was none
	sockets   *systemd.Sockets         // that the service manager has passed
	program   string                   // path of the executable, as it is to be started again
}

func newThisProcess() *thisProcess {
	t := &thisProcess{inherited: inherit(), history: inheritHistory()}
	if t.inherited == nil {
		t.sockets, t.program = systemd.Inherited(), programPath()
		h := inheritState()
		if h != nil {
			t.history.Ended = h.Ended
			t.program = h.Program
			t.signals = earlySignals(h.Signals)
		}
		t.kept.Store(h)
	}
	return t
}

// history is how the servers of a program ended. It passes from the master to
// the children that it starts later: their main comes to those servers' Listen
// too, and must get from it what the master's got.
type history struct {
	mu    sync.Mutex
	Ended []ended
}

type ended struct {
	App   int
	Key   string
	Errno syscall.Errno `json:",omitempty"` // for errors.Is
	Error string        `json:",omitempty"` // "" for nil
}

func inheritHistory() *history {
	h := &history{}
	// What cannot be read was not written by us: no history.
	_ = json.Unmarshal([]byte(os.Getenv(envHistory)), &h.Ended)
	_ = os.Unsetenv(envHistory)
	return h
}

// add notes that a server has ended.
func (h *history) add(app int, key string, err error) {
	e := ended{App: app, Key: key}
	if err != nil {
		e.Error = err.Error()
		_ = errors.As(err, &e.Errno)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	same := func(e ended) bool { return e.App == app && e.Key == key }
	h.Ended = append(slices.DeleteFunc(h.Ended, same), e)
}

// find says whether a server has ended, and how.
func (h *history) find(app int, key string) (over bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.Ended {
		switch {
		case e.App != app || e.Key != key:
		case e.Error == "":
			return true, nil
		case e.Errno != 0:
			return true, fmt.Errorf("in the master: %s: %w", e.Error, e.Errno)
		default:
			return true, fmt.Errorf("in the master: %s", e.Error)
		}
	}
	return false, nil
}

// all returns what is known.
func (h *history) all() []ended {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.Ended)
}

// String is the value of envHistory.
func (h *history) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.Ended) == 0 {
		return ""
	}
	b, _ := json.Marshal(h.Ended)
	return string(b)
}

// inheritance is the one listener and the one channel that a child has.
type inheritance struct {
	childEnv
	control *control.Conn
	page    *report.Page
	last    latch         // nobody else accepts what is queued
	busy    chan struct{} // gets a word when a report is wanted of a quiet child
	drain   chan order    // gets the one order to drain
	ended   latch         // the app that this child serves has ended
	tickets sharedTickets

	mu    sync.Mutex
	ln    *inheritedListener // set by the first listener() that matches
	taken bool               // an app serves it
}

const askedByMaster = "the master"

// order is to drain: asked by whom, and in which time (0: the configured one).
type order struct {
	asker  string
	within time.Duration
}

func inherit() *inheritance {
	value, ok := os.LookupEnv(envChild)
	if !ok {
		return nil
	}
	env, err := parseChildEnv(value)
	if err != nil || !bornOf(env.master) {
		// A program that a child runs, or another version's leftovers: what
		// it inherited is not ours, and fiber.IsChild must not say that it is.
		_ = os.Unsetenv(envChild)
		_ = os.Unsetenv(envFiber)
		return nil
	}
	adopt(listenerFD, controlFD, pageFD)
	conn, err := control.Inherit(controlFD)
	var page *report.Page
	if err == nil {
		page, err = report.Open(pageFD)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%sslot %d pid %d: %v\n", logPrefix, env.slot, os.Getpid(), err)
		os.Exit(1)
	}
	page.Forget()
	in := &inheritance{childEnv: env, control: conn, page: page, last: newLatch(), busy: make(chan struct{}, 1), drain: make(chan order, 1), ended: newLatch()}
	in.tickets.came = newLatch()
	go in.receive()
	return in
}

// receive waits for the master's word. The end of the stream is its death: a
// child that accepts drains then, and one that does not yet has no reason to
// begin.
func (in *inheritance) receive() {
	for {
		m, err := in.control.Receive()
		switch {
		case err == nil && m.Kind == control.Drain:
			if m.Last {
				in.last.send()
			}
			select {
			case in.drain <- order{askedByMaster, m.Within}:
			default: // asked before
			}
			continue
		case err == nil && m.Kind == control.Poke:
			in.wake()
			continue
		case err == nil && m.Kind == control.Cover:
			in.cover(m)
			continue
		case err == nil && m.Kind == control.Tickets:
			in.tickets.receive(m.Keys)
			continue
		case err == nil && m.Kind == control.Uncover:
			if ln := in.own(); ln != nil {
				ln.uncover(m.Slot)
			}
			continue
		case err == nil:
			continue // of a kind for a later version's child
		}
		if ln := in.own(); ln == nil || !ln.accepted.Load() {
			os.Exit(1)
		}
		in.last.send()
		select {
		case in.drain <- order{asker: "the death of the master"}:
		default:
		}
		return
	}
}

// wake makes a quiet child report.
func (in *inheritance) wake() {
	select {
	case in.busy <- struct{}{}:
	default:
	}
}

// own returns the listener that this child serves, nil before it does.
func (in *inheritance) own() *inheritedListener {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.ln
}

// cover accepts from the listener that came with m.
func (in *inheritance) cover(m control.Message) {
	if m.File == nil {
		return // this process is out of descriptors: others cover too
	}
	if own := in.own(); own != nil && own.ln != nil {
		own.cover(m.Slot, m.File)
	} else {
		_ = m.File.Close()
	}
}

// serves says whether this child was started for the server that app is asked
// to be at key. A port or path says it; where it does not, the app has to.
func (in *inheritance) serves(app int, key string) bool {
	if key != in.key || app == in.childEnv.app {
		return key == in.key
	}
	if key == "" || strings.HasSuffix(key, ":0") {
		return false
	}
	over, _ := here.history.find(app, key)
	return !over
}

// listener returns the listener that this child has been started for, the same
// each time, if key is its, and else one that never gets a connection: a
// program may have more servers than the one that this child belongs to.
func (in *inheritance) listener(key, network, addr string) *inheritedListener {
	in.mu.Lock()
	defer in.mu.Unlock()
	if key != in.key {
		return &inheritedListener{key: key, addr: foreignAddr{network, addr}, done: make(chan struct{})}
	}
	if in.ln == nil {
		ln, err := socket.Inherit(listenerFD)
		in.ln = &inheritedListener{key: in.key, ln: ln, err: err, mine: true, control: in.control, last: in.last, done: make(chan struct{})}
		if err == nil {
			in.ln.addr = ln.Addr()
		} else {
			in.ln.addr = foreignAddr{"", in.key}
		}
	}
	return in.ln
}

// take makes a the app that this child serves.
func (in *inheritance) take() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.taken {
		return fmt.Errorf("prefork: slot %d pid %d: %w", in.slot, os.Getpid(), ErrAlreadyRunning)
	}
	in.taken = true
	return nil
}

// foreignAddr is an address that another child serves, as the program named it.
type foreignAddr struct{ network, addr string }

func (a foreignAddr) Network() string { return a.network }
func (a foreignAddr) String() string  { return a.addr }

// child is an app that is served in a child.
type child struct {
	app      *App
	cfg      ListenConfig
	in       *inheritance
	ln       *inheritedListener
	end      *ending
	draining atomic.Bool
	asked    atomic.Uint64 // requests that have come to a handler
	answered atomic.Uint64 // and left it
	quiet    atomic.Bool   // nothing happens, and no report is made
	conns    connections
	ordered  atomic.Bool // the master has asked for the drain
	cut      atomic.Bool // hijacked connections were left at the deadline
}

// serveChildListener is Listener in a child: p are the parts of ln.
func (a *App) serveChildListener(cfg ListenConfig, key string, ln net.Listener, p parts) error {
	if p.inherited != nil {
		return a.serve(cfg, p.inherited, ln)
	}
	mine := here.inherited.listener(key, "listener", fmt.Sprint(ln))
	// A listener that main opened here gets no connection: the master's is
	// pinned. It has told how TLS is done, and goes.
	if p.plain != nil {
		if u, ok := p.plain.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false)
		}
		_ = p.plain.Close()
	}
	tlsConfig := p.tls
	if tlsConfig == nil {
		tlsConfig = cfg.TLSConfig
	}
	if mine.mine && here.inherited.tls && tlsConfig == nil {
		return invalid("Listener", "a listener without TLS in a child",
			"the master's has TLS: put tls.NewListener around a prefork.NewListener, or set ListenConfig.TLSConfig")
	}
	if !here.inherited.tls {
		tlsConfig = nil
	}
	return a.serveChild(cfg, mine, tlsConfig)
}

// serveChild serves ln with TLS around it if there is a config.
func (a *App) serveChild(cfg ListenConfig, ln *inheritedListener, tlsConfig *tls.Config) error {
	var outer net.Listener = ln
	if tlsConfig != nil {
		outer = tls.NewListener(ln, tlsConfig)
	}
	return a.serve(cfg, ln, outer)
}

// serve serves outer, which has ln inside, until the drain is over: the whole
// life of a child.
func (a *App) serve(cfg ListenConfig, ln *inheritedListener, outer net.Listener) error {
	in := here.inherited
	log := cfg.log()
	if !ln.mine || !in.serves(a.index, ln.key) {
		if over, err := here.history.find(a.index, ln.key); over {
			return err
		}
		// Another server of this program, which has children of its own.
		log.infof("slot %d pid %d: waits at Listen of app %d on %q: this child serves app %d on %q",
			in.slot, os.Getpid(), a.index, ln.key, in.childEnv.app, in.key)
		<-in.ended.c
		return nil
	}
	if ln.err != nil {
		return fmt.Errorf("prefork: slot %d pid %d: %w", in.slot, os.Getpid(), ln.err)
	}
	if err := in.take(); err != nil {
		return err
	}
	ln.log, ln.interval = logger{custom: cfg.PreforkLogger, queue: newCalls()}, cfg.ReportInterval
	c := &child{app: a, cfg: cfg, in: in, ln: ln, end: newEnding()}
	a.setServer(c)

	defer func() {
		in.ended.send()
		leaveSoon(cfg.ShutdownTimeout)
	}()
	a.App.Handler() // builds the routes
	a.App.Hooks().OnPreShutdown(c.lameDuck)
	if cfg.ListenerAddrFunc != nil {
		cfg.ListenerAddrFunc(ln.Addr())
	}
	if cfg.BeforeServeFunc != nil {
		if err := cfg.BeforeServeFunc(a.App); err != nil {
			return err
		}
	}
	if config, _ := tlsOf(outer); config != nil && in.tls {
		in.tickets.serve(config, ln.log, in.slot)
	}
	server := a.App.Server()
	c.instrument(server)
	if !cfg.DisableSignals {
		// Until the process ends: a signal that comes twice changes nothing.
		watchSignals(c.signalled)
	}
	go c.watch()
	go c.report()

	err := server.Serve(outer)
	a.App.Hooks().OnPostShutdown() // waits for all handlers: see master.finish
	return err
}

// watch drains when the master, its death or the application's context says so.
func (c *child) watch() {
	var graceful <-chan struct{}
	if c.cfg.GracefulContext != nil {
		graceful = c.cfg.GracefulContext.Done()
	}
	select {
	case o := <-c.in.drain:
		c.ordered.Store(o.asker == askedByMaster)
		c.drain(cmp.Or(o.within, c.cfg.ShutdownTimeout), o.asker)
	case <-graceful:
		c.drain(childDeadline(c.cfg.ShutdownTimeout), "the end of GracefulContext")
	case <-c.in.ended.c:
	}
}

// signalled does what sig says: one that asks to end drains this child, one
// that asks a master to change something has it replaced.
func (c *child) signalled(sig os.Signal) {
	if asksToEnd(sig) {
		c.drain(childDeadline(c.cfg.ShutdownTimeout), sig.String())
		return
	}
	_ = c.in.control.Send(control.Message{Kind: control.Replace, Text: sig.String()})
}

// report tells the master that this process lives, and what it has done, until
// the process ends. When nothing has happened for some reports it pauses: to
// wake an idle process costs more than a busy one's report.
func (c *child) report() {
	tick := time.NewTicker(c.cfg.ReportInterval)
	defer tick.Stop()
	last, same, swept := uint64(0), 0, time.Now()
	for {
		asked, answered := c.asked.Load(), c.answered.Load()
		same++
		if asked != last || asked != answered {
			last, same = asked, 0
		}
		if now := time.Now(); now.Sub(swept) >= sweepEvery {
			swept = now
			c.conns.hijackedOpen()
		}
		r := report.Report{Requests: answered}
		if r.Quiet = canBeQuiet && same >= quietAfter; r.Quiet {
			c.quiet.Store(true)
		}
		c.in.page.Write(r)
		if !r.Quiet {
			select {
			case <-tick.C:
			case <-c.in.ended.c:
				return
			}
			continue
		}
		select {
		case <-c.in.busy:
			same = 0
		case <-time.After(quietInterval(&c.cfg)):
		case <-c.in.ended.c:
			return
		}
		c.quiet.Store(false)
		tick.Reset(c.cfg.ReportInterval)
	}
}

// sweepEvery is how often a child looks which hijacked connections have ended.
const sweepEvery = time.Second

// quietAfter is how many reports without a change make a child quiet.
const quietAfter = 4

// quietInterval is how often a quiet child reports.
func quietInterval(cfg *ListenConfig) time.Duration {
	const most = 15 * time.Second
	if cfg.HangTimeout < 0 {
		return max(most, cfg.ReportInterval)
	}
	return max(min(most, cfg.HangTimeout/2), cfg.ReportInterval)
}

// drain ends the child on behalf of asker.
func (c *child) drain(within time.Duration, asker string) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	_ = c.shutdownFor(ctx, asker)
}

// shutdown is App.Shutdown in a child: it ends this child only, and the
// master replaces it unless it is ending too.
func (c *child) shutdown(ctx context.Context) error { return c.shutdownFor(ctx, "the application") }

func (c *child) shutdownFor(ctx context.Context, asker string) error {
	return c.end.run(ctx, c.cfg.ShutdownTimeout, func() error {
		if asker != askedByMaster {
			_ = c.in.control.Send(control.Message{Kind: control.Status, Text: "draining: " + asker})
		}
		err := c.app.App.ShutdownWithContext(c.end.context(c.cfg.ShutdownTimeout))
		if err == nil && c.cut.Load() {
			err = context.DeadlineExceeded
		}
		if err != nil {
			_ = c.in.control.Send(control.Message{Kind: control.Overdue})
		}
		return err
	})
}

// lameDuck is the OnPreShutdown handler behind those that were registered
// before Listen. It stops accepting, and leaves connections open on which
// nothing is asked, so that a request that is on its way is answered, with
// the word that it is the last, and not met by a closed connection. Fiber
// closes those that are idle when it returns, and waits for the others.
func (c *child) lameDuck() error {
	ctx := c.end.context(c.cfg.ShutdownTimeout)
	c.draining.Store(true)
	leaveAt := time.Now()
	if !c.ordered.Load() {
		leaveAt = leaveAt.Add(selfGrace)
	}
	c.ln.startDrain(leaveAt)
	defer c.conns.closeSilent()
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	began := time.Now()
	since, look := began, time.Time{}
	end := since.Add(time.Hour)
	if deadline, ok := ctx.Deadline(); ok { // Fiber needs time to close what is idle
		end = deadline.Add(-min(closeTime, deadline.Sub(began)/2))
	}
	for c.openConnections() > 0 {
		now := time.Now()
		if !c.ln.exhausted() && c.asked.Load() != c.answered.Load() {
			since = now // a wrapper with a limit accepts when these are answered
		}
		if latest := c.conns.latest(); latest.After(since) {
			since = latest
		}
		if now.Sub(since) >= c.cfg.DrainIdle || now.After(end) {
			break
		}
		if c.ln.exhausted() && now.Sub(look) >= idlePoll {
			look = now
			if c.conns.unused() >= c.cfg.DrainIdle {
				break
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
	c.waitForHijacked(ctx)
	return nil
}

// waitForHijacked gives WebSockets and others that have taken a connection
// over until ctx's end.
func (c *child) waitForHijacked(ctx context.Context) {
	if c.conns.hijackedOpen() == 0 {
		return
	}
	c.conns.closeSilent()
	// Idle connections have had their time.
	go func() { _ = c.app.App.Server().ShutdownWithContext(ctx) }()
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	for c.conns.hijackedOpen() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			c.cut.Store(true)
			return
		}
	}
}

// openConnections counts the accept loop as one.
func (c *child) openConnections() int32 {
	// fasthttp takes off one for the accept loop, also when it has ended.
	return c.app.App.Server().GetOpenConnectionsCount() + 1
}

// instrument makes server tell c of its connections and requests.
func (c *child) instrument(server *fasthttp.Server) {
	server.Handler = c.lastAnswer(server.Handler)
	c.conns.page = c.in.page
	c.conns.tell = func() { _ = c.in.control.Send(control.Message{Kind: control.Arrival}) }
	server.ConnState = c.conns.watch(server.ConnState)
}

// lastAnswer counts requests, and makes the answers of a draining child say
// that they are the last on their connection.
func (c *child) lastAnswer(answer fasthttp.RequestHandler) fasthttp.RequestHandler {
	return func(ctx *fasthttp.RequestCtx) {
		c.asked.Add(1)
		if c.quiet.Load() && c.quiet.CompareAndSwap(true, false) {
			c.in.wake()
		}
		answer(ctx)
		c.answered.Add(1)
		if !c.draining.Load() {
			return
		}
		if r := ctx.LastTimeoutErrorResponse(); r != nil {
			r.SetConnectionClose() // the handler may still own the other one
		} else if !ctx.Hijacked() {
			ctx.Response.Header.SetConnectionClose()
		}
	}
}

// snapshot is App.Children in a child: there are none.
func (c *child) snapshot() []Child { return nil }

// leaveSoon sees to it that a child whose server has ended goes, also when
// main waits for a signal that only the master got, or for nothing at all.
func leaveSoon(within time.Duration) {
	time.AfterFunc(leaveGrace, signalSelf)
	time.AfterFunc(leaveGrace+within, func() { os.Exit(1) })
}
