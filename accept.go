package prefork

// What a child accepts from: the listener of its own slot, and those of slots
// that have no ready child, which it covers. When it accepts and when it
// drains is in child.go.

import (
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fiber-prefork/prefork/internal/control"
	"github.com/fiber-prefork/prefork/internal/socket"
)

// inheritedListener is the slot's listener in a child. Its first Accept makes
// the child ready. Once it drains, Accept gives what the queue still holds, if
// nobody else will, and then net.ErrClosed.
type inheritedListener struct {
	key     string
	addr    net.Addr
	ln      net.Listener // nil if not mine, or with err
	err     error
	mine    bool // this child was started for it
	log     logger
	control *control.Conn

	interval time.Duration // of reports, which the master is told

	warned      time.Time   // of the last warning; only Accept touches it
	lingerUntil time.Time   // in a drain; only Accept touches it
	accepted    atomic.Bool // Accept has been called: the child is ready
	draining    atomic.Bool
	closing     sync.Once
	done        chan struct{} // closed by Close
	last        latch         // nobody else accepts what is queued
	leaveAt     time.Time     // from when on the drain leaves what is queued to others; set before draining

	mu     sync.Mutex
	covers map[uint32]*cover // of slots that this child covers
	ready  []*cover          // of these, on which connections wait
	count  atomic.Int32      // how many these are
}

// cover is the listener of a slot that this child covers. A goroutine says
// when connections wait on it, and Accept takes them: none is taken that this
// child has no room for.
type cover struct {
	ln     *os.File // a listener of net's cannot be waited for without accepting
	raw    syscall.RawConn
	looked chan struct{} // gets the word that Accept has
}

// past is a deadline that interrupts.
var past = time.Unix(1, 0)

// Addr returns the address that the master has bound.
func (l *inheritedListener) Addr() net.Addr { return l.addr }

// Accept waits for the next connection.
func (l *inheritedListener) Accept() (net.Conn, error) {
	if l.err != nil {
		return nil, l.err
	}
	if l.ln == nil {
		<-l.done
		return nil, l.closed()
	}
	for pause := time.Duration(0); ; {
		if l.count.Load() > 0 {
			if conn := l.acceptCovered(); conn != nil {
				return conn, nil
			}
			continue
		}
		if l.draining.Load() {
			if l.accepted.Load() {
				var conn net.Conn
				var err error
				lingers := l.lingers()
				if !l.leaves() {
					conn, err = socket.AcceptNow(l.ln)
				}
				if conn == nil && !mayPass(err) && !lingers {
					conn, err = l.drainCovered()
				}
				if conn != nil {
					return conn, nil
				}
				if mayPass(err) || lingers {
					time.Sleep(drainPoll)
					continue
				}
			}
			_ = l.close()
			return nil, l.closed()
		}
		if !l.accepted.Swap(true) {
			_ = l.control.Send(control.Message{Kind: control.Ready, State: stateVersion, Interval: l.interval})
		}
		conn, err := l.ln.Accept()
		switch {
		case err == nil:
			return conn, nil
		case errors.Is(err, net.ErrClosed):
			return nil, l.closed()
		case l.draining.Load(), errors.Is(err, os.ErrDeadlineExceeded):
			continue // to empty the queue, or to take what was handed over
		case !mayPass(err):
			return nil, err
		}
		// fasthttp would stop serving. The connection waits in the queue.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		if now := time.Now(); now.Sub(l.warned) >= acceptWarning {
			l.warned = now
			l.log.errorf("accept on %v: %v; connections wait", l.addr, err)
		}
		select {
		case <-l.done:
		case <-time.After(pause):
		}
	}
}

func (l *inheritedListener) closed() error {
	return &net.OpError{Op: "accept", Net: l.addr.Network(), Addr: l.addr, Err: net.ErrClosed}
}

// startDrain makes a waiting Accept go on with what the queues hold, until
// they are empty or until leaveAt: others accept it then, but for a child that
// is the last.
func (l *inheritedListener) startDrain(leaveAt time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.draining.Load() {
		return
	}
	l.leaveAt = leaveAt
	l.draining.Store(true)
	interrupt(l.ln, past)
	for _, c := range l.covers {
		l.stop(c)
	}
}

// leaves says whether a drain leaves what is queued to others.
func (l *inheritedListener) leaves() bool {
	return !l.last.sent() && !time.Now().Before(l.leaveAt)
}

// lingers says whether a request may be on its way on a connection that the
// kernel has deferred: the last one to close the listener waits for it.
func (l *inheritedListener) lingers() bool {
	if !l.last.sent() {
		return false
	}
	now := time.Now()
	if l.lingerUntil.IsZero() {
		l.lingerUntil = now.Add(lingerTime)
		socket.AcceptAtOnce(l.ln)
		l.mu.Lock()
		for _, c := range l.covers {
			socket.AcceptAtOnce(c.ln)
		}
		l.mu.Unlock()
	}
	return now.Before(l.lingerUntil)
}

func interrupt(ln any, at time.Time) {
	if d, ok := ln.(interface{ SetDeadline(time.Time) error }); ok {
		_ = d.SetDeadline(at)
	}
}

// cover accepts from ln, which is slot's, beside the own listener, until
// uncover or until the drain has emptied its queue. It closes ln.
func (l *inheritedListener) cover(slot uint32, ln *os.File) {
	l.mu.Lock()
	defer l.mu.Unlock()
	raw, err := ln.SyscallConn()
	if _, twice := l.covers[slot]; twice || err != nil || l.draining.Load() {
		_ = ln.Close()
		return
	}
	if l.covers == nil {
		l.covers = make(map[uint32]*cover)
	}
	c := &cover{ln: ln, raw: raw, looked: make(chan struct{}, 1)}
	l.covers[slot] = c
	go l.watch(c)
}

// uncover ends cover. What waits in the queue stays there, for others.
func (l *inheritedListener) uncover(slot uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c, ok := l.covers[slot]; ok {
		delete(l.covers, slot)
		l.stop(c)
		_ = c.ln.Close()
	}
}

// stop ends watch. l.mu is held.
func (l *inheritedListener) stop(c *cover) {
	interrupt(c.ln, past)
	l.setReady(slices.DeleteFunc(l.ready, func(other *cover) bool { return other == c }))
	c.look()
}

// setReady makes Accept look at the listeners on which connections wait, and
// wait on its own as long as there is none. l.mu is held.
func (l *inheritedListener) setReady(ready []*cover) {
	l.ready = ready
	l.count.Store(int32(len(ready)))
	switch {
	case len(ready) > 0:
		interrupt(l.ln, past)
	case !l.draining.Load():
		interrupt(l.ln, time.Time{})
	}
}

// look says that Accept has looked.
func (c *cover) look() {
	select {
	case c.looked <- struct{}{}:
	default:
	}
}

// watch interrupts Accept whenever connections wait on c.
func (l *inheritedListener) watch(c *cover) {
	for {
		// It is called again when there is something to read.
		if c.raw.Read(socket.Readable) != nil {
			return // stopped, or closed
		}
		l.mu.Lock()
		select {
		case <-c.looked: // left by stop
		default:
		}
		if l.draining.Load() {
			l.mu.Unlock()
			return
		}
		l.setReady(append(l.ready, c))
		l.mu.Unlock()
		select {
		case <-c.looked:
		case <-l.done:
			return
		}
	}
}

// acceptCovered takes a connection from a listener on which some wait, nil if
// they are gone.
func (l *inheritedListener) acceptCovered() net.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ready) == 0 {
		return nil
	}
	c := l.ready[0]
	l.setReady(l.ready[1:])
	conn, err := socket.AcceptNow(c.ln)
	if mayPass(err) {
		time.AfterFunc(coverPause, c.look) // others may have room
	} else {
		c.look()
	}
	return conn
}

// drainCovered takes a connection that waits on any covered listener, and
// closes those on which none does.
func (l *inheritedListener) drainCovered() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for slot, c := range l.covers {
		if !l.leaves() {
			conn, err := socket.AcceptNow(c.ln)
			if conn != nil || mayPass(err) {
				return conn, err
			}
		}
		delete(l.covers, slot)
		_ = c.ln.Close()
	}
	return nil, nil //nolint:nilnil // empty queues are neither a connection nor a failure
}

// coverPause is how long an accept that failed is not tried again.
const coverPause = 50 * time.Millisecond

// exhausted says whether a drain has accepted all that was queued, or never will.
func (l *inheritedListener) exhausted() bool {
	if !l.accepted.Load() {
		return true
	}
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// Close closes this child's copy. What the queue holds stays there if the
// master or another child has a copy too. In a drain Accept closes it, when
// the queue is empty.
func (l *inheritedListener) Close() error {
	if l.draining.Load() && !l.exhausted() {
		return nil
	}
	return l.close()
}

func (l *inheritedListener) close() error {
	var err error
	l.closing.Do(func() {
		close(l.done)
		if l.ln != nil {
			err = l.ln.Close()
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, c := range l.covers { // of a server that ended without a drain
			_ = c.ln.Close()
		}
	})
	return err
}

// mayPass says whether an accept that failed may succeed later: the process or
// the system is out of something, or the error is the connection's.
func mayPass(err error) bool {
	for _, errno := range []error{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.EPERM,
		syscall.EPROTO, syscall.ENETDOWN, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.EHOSTUNREACH,
	} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
