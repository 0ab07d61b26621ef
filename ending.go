package prefork

// The small pieces that starting and ending in order is made of: an event that
// happens once, the shutdown that everybody joins, the listener whose Close is
// the drain, and calls that are made elsewhere. Nothing here knows of children.

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"
)

// parked is the listener that Fiber serves in the master: it never accepts,
// and closing it drains the children.
type parked struct {
	addr      net.Addr
	tls       *tls.Config
	drain     func() error
	accepting chan struct{}
	closed    latch
	once      sync.Once
}

func newParked(addr net.Addr, tlsConfig *tls.Config, drain func() error) *parked {
	return &parked{addr: addr, tls: tlsConfig, drain: drain, accepting: make(chan struct{}), closed: newLatch()}
}

// Accept waits for the end.
func (p *parked) Accept() (net.Conn, error) {
	p.once.Do(func() { close(p.accepting) })
	<-p.closed.c
	return nil, net.ErrClosed
}

// Close returns what OnPostShutdown gets.
func (p *parked) Close() error {
	p.release()
	return p.drain()
}

// release ends Accept.
func (p *parked) release() { p.closed.send() }

// Addr returns the address that the children serve.
func (p *parked) Addr() net.Addr { return p.addr }

// TLSConfig tells Fiber's banner that the children speak TLS.
func (p *parked) TLSConfig() *tls.Config { return p.tls }

// ending is the one shutdown of a server: whoever asks first leads it, the
// others wait for its result.
type ending struct {
	mu   sync.Mutex
	ctx  context.Context //nolint:containedctx // the leader's: the drain's deadline
	led  bool
	err  error
	done latch
}

func newEnding() *ending { return &ending{done: newLatch()} }

// run makes the caller the leader, who calls f, or waits for the leader.
func (e *ending) run(ctx context.Context, limit time.Duration, f func() error) error {
	e.mu.Lock()
	lead := !e.led
	e.led = true
	if lead && e.ctx == nil {
		e.limit(ctx, limit)
	}
	e.mu.Unlock()
	if lead {
		defer e.done.send()
		e.err = f()
		return e.err
	}
	select {
	case <-e.done.c:
		return e.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// context returns the context that bounds the drain. It is made here when
// nobody leads, because Fiber's own shutdown was called.
func (e *ending) context(limit time.Duration) context.Context {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx == nil {
		e.limit(context.Background(), limit)
	}
	return e.ctx
}

// limit sets ctx, with limit as its deadline if it has none. e.mu is held.
func (e *ending) limit(ctx context.Context, limit time.Duration) {
	e.ctx = ctx
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		e.ctx, cancel = context.WithTimeout(ctx, limit)
		context.AfterFunc(e.ctx, cancel)
	}
}

// latch is an event that happens once.
type latch struct {
	c    chan struct{}
	once *sync.Once
}

func newLatch() latch { return latch{c: make(chan struct{}), once: &sync.Once{}} }

// send makes it happen.
func (s latch) send() { s.once.Do(func() { close(s.c) }) }

// sent says whether it has happened.
func (s latch) sent() bool {
	select {
	case <-s.c:
		return true
	default:
		return false
	}
}

// calls runs functions in order on one goroutine and never makes the caller wait.
type calls struct {
	mu      sync.Mutex
	queue   []func()
	running bool
	idle    sync.Cond
}

func newCalls() *calls {
	c := &calls{}
	c.idle.L = &c.mu
	return c
}

// post queues f. With a limit above 0, f is dropped if so many wait already.
func (c *calls) post(limit int, f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if limit > 0 && len(c.queue) >= limit {
		return
	}
	c.queue = append(c.queue, f)
	if !c.running {
		c.running = true
		go c.run()
	}
}

func (c *calls) run() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) > 0 {
		f := c.queue[0]
		c.queue = c.queue[1:]
		c.mu.Unlock()
		f()
		c.mu.Lock()
	}
	c.running = false
	c.idle.Broadcast()
}

// flushWithin is flush with a limit; it says whether all has run.
func (c *calls) flushWithin(limit time.Duration) bool { return inTime(limit, c.flush) }

// flushUntil is flush until stop is closed.
func (c *calls) flushUntil(stop <-chan struct{}) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.flush()
	}()
	select {
	case <-done:
	case <-stop:
	}
}

// flush waits until all that was posted has run.
func (c *calls) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.running {
		c.idle.Wait()
	}
}

// inTime runs f and says whether it ended within limit. It is left behind if not.
func inTime(limit time.Duration, f func()) bool {
	over := make(chan struct{})
	go func() {
		defer close(over)
		f()
	}()
	select {
	case <-over:
		return true
	case <-time.After(limit):
		return false
	}
}
