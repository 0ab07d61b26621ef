package prefork_test

// Connections on which nothing has been asked yet: the kernel keeps them.

import (
	"fmt"
	"net"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// unasked opens n connections and asks nothing.
func unasked(t *testing.T, s *server, n int) []net.Conn {
	t.Helper()
	var conns []net.Conn
	for range n {
		conn, err := net.Dial("tcp", s.addr)
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
		conns = append(conns, conn)
	}
	return conns
}

// ask asks on each, and says who answered how often.
func ask(t *testing.T, conns []net.Conn) map[string]int {
	t.Helper()
	by := map[string]int{}
	for _, conn := range conns {
		_, err := fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		require.NoError(t, err)
		_, body := answer(t, conn)
		by[body]++
	}
	return by
}

// TestKillOfAChildWithUnaskedConnections: it did not have them.
func TestKillOfAChildWithUnaskedConnections(t *testing.T) {
	t.Parallel()
	for mode := 1; mode <= 2; mode++ {
		s := start(t, "app", options{"enable_prefork": true, "Children": 2, "listener_mode": mode})
		pids := s.readyPIDs(2)
		conns := unasked(t, s, 40)
		kill(t, pids[0], syscall.SIGKILL)
		by := ask(t, conns)
		assert.Zero(t, by[strconv.Itoa(pids[0])])
		s.stop()
	}
}

// TestScaleDownKeepsUnaskedConnections until the kernel gives them up.
func TestScaleDownKeepsUnaskedConnections(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2, "listener_mode": 1})
	s.readyPIDs(2)
	conns := unasked(t, s, 40)
	s.signal(syscall.SIGTTOU)
	s.await(`\[prefork\] slot 1 pid \d+: exit status 0`)
	assert.Len(t, ask(t, conns[:20]), 1)
	s.await(`\[prefork\] slot 1: removed`) // the rest has come meanwhile
	assert.Len(t, ask(t, conns[20:]), 1)
	s.stop()
}
