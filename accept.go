package prefork

// What a child accepts from: the listener of its own slot, and those of slots
// that have no ready child, which it covers. When it accepts and when it
// drains is in child.go.

import (
	"errors"
	"net"
	"os"
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

	warned   time.Time   // of the last warning; only Accept touches it
	accepted atomic.Bool // Accept has been called: the child is ready
	draining atomic.Bool
	closing  sync.Once
	done     chan struct{} // closed by Close
	last     latch         // nobody else accepts what is queued
	leaveAt  time.Time     // from when on the drain leaves what is queued to others; set before draining

	mu     sync.Mutex
	covers map[uint32]net.Listener // of slots that this child covers
	pumps  int                     // that accept from them, and have not ended
	handed []handedConn            // that they have accepted, one each at most
	hands  atomic.Int32            // how many these are
	more   chan struct{}           // gets a word when there is one more; nil before the first cover
}

// handedConn is a connection that was accepted from a covered listener.
type handedConn struct {
	conn  net.Conn
	taken chan<- struct{} // gets the word that it was
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
		if l.hands.Load() > 0 {
			return l.takeCovered(), nil
		}
		if l.draining.Load() {
			if l.accepted.Load() {
				var conn net.Conn
				var err error
				if !l.leaves() {
					conn, err = socket.AcceptNow(l.ln)
				}
				if err == nil && conn != nil {
					return conn, nil
				}
				if mayPass(err) || l.covering() {
					select {
					case <-l.more:
					case <-time.After(drainPoll):
					}
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
	for _, ln := range l.covers {
		interrupt(ln, past)
	}
}

// leaves says whether a drain leaves what is queued to others.
func (l *inheritedListener) leaves() bool {
	return !l.last.sent() && !time.Now().Before(l.leaveAt)
}

func interrupt(ln net.Listener, at time.Time) {
	if d, ok := ln.(interface{ SetDeadline(time.Time) error }); ok {
		_ = d.SetDeadline(at)
	}
}

// cover accepts from ln, which is slot's, beside the own listener, until
// uncover or until the drain has emptied its queue. It closes ln.
func (l *inheritedListener) cover(slot uint32, ln net.Listener) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, twice := l.covers[slot]; twice || l.draining.Load() {
		_ = ln.Close()
		return
	}
	if l.covers == nil {
		l.covers, l.more = make(map[uint32]net.Listener), make(chan struct{}, 1)
	}
	l.covers[slot] = ln
	l.pumps++
	go l.pump(ln)
}

// uncover ends cover. What waits in the queue stays there, for others.
func (l *inheritedListener) uncover(slot uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ln, ok := l.covers[slot]; ok {
		delete(l.covers, slot)
		interrupt(ln, past)
	}
}

// pump hands over what it accepts from ln, one connection at a time: the
// others wait in the queue, which outlives this process.
func (l *inheritedListener) pump(ln net.Listener) {
	defer func() {
		_ = ln.Close()
		l.mu.Lock()
		l.pumps--
		l.mu.Unlock()
	}()
	taken := make(chan struct{}, 1)
	for {
		conn, err := ln.Accept()
		if errors.Is(err, os.ErrDeadlineExceeded) && l.draining.Load() && !l.leaves() {
			conn, err = socket.AcceptNow(ln)
		}
		switch {
		case conn != nil:
			l.hand(handedConn{conn, taken})
		case mayPass(err):
			time.AfterFunc(drainPoll, func() { taken <- struct{}{} }) // a pause
		default:
			return
		}
		select {
		case <-taken:
		case <-l.done:
			return
		}
	}
}

// hand gives Accept a connection, and interrupts it.
func (l *inheritedListener) hand(h handedConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.done: // without a drain
		_ = h.conn.Close()
		return
	default:
	}
	l.handed = append(l.handed, h)
	l.hands.Store(int32(len(l.handed)))
	interrupt(l.ln, past)
	select {
	case l.more <- struct{}{}:
	default:
	}
}

// takeCovered returns a connection that was handed over.
func (l *inheritedListener) takeCovered() net.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.handed[0]
	l.handed = l.handed[1:]
	l.hands.Store(int32(len(l.handed)))
	if len(l.handed) == 0 && !l.draining.Load() {
		interrupt(l.ln, time.Time{})
	}
	h.taken <- struct{}{}
	return h.conn
}

// covering says whether a covered listener may still give a connection.
func (l *inheritedListener) covering() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pumps > 0 || len(l.handed) > 0
}

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
		for _, ln := range l.covers {
			_ = ln.Close()
		}
		for _, h := range l.handed { // only of a server that ended without a drain
			_ = h.conn.Close()
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
