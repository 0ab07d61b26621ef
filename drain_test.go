//go:build unix

package prefork_test

// The lame duck: what a draining child does with connections that are open.

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// session is a client's connection that is used more than once.
type session struct {
	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
}

func openSession(t testing.TB, addr string) *session {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	return &session{t, conn, bufio.NewReader(conn)}
}

// ask sends a request and reads its answer.
func (s *session) ask(path string) (body string, last bool) {
	s.t.Helper()
	_, err := fmt.Fprintf(s.conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
	require.NoError(s.t, err)
	resp, err := http.ReadResponse(s.r, nil)
	require.NoError(s.t, err)
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	require.NoError(s.t, err)
	return string(b), resp.Close
}

// closedAfter waits for the server's close and says how long that took.
func (s *session) closedAfter(since time.Time) time.Duration {
	s.t.Helper()
	_, err := s.r.ReadByte()
	require.ErrorIs(s.t, err, io.EOF, "an orderly close")
	return time.Since(since)
}

// TestLameDuck: whichever way the drain comes, an open connection is served
// once more, and one that is not used is closed when its time is over.
func TestLameDuck(t *testing.T) {
	t.Parallel()
	const idle = 1500 * time.Millisecond
	for name, drain := range map[string]func(s *server, pid int){
		"shutdown":     func(s *server, _ int) { s.signal(syscall.SIGTERM) },
		"reload":       func(s *server, _ int) { s.signal(syscall.SIGHUP) },
		"scale down":   func(s *server, _ int) { s.signal(syscall.SIGTTOU) },
		"child":        func(s *server, pid int) { kill(t, pid, syscall.SIGTERM) },
		"recycled":     func(s *server, pid int) { kill(t, pid, syscall.SIGHUP) },
		"orphan drain": func(s *server, _ int) { s.signal(syscall.SIGKILL) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, "app", options{"enable_prefork": true, "Children": 2, "drain_idle": idle})
			// Two connections to the child that a scale-down takes.
			slot := map[string]string{}
			for _, m := range s.awaitN(`^EVENT \d+ ready (\d+) (\d+)`, 2) {
				slot[m[2]] = m[1]
			}
			var sessions []*session
			pid := ""
			for len(sessions) < 3 {
				c := openSession(t, s.addr)
				if body, _ := c.ask("/"); slot[body] == "1" {
					sessions, pid = append(sessions, c), body
				}
			}
			number, _ := strconv.Atoi(pid)
			began := time.Now()
			drain(s, number)
			s.await("EVENT " + pid + " preshutdown")
			time.Sleep(300 * time.Millisecond) // well into the drain
			body, last := sessions[0].ask("/")
			assert.Equal(t, pid, body)
			assert.True(t, last)
			assert.GreaterOrEqual(t, sessions[1].closedAfter(began), idle-200*time.Millisecond)
			assert.Less(t, sessions[2].closedAfter(began), idle+10*time.Second)
			s.await("EVENT " + pid + " postshutdown <nil>")
			switch name {
			case "shutdown":
				assert.Equal(t, 0, s.exit())
			case "orphan drain":
				s.exit()
			default:
				s.stop()
			}
		})
	}
}

// TestUnusedConnections: those that have not been used for so long already are
// not waited for.
func TestUnusedConnections(t *testing.T) {
	if !procSelfExe {
		t.Skip("only Linux tells how long a connection has not been used")
	}
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 1, "drain_idle": 2 * time.Second})
	c := openSession(t, s.addr)
	_, last := c.ask("/")
	assert.False(t, last)
	time.Sleep(2100 * time.Millisecond) // of not being used
	began := time.Now()
	s.signal(syscall.SIGTERM)
	assert.Less(t, c.closedAfter(began), time.Second)
	assert.Equal(t, 0, s.exit())
}

// TestDrainIdleEndsWithTheDrain: never beyond the deadline; and off.
func TestDrainIdleEndsWithTheDrain(t *testing.T) {
	t.Parallel()
	for _, idle := range []time.Duration{time.Hour, -1} {
		s := start(t, "app", options{"enable_prefork": true, "Children": 1, "drain_idle": idle, "shutdown_timeout": time.Second})
		c := openSession(t, s.addr)
		c.ask("/")
		began := time.Now()
		s.signal(syscall.SIGTERM)
		took := c.closedAfter(began)
		if idle > 0 {
			assert.GreaterOrEqual(t, took, 500*time.Millisecond)
		} else {
			assert.Less(t, took, 500*time.Millisecond)
		}
		assert.Equal(t, 0, s.exit())
		s.await(fmt.Sprintf(`EVENT %d postshutdown <nil>`, s.cmd.Process.Pid))
	}
}

// TestLongConnectionsDuringDrain: WebSockets and event streams get the whole
// deadline, and the application hears of the drain when it begins.
func TestLongConnectionsDuringDrain(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"/hijack", "/stream"} {
		for _, end := range []string{"application", "deadline"} {
			s := start(t, "app", options{
				"enable_prefork": true, "Children": 1, "drain_idle": 100 * time.Millisecond, "shutdown_timeout": 3 * time.Second,
			})
			path := how
			if end == "application" {
				path += "?until=1" // 700 ms after OnPreShutdown
			}
			r := bufio.NewReader(dial(t, "tcp", s.addr, path))
			readUntil(t, r, "tick\n")
			idle := openSession(t, s.addr)
			idle.ask("/")
			began := time.Now()
			s.signal(syscall.SIGTERM)
			assert.Less(t, idle.closedAfter(began), 2*time.Second, "idle connections do not wait for it")
			_, _ = io.Copy(io.Discard, r)
			lasted := time.Since(began)
			assert.Equal(t, 0, s.exit())
			if end == "application" {
				assert.GreaterOrEqual(t, lasted, 600*time.Millisecond, how)
				assert.Less(t, lasted, 2500*time.Millisecond, how)
				s.await(fmt.Sprintf(`EVENT %d postshutdown <nil>`, s.cmd.Process.Pid))
			} else {
				assert.GreaterOrEqual(t, lasted, 2500*time.Millisecond, how)
				s.await(fmt.Sprintf(`EVENT %d postshutdown context deadline exceeded`, s.cmd.Process.Pid))
				s.await(`connections were cut off at the drain deadline`)
			}
		}
	}
}

func readUntil(t testing.TB, r *bufio.Reader, want string) {
	t.Helper()
	for {
		line, err := r.ReadString('\n')
		require.NoError(t, err)
		if line == want {
			return
		}
	}
}
