package prefork

// The open connections of a child: how many there are, which were never used,
// and how long they have not been. Fiber's server has them; here is what it
// does not tell. It costs a lock when a connection comes and when it goes, and
// none for a request unless there is a connection without any.

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
	page *report.Page // gets the number of those that are open
	tell func()       // tells the master that one came

	silent atomic.Int64 // on how many nothing was ever asked

	mu       sync.Mutex
	newest   time.Time             // when the last one came
	conns    map[net.Conn]isSilent // that Fiber's server has
	hijacked map[net.Conn]struct{}
}

// isSilent says that nothing was ever asked on a connection.
type isSilent bool

// watch returns a fasthttp ConnState function that calls next, if there is one.
func (s *connections) watch(next func(net.Conn, fasthttp.ConnState)) func(net.Conn, fasthttp.ConnState) {
	s.conns, s.hijacked = make(map[net.Conn]isSilent), make(map[net.Conn]struct{})
	return func(conn net.Conn, state fasthttp.ConnState) {
		if next != nil {
			next(conn, state)
		}
		switch state {
		case fasthttp.StateNew:
			s.begins(conn)
		case fasthttp.StateActive:
			if s.silent.Load() > 0 {
				s.speaks(conn)
			}
		case fasthttp.StateHijacked, fasthttp.StateClosed:
			s.ends(conn, state == fasthttp.StateHijacked)
		case fasthttp.StateIdle:
		}
	}
}

func (s *connections) begins(conn net.Conn) {
	s.mu.Lock()
	s.conns[conn] = true
	s.silent.Add(1)
	s.newest = time.Now()
	s.publish()
	tell := s.page.Arrive()
	s.mu.Unlock()
	if tell {
		s.tell()
	}
}

// speaks notes that something was asked on conn.
func (s *connections) speaks(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns[conn] {
		s.conns[conn] = false
		s.silent.Add(-1)
	}
}

func (s *connections) ends(conn net.Conn, hijacked bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns[conn] {
		s.silent.Add(-1)
	}
	delete(s.conns, conn)
	if hijacked {
		s.hijacked[conn] = struct{}{}
	}
	s.publish()
}

// publish tells how many connections are open. s.mu is held.
func (s *connections) publish() { s.page.SetConns(len(s.conns) + len(s.hijacked)) }

// latest says when the last connection came.
func (s *connections) latest() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.newest
}

// closeSilent closes those on which nothing was ever asked, such as a browser
// opens ahead of its requests.
func (s *connections) closeSilent() {
	var silent []net.Conn
	s.mu.Lock()
	for conn, is := range s.conns {
		if is {
			silent = append(silent, conn)
		}
	}
	s.mu.Unlock()
	for _, conn := range silent {
		_ = conn.Close()
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
	s.publish()
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
