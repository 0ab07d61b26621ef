package prefork

// The open connections of a child: how many there are, which were never used,
// and how long they have not been. Fiber's server has them; here is what it
// does not tell. The cost is one lock when a connection comes and when it
// goes, and none for a request.

import (
	"crypto/tls"
	"net"
	"reflect"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/fiber-prefork/prefork/internal/report"
)

// connections is what a fasthttp ConnState function knows.
type connections struct {
	page   *report.Page // gets the number of those that are open
	tell   func()       // tells the master that one came
	silent atomic.Int64 // how many of conns are: most requests have nothing to look for

	mu       sync.Mutex
	newest   time.Time         // when the last one came
	conns    map[net.Conn]bool // whether nothing was ever asked on it
	hijacked map[net.Conn]struct{}
}

// watch returns a fasthttp ConnState function that calls next, if there is one.
func (s *connections) watch(next func(net.Conn, fasthttp.ConnState)) func(net.Conn, fasthttp.ConnState) {
	s.conns, s.hijacked = make(map[net.Conn]bool), make(map[net.Conn]struct{})
	return func(conn net.Conn, state fasthttp.ConnState) {
		if next != nil {
			next(conn, state)
		}
		if (state == fasthttp.StateActive || state == fasthttp.StateIdle) && s.silent.Load() == 0 {
			return
		}
		if s.note(conn, state) {
			s.tell()
		}
	}
}

// note takes in a new state of conn, and says whether the master is to be told.
func (s *connections) note(conn net.Conn, state fasthttp.ConnState) (tell bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns[conn] { // fasthttp counts it as busy for 5 s
		s.silent.Add(-1)
	}
	switch state {
	case fasthttp.StateNew:
		s.conns[conn] = true
		s.silent.Add(1)
		s.newest = time.Now()
		tell = s.page.Arrive()
	case fasthttp.StateActive, fasthttp.StateIdle:
		s.conns[conn] = false
	case fasthttp.StateHijacked:
		delete(s.conns, conn)
		s.hijacked[conn] = struct{}{}
	case fasthttp.StateClosed:
		delete(s.conns, conn)
	}
	s.page.SetConns(len(s.conns) + len(s.hijacked))
	return tell
}

// latest says when the last connection came.
func (s *connections) latest() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.newest
}

// closeSilent closes those on which nothing was ever asked, such as a browser
// opens ahead of its requests.
func (s *connections) closeSilent() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn, silent := range s.conns {
		if silent {
			_ = conn.Close()
		}
	}
}

// unused says since when no connection has been used: the least time of all;
// 0 when the system does not know of one.
func (s *connections) unused() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	least := time.Duration(1<<63 - 1)
	for conn := range s.conns {
		raw, ok := rawConn(conn)
		if !ok {
			return 0
		}
		if least = min(least, lastUsed(raw)); least == 0 {
			return 0
		}
	}
	return least
}

// hijackedOpen counts the connections that handlers have taken over and that
// are still open. fasthttp closes them when their handler returns, and does
// not say so.
func (s *connections) hijackedOpen() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sweep()
}

// sweep forgets connections that were taken over and are closed. Those of
// which nothing can be learned are forgotten too. s.mu is held.
func (s *connections) sweep() int {
	for conn := range s.hijacked {
		raw, ok := rawConn(conn)
		if !ok || raw.Control(func(uintptr) {}) != nil {
			delete(s.hijacked, conn)
		}
	}
	s.page.SetConns(len(s.conns) + len(s.hijacked))
	return len(s.hijacked)
}

// rawConn finds the system's connection inside conn: that of crypto/tls and
// others has NetConn, most wrappers embed a net.Conn.
func rawConn(conn net.Conn) (syscall.RawConn, bool) {
	for range 8 {
		switch c := conn.(type) {
		case syscall.Conn:
			raw, err := c.SyscallConn()
			return raw, err == nil
		case *tls.Conn:
			conn = c.NetConn()
		case interface{ NetConn() net.Conn }:
			conn = c.NetConn()
		default:
			v := reflect.Indirect(reflect.ValueOf(conn))
			if v.Kind() != reflect.Struct {
				return nil, false
			}
			inner := v.FieldByName("Conn")
			if !inner.IsValid() || !inner.CanInterface() {
				return nil, false
			}
			next, ok := inner.Interface().(net.Conn)
			if !ok || next == nil {
				return nil, false
			}
			conn = next
		}
	}
	return nil, false
}
