//go:build unix

package prefork_test

// The end: every way into it, what it waits for, and what it leaves.

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestEveryWayToEnd: 20 requests are in flight whichever way the end comes.
func TestEveryWayToEnd(t *testing.T) {
	t.Parallel()
	for name, way := range map[string]struct {
		opts options
		end  func(s *server)
	}{
		"SIGTERM":         {nil, func(s *server) { s.signal(syscall.SIGTERM) }},
		"SIGINT":          {nil, func(s *server) { s.signal(syscall.SIGINT) }},
		"GracefulContext": {options{"Graceful": true, "disable_signals": true}, func(s *server) { s.signal(syscall.SIGTERM) }},
		"both":            {options{"Graceful": true}, func(s *server) { s.signal(syscall.SIGTERM) }},
		"Fiber's own":     {options{"At": "raw"}, func(s *server) { s.signal(syscall.SIGUSR1) }},
	} {
		t.Run(name, func(t *testing.T) {
			opts := options{"enable_prefork": true, "Children": 2}
			for k, v := range way.opts {
				opts[k] = v
			}
			s := start(t, "app", opts)
			pids := s.readyPIDs(2)
			var conns []net.Conn
			for range 20 {
				conns = append(conns, dial(t, "tcp", s.addr, "/untildrain"))
			}
			s.awaitN("EVENT .* sleeping", 20)
			way.end(s)
			for _, conn := range conns {
				resp, body := answer(t, conn)
				assert.Equal(t, "slept", body)
				assert.True(t, resp.Close, "the last answer says that it is the last")
			}
			assert.Equal(t, 0, s.exit())
			s.endedWell(pids)
			_, err := net.Dial("tcp", s.addr)
			require.ErrorIs(t, err, syscall.ECONNREFUSED)
		})
	}
}

// endedWell checks the order of the hooks and that every Listen returned nil.
func (s *server) endedWell(pids []int) {
	s.t.Helper()
	master := s.cmd.Process.Pid
	for _, pid := range append([]int{master}, pids...) {
		var order []string
		for _, m := range s.matches(fmt.Sprintf(`^EVENT %d (preshutdown|postshutdown <nil>|returned <nil>)`, pid)) {
			order = append(order, m[1])
		}
		assert.Equal(s.t, []string{"preshutdown", "postshutdown <nil>", "returned <nil>"}, order, "pid %d", pid)
	}
	for _, pid := range pids {
		assert.Len(s.t, s.matches(fmt.Sprintf(`EVENT %d exit \d %d code=0 asked=true status=exit status 0`, master, pid)), 1)
	}
	// The master's handlers are around the children's ends.
	out := s.output()
	first := strings.Index(out, fmt.Sprintf("EVENT %d preshutdown", master))
	last := strings.Index(out, fmt.Sprintf("EVENT %d postshutdown", master))
	for _, pid := range pids {
		end := strings.Index(out, fmt.Sprintf("EVENT %d returned", pid))
		assert.Less(s.t, first, end)
		assert.Less(s.t, end, last)
	}
	assert.Empty(s.t, s.matches("EVENT .* recover"))
}

// TestProcessGroup is Ctrl-C in a terminal: everybody gets the signal.
func TestProcessGroup(t *testing.T) {
	t.Parallel()
	for _, graceful := range []bool{false, true} {
		s := prepare(t, "app", options{"enable_prefork": true, "Children": 3, "Graceful": graceful})
		s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		s.launch().awaitListen()
		pids := s.readyPIDs(3)
		var conns []net.Conn
		for range 20 {
			conns = append(conns, dial(t, "tcp", s.addr, "/untildrain"))
		}
		s.awaitN("EVENT .* sleeping", 20)
		require.NoError(t, syscall.Kill(-s.cmd.Process.Pid, syscall.SIGINT))
		for _, conn := range conns {
			_, body := answer(t, conn)
			assert.Equal(t, "slept", body)
		}
		assert.Equal(t, 0, s.exit())
		assert.Empty(t, s.matches("EVENT .* recover"))
		for _, pid := range append(pids, s.cmd.Process.Pid) {
			assert.Len(t, s.matches(fmt.Sprintf("EVENT %d preshutdown", pid)), 1)
			assert.Len(t, s.matches(fmt.Sprintf("EVENT %d returned <nil>", pid)), 1)
		}
	}
}

// TestShutdownFromHooks: App.Shutdown may be called anywhere in the master.
func TestShutdownFromHooks(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"OnFork", "OnListen", "OnChildReady", "OnChildExit", "goroutine"} {
		t.Run(at, func(t *testing.T) {
			s := prepare(t, "app", options{"enable_prefork": true, "Children": 2, "At": at}).launch()
			if at == "OnChildExit" {
				kill(t, s.readyPIDs(2)[0], syscall.SIGKILL)
			}
			assert.Equal(t, 0, s.exit())
			told := s.matches("EVENT .* shutdown (.*)")
			if at != "goroutine" { // main may end before it has told
				assert.NotEmpty(t, told)
			}
			for _, m := range told {
				assert.Equal(t, "<nil>", m[1])
			}
			master := s.cmd.Process.Pid
			assert.Len(t, s.matches(fmt.Sprintf(`^EVENT %d preshutdown`, master)), 1)
			assert.Len(t, s.matches(fmt.Sprintf(`^EVENT %d postshutdown <nil>`, master)), 1)
			s.await(fmt.Sprintf("EVENT %d returned <nil>", master))
		})
	}
}

// TestDeadline: what is left then is killed.
func TestDeadline(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2, "shutdown_timeout": time.Second})
	busy := dial(t, "tcp", s.addr, "/sleep/60000")
	s.await("EVENT .* sleeping")
	began := time.Now()
	s.signal(syscall.SIGTERM)
	assert.Equal(t, 0, s.exit(), "it was asked to end")
	assert.Less(t, time.Since(began), 10*time.Second)
	assert.GreaterOrEqual(t, time.Since(began), 900*time.Millisecond)
	_, err := busy.Read(make([]byte, 1))
	require.Error(t, err)
	s.awaitN(`EVENT \d+ postshutdown context deadline exceeded`, 2) // the child's handlers run too
	s.await(fmt.Sprintf(`EVENT %d postshutdown context deadline exceeded`, s.cmd.Process.Pid))
	s.await(fmt.Sprintf(`EVENT %d returned <nil>`, s.cmd.Process.Pid))
}

// TestDeadlineOfAGroup: children that got the signal themselves have their
// hooks run too.
func TestDeadlineOfAGroup(t *testing.T) {
	t.Parallel()
	s := prepare(t, "app", options{"enable_prefork": true, "Children": 2, "shutdown_timeout": 3 * time.Second})
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s.launch().awaitListen()
	dial(t, "tcp", s.addr, "/sleep/60000")
	s.await("EVENT .* sleeping")
	require.NoError(t, syscall.Kill(-s.cmd.Process.Pid, syscall.SIGTERM))
	assert.Equal(t, 0, s.exit())
	s.awaitN(`EVENT \d+ postshutdown context deadline exceeded`, 2)
}

// TestDeadlineOfAStuckChild: one that cannot even run its own end.
func TestDeadlineOfAStuckChild(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2, "shutdown_timeout": time.Second})
	suspend(t, s.readyPIDs(2)[0])
	s.signal(syscall.SIGTERM)
	assert.Equal(t, 0, s.exit())
	s.await(fmt.Sprintf(`EVENT %d postshutdown context deadline exceeded`, s.cmd.Process.Pid))
	s.await(`slot \d pid \d+: killed: the drain deadline has passed`)
	s.await(`EVENT \d+ exit \d \d+ code=-1 asked=true status=signal: killed`)
}

func TestShutdownWithTimeout(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2, "At": "short"})
	suspend(t, s.readyPIDs(2)[0])
	s.signal(syscall.SIGUSR1)
	assert.Equal(t, 0, s.exit())
	s.await("EVENT .* shutdown context deadline exceeded")
}

func TestSecondSignal(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2, "shutdown_timeout": time.Hour})
	dial(t, "tcp", s.addr, "/sleep/60000")
	s.await("EVENT .* sleeping")
	s.signal(syscall.SIGTERM)
	s.await("terminated: draining")
	s.signal(syscall.SIGHUP)           // comes along with others and is no second word
	time.Sleep(500 * time.Millisecond) // before that it counts as the same one again
	s.signal(syscall.SIGINT)           // once: after Listen has returned it would end main
	assert.Equal(t, 0, s.exit())
	s.await(fmt.Sprintf(`EVENT %d postshutdown context canceled`, s.cmd.Process.Pid))
	s.await("killed: second signal")
}

// TestHangupAlongWithTerm: systemd's SendSIGHUP sends both, and Go delivers
// the hangup first.
func TestHangupAlongWithTerm(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2})
	conn := dial(t, "tcp", s.addr, "/sleep/300")
	s.await("EVENT .* sleeping")
	s.signal(syscall.SIGTERM)
	s.signal(syscall.SIGHUP)
	_, body := answer(t, conn)
	assert.Equal(t, "slept", body)
	assert.Equal(t, 0, s.exit())
	assert.Empty(t, s.matches("second signal"))
}

// TestDoubledSignal: timeout(1) signals its child and then its whole group.
func TestDoubledSignal(t *testing.T) {
	t.Parallel()
	s := prepare(t, "app", options{"enable_prefork": true, "Children": 2})
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s.launch().awaitListen()
	conn := dial(t, "tcp", s.addr, "/untildrain")
	s.await("EVENT .* sleeping")
	s.signal(syscall.SIGTERM)
	require.NoError(t, syscall.Kill(-s.cmd.Process.Pid, syscall.SIGINT)) // another one: it is not merged with the first
	_, body := answer(t, conn)
	assert.Equal(t, "slept", body)
	assert.Equal(t, 0, s.exit())
	assert.Empty(t, s.matches("second signal"))
}

// TestSignalWhileStarting: at any moment of the start it ends in order.
func TestSignalWhileStarting(t *testing.T) {
	t.Parallel()
	for _, after := range []string{`EVENT \d+ fork`, `EVENT \d+ init`} {
		for _, group := range []bool{false, true} {
			s := prepare(t, "app", options{"enable_prefork": true, "Children": 2, "Init": 5 * time.Second})
			s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			s.launch().await(after)
			began := time.Now()
			pid := s.cmd.Process.Pid
			if group {
				pid = -pid
			}
			require.NoError(t, syscall.Kill(pid, syscall.SIGTERM))
			assert.Equal(t, 0, s.exit())
			assert.Less(t, time.Since(began), 4*time.Second, "children that have not started are not waited for")
			s.await(fmt.Sprintf("EVENT %d returned <nil>", s.cmd.Process.Pid))
			assert.Empty(t, s.matches("EVENT .* listen"))
		}
	}
}

func TestSignalDuringRecovery(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2, "prefork_recover_interval": time.Minute})
	kill(t, s.readyPIDs(2)[0], syscall.SIGKILL)
	s.await("next child in 1m0s")
	s.stop()

	s = start(t, "app", options{"enable_prefork": true, "Children": 1, "Init": time.Second})
	kill(t, s.readyPIDs(1)[0], syscall.SIGKILL)
	s.awaitN("EVENT .* fork", 2)
	s.stop()
}

// TestMainThatWaitsForASignal is the other way to write main. Only the master
// gets the signal, the children's mains end too.
func TestMainThatWaitsForASignal(t *testing.T) {
	t.Parallel()
	s := start(t, "background", options{"enable_prefork": true, "Children": 2})
	pids := s.readyPIDs(2)
	conn := dial(t, "tcp", s.addr, "/sleep/200")
	s.await("EVENT .* sleeping")
	s.signal(syscall.SIGTERM)
	_, body := answer(t, conn)
	assert.Equal(t, "slept", body)
	assert.Equal(t, 0, s.exit())
	for _, pid := range append(pids, s.cmd.Process.Pid) {
		s.await(fmt.Sprintf("EVENT %d main shutdown <nil>", pid))
		assert.Len(t, s.matches(fmt.Sprintf("EVENT %d postshutdown", pid)), 1, "the hooks run once")
	}
}

// TestMainThatDoesNotEnd is ended at the deadline.
func TestMainThatDoesNotEnd(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 1, "AfterListen": time.Hour, "shutdown_timeout": 2 * time.Second})
	s.signal(syscall.SIGTERM)
	s.await(`EVENT \d+ exit 0 \d+ code=-1 asked=true status=signal: killed`)
	s.signal(syscall.SIGKILL) // the master's main does not end either
	s.exit()
}

// TestMasterIsKilled: nobody is left to lead.
func TestMasterIsKilled(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2})
	pids := s.readyPIDs(2)
	conn := dial(t, "tcp", s.addr, "/sleep/500")
	s.await("EVENT .* sleeping")
	killed := time.Now()
	s.signal(syscall.SIGKILL)
	s.awaitN("EVENT .* preshutdown", 2)
	noticed := time.Since(killed)
	_, body := answer(t, conn)
	assert.Equal(t, "slept", body, "what it has is finished")
	s.exit()
	for _, pid := range pids {
		s.await(fmt.Sprintf("EVENT %d returned <nil>", pid))
	}
	t.Logf("noticed after %v", noticed)
	limit := 500 * time.Millisecond // under -race and load
	if long() {
		limit = 50 * time.Millisecond
	}
	assert.Less(t, noticed, limit)
	_, err := net.Dial("tcp", s.addr)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}

// TestMasterIsKilledWhileStarting: a child that has not begun does not.
func TestMasterIsKilledWhileStarting(t *testing.T) {
	t.Parallel()
	s := prepare(t, "app", options{"enable_prefork": true, "Children": 2, "Init": 20 * time.Second}).launch()
	s.awaitN("EVENT .* init", 2)
	killed := time.Now()
	s.signal(syscall.SIGKILL)
	s.exit()
	assert.Less(t, time.Since(killed), 10*time.Second)
}

// TestMasterIsKilledWhileWarmingUp: nor does one that is in BeforeServeFunc.
func TestMasterIsKilledWhileWarmingUp(t *testing.T) {
	t.Parallel()
	s := prepare(t, "app", options{"enable_prefork": true, "Children": 2, "At": "warm up"}).launch()
	s.awaitN("EVENT .* warming", 2)
	killed := time.Now()
	s.signal(syscall.SIGKILL)
	s.exit()
	assert.Less(t, time.Since(killed), 10*time.Second)
}

// TestOrphanWithAMainThatDoesNotEnd goes all the same.
func TestOrphanWithAMainThatDoesNotEnd(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 1, "AfterListen": time.Hour, "shutdown_timeout": 500 * time.Millisecond})
	s.signal(syscall.SIGKILL)
	s.exit()
}

// TestSignalToAChild: it drains and is replaced.
func TestSignalToAChild(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2, "listener_mode": 2})
	conn := dial(t, "tcp", s.addr, "/sleep/2000")
	busy := s.await("EVENT (\\d+) sleeping")[1]
	pid, _ := strconv.Atoi(busy)
	kill(t, pid, syscall.SIGTERM)
	kill(t, pid, syscall.SIGINT) // twice is as good as once
	s.await("EVENT .* recover " + busy)
	assert.Empty(t, s.matches("EVENT .* exit \\d "+busy), "its replacement does not wait for it")
	_, body := answer(t, conn)
	assert.Equal(t, "slept", body)
	s.await(`slot \d pid ` + busy + `: draining: terminated|slot \d pid ` + busy + `: draining: interrupt`)
	s.await("EVENT .* exit \\d " + busy + " code=0 asked=false status=exit status 0")
	s.stop()
}

// TestKeepAliveDuringDrain: a client that goes on asking on an open
// connection is answered, and told that it was the last time.
func TestKeepAliveDuringDrain(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "drain_idle": keepAlive, "Children": 2})
	var begun, wg sync.WaitGroup
	for range 32 {
		begun.Add(1)
		wg.Add(1)
		conn, err := net.Dial("tcp", s.addr)
		require.NoError(t, err)
		go func() {
			defer wg.Done()
			defer func() { _ = conn.Close() }()
			// Before its first request the kernel has the connection, if it defers
			// it: a drain waits for that for a moment only.
			first := sync.OnceFunc(begun.Done)
			defer first()
			r := bufio.NewReader(conn)
			for {
				if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); !assert.NoError(t, err) {
					return
				}
				resp, err := http.ReadResponse(r, nil)
				if !assert.NoError(t, err) {
					return
				}
				_, err = io.Copy(io.Discard, resp.Body)
				assert.NoError(t, err)
				_ = resp.Body.Close()
				if resp.Close {
					return
				}
				first()
			}
		}()
	}
	begun.Wait()
	s.signal(syscall.SIGTERM)
	wg.Wait()
	assert.Equal(t, 0, s.exit())
}

// TestQueueDuringDrain: connections that wait in the queue when the drain
// begins are served.
func TestQueueDuringDrain(t *testing.T) {
	t.Parallel()
	for _, mode := range []int{1, 2} {
		if mode == 1 && !spreads {
			continue
		}
		s := start(t, "app", options{"enable_prefork": true, "drain_idle": keepAlive, "Children": 2, "listener_mode": mode})
		pids := s.readyPIDs(2)
		for _, pid := range pids {
			suspend(t, pid)
		}
		var conns []net.Conn
		for range 50 {
			conns = append(conns, dial(t, "tcp", s.addr, "/ischild"))
		}
		s.signal(syscall.SIGTERM)
		s.await("terminated: draining")
		for _, pid := range pids {
			kill(t, pid, syscall.SIGCONT)
		}
		for i, conn := range conns {
			_, body := answer(t, conn)
			require.Equal(t, "true true", body, "connection %d", i)
			_ = conn.Close()
		}
		assert.Equal(t, 0, s.exit())
	}
}

// TestHookThatHangs: neither the deadline nor a second signal waits for it.
func TestHookThatHangs(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"hang in OnPreShutdown", "hang in OnFork"} {
		for _, second := range []bool{false, true} {
			timeout := time.Second
			if second {
				timeout = 2 * time.Second
			}
			s := prepare(t, "app", options{"enable_prefork": true, "Children": 1, "At": at, "shutdown_timeout": timeout}).launch()
			s.readyPIDs(0)
			s.await(`EVENT \d+ init`)
			if at == "hang in OnPreShutdown" {
				s.awaitListen()
			} else {
				s.await(`EVENT \d+ hangs`)
			}
			s.signal(syscall.SIGTERM)
			s.await("terminated: draining")
			if second {
				s.signal(syscall.SIGTERM)
			}
			assert.Equal(t, 0, s.exit())
			s.await(fmt.Sprintf("EVENT %d returned <nil>", s.cmd.Process.Pid))
			s.await("a hook has not returned after")
		}
	}
}

// TestSignalAtTheFirstFork: as soon as a hook says that there is a child, a
// signal is a shutdown.
func TestSignalAtTheFirstFork(t *testing.T) {
	t.Parallel()
	for range 10 {
		s := prepare(t, "app", options{"enable_prefork": true, "Children": 3}).launch()
		s.await(`EVENT \d+ fork \d+`)
		s.signal(syscall.SIGTERM)
		assert.Equal(t, 0, s.exit())
		s.await(fmt.Sprintf("EVENT %d returned <nil>", s.cmd.Process.Pid))
	}
}

// TestSilentConnection: one on which nothing was ever asked holds nothing up.
func TestSilentConnection(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 1, "shutdown_timeout": 3 * time.Second})
	silent, err := net.Dial("tcp", s.addr)
	require.NoError(t, err)
	defer func() { _ = silent.Close() }()
	_ = s.get("/") // the child has accepted the other one before
	s.signal(syscall.SIGTERM)
	assert.Equal(t, 0, s.exit())
	s.await(fmt.Sprintf("EVENT %d postshutdown <nil>", s.cmd.Process.Pid))
}

// TestTimeoutMiddlewareDuringDrain: its answer is the last one too.
func TestTimeoutMiddlewareDuringDrain(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 1})
	conn := dial(t, "tcp", s.addr, "/timeout")
	s.await("EVENT .* sleeping")
	s.signal(syscall.SIGTERM)
	resp, _ := answer(t, conn)
	assert.Equal(t, http.StatusRequestTimeout, resp.StatusCode)
	assert.True(t, resp.Close)
	assert.Equal(t, 0, s.exit())
}

// TestListenAgain: a server that failed or ended leaves nothing to the next.
func TestListenAgain(t *testing.T) {
	t.Parallel()
	s := prepare(t, "again", options{"enable_prefork": true, "Children": 1, "Flag": filepath.Join(t.TempDir(), "been")}).launch()
	s.await("EVENT .* first prefork: child did not start: slot 0 pid \\d+: exit status 7")
	for n := 1; n <= 2; n++ {
		s.awaitN(`^EVENT \d+ listen (\S+)`, n)
		s.signal(syscall.SIGUSR1)
		assert.Equal(t, "<nil>", s.awaitN("EVENT .* shutdown (.*)", n)[n-1][1])
	}
	s.awaitN("EVENT .* listen .* prefork=false", 1)
	s.signal(syscall.SIGUSR1)
	s.awaitN("EVENT .* shutdown <nil>", 3)
	assert.Equal(t, 0, s.exit())
}

// TestOutputThatBlocks: a pipe that nobody reads, and that is full.
func TestOutputThatBlocks(t *testing.T) {
	t.Parallel()
	s := prepare(t, "quiet", nil)
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer func() { _ = r.Close() }()
	s.cmd.Stderr = w
	addr := freeAddr()
	s.cmd.Env = append(s.cmd.Env, envConfig+"="+fmt.Sprintf(`{"enable_prefork":true,"Children":1,"Addr":%q}`, addr))
	s.launch()
	ask := func() string { return pidAt(addr) }
	eventually(t, func() bool { return ask() != "" }, "no answer")
	// Fill it.
	fd := int(w.Fd())
	require.NoError(t, syscall.SetNonblock(fd, true))
	for _, err = syscall.Write(fd, make([]byte, 1<<12)); err == nil; {
		_, err = syscall.Write(fd, make([]byte, 1<<12))
	}
	for err = nil; err == nil; {
		_, err = syscall.Write(fd, []byte{0})
	}
	require.NoError(t, syscall.SetNonblock(fd, false))
	require.NoError(t, w.Close())
	for range 3 {
		pid, _ := strconv.Atoi(ask())
		kill(t, pid, syscall.SIGKILL)
		eventually(t, func() bool { next := ask(); return next != "" && next != strconv.Itoa(pid) }, "no replacement")
	}
	s.signal(syscall.SIGTERM)
	assert.Equal(t, 0, s.exit())
}

// TestPanicInOnListen: Fiber lets it through, and so do we, after the drain.
func TestPanicInOnListen(t *testing.T) {
	t.Parallel()
	s := prepare(t, "app", options{"enable_prefork": true, "Children": 2, "At": "panic"}).launch()
	assert.Equal(t, 2, s.exit())
	s.await("panic: in OnListen")
	assert.Len(t, s.matches(`EVENT \d+ returned <nil>`), 2, "the children are drained")
}

func TestBeforeServeFuncFails(t *testing.T) {
	t.Parallel()
	s := prepare(t, "app", options{"enable_prefork": true, "Children": 2, "At": "BeforeServe"}).launch()
	assert.Equal(t, 1, s.exit())
	s.await("returned refused by BeforeServeFunc")
	assert.Len(t, s.matches(`EVENT \d+ returned <nil>`), 2, "the children are drained")
}

func TestChildren(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2, "At": "children", "prefork_recover_interval": time.Hour})
	pids := s.readyPIDs(2)
	s.signal(syscall.SIGUSR1)
	s.await(fmt.Sprintf(`children \[{Slot:0 PID:(%[1]d|%[2]d) Generation:0 State:ready StartedAt:.* Recoveries:0} {Slot:1 PID:(%[1]d|%[2]d) `, pids[0], pids[1]))
	kill(t, pids[0], syscall.SIGKILL)
	s.await("next child in 1h0m0s")
	s.signal(syscall.SIGUSR1)
	s.await(`children \[.*{Slot:\d PID:0 Generation:0 State:down StartedAt:.* Recoveries:1}`)
	s.stop()
}
