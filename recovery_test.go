//go:build unix

package prefork_test

// What happens when children die, do not start, or cannot be started.

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestDeaths: however a child dies, it is replaced, and nobody else notices.
func TestDeaths(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2})
	s.readyPIDs(2)
	n := 0
	for _, death := range []struct {
		how    string // a signal or a path
		status string
	}{
		{"signal 9", "signal: killed"},
		{"signal 11", `signal: segmentation fault( \(core dumped\))?|exit status 2`},
		{"/exit/3", "exit status 3"},
		{"/panic", "exit status 2"},
		{"/shutdown", "exit status 0"}, // Listen returns and so does main
	} {
		pid, _ := strconv.Atoi(s.get("/"))
		if sig, ok := strings.CutPrefix(death.how, "signal "); ok {
			number, _ := strconv.Atoi(sig)
			kill(t, pid, syscall.Signal(number))
		} else {
			// Whichever child it reaches.
			conn := dial(t, "tcp", s.addr, death.how)
			b := make([]byte, 1)
			for {
				if _, err := conn.Read(b); err != nil {
					break
				}
				if death.how == "/shutdown" {
					break
				}
			}
		}
		n++
		exit := s.awaitN(`^EVENT \d+ exit (\d) (\d+) code=(\S+) asked=(\S+) status=(.*)`, n)[n-1]
		assert.Regexp(t, "^("+death.status+")$", exit[5], death.how)
		assert.Equal(t, "false", exit[4])
		s.awaitN(`EVENT \d+ recover `+exit[2]+` \d+`, 1)
		s.await(fmt.Sprintf(`\[prefork\] slot %s pid %s: .* after \S+; recovery \d+ \(no limit\), next child in \S+`, exit[1], exit[2]))
		_ = s.get("/")
	}
	s.stop()
}

func TestOthersDoNotNotice(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2, "listener_mode": 2})
	pids := s.readyPIDs(2)
	conn := dial(t, "tcp", s.addr, "/sleep/300")
	sleeping := s.await(`EVENT (\d+) sleeping`)
	for _, pid := range pids {
		if strconv.Itoa(pid) != sleeping[1] {
			kill(t, pid, syscall.SIGKILL)
		}
	}
	s.await(`EVENT \d+ recover`)
	_, body := answer(t, conn)
	assert.Equal(t, "slept", body)
	s.stop()
}

func TestRecoveryLimit(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2, "max_child_recoveries": 1})
	slept := dial(t, "tcp", s.addr, "/sleep/500")
	busy := s.await(`EVENT (\d+) sleeping`)[1]
	victim := 0
	for _, m := range s.awaitN(`^EVENT \d+ ready (\d+) (\d+)`, 2) {
		if m[2] != busy {
			victim, _ = strconv.Atoi(m[2])
		}
	}
	kill(t, victim, syscall.SIGKILL)
	next, _ := strconv.Atoi(s.await(fmt.Sprintf(`EVENT \d+ recover %d (\d+)`, victim))[1])
	kill(t, next, syscall.SIGKILL)
	_, body := answer(t, slept)
	assert.Equal(t, "slept", body, "the others are drained")
	assert.Equal(t, 1, s.exit())
	s.await(`returned prefork: recovery limit reached: slot \d pid ` + strconv.Itoa(next) + `: signal: killed`)
	s.await("is recovery limit reached")
	s.await(fmt.Sprintf(`childerror slot=\d pid=%d status=signal: killed`, next))
	s.await(fmt.Sprintf(`EVENT %d postshutdown prefork: recovery limit reached`, s.cmd.Process.Pid))
	assert.Len(t, s.matches(fmt.Sprintf(`EVENT %d preshutdown`, s.cmd.Process.Pid)), 1)
}

func TestRecoverThresholdIsAnAlias(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 1, "prefork_recover_threshold": 1})
	kill(t, s.readyPIDs(1)[0], syscall.SIGKILL)
	kill(t, s.readyPIDs(2)[1], syscall.SIGKILL)
	assert.Equal(t, 1, s.exit())
	s.await("is recovery limit reached")
}

func TestRecoveryWindow(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 1, "max_child_recoveries": 1, "recovery_window": int64(1)})
	for i := range 4 { // each has been up for longer than a nanosecond
		kill(t, s.readyPIDs(i + 1)[i], syscall.SIGKILL)
	}
	s.readyPIDs(5)
	s.stop()
}

func TestDisableChildRecovery(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2, "disable_child_recovery": true})
	victim := s.readyPIDs(2)[0]
	kill(t, victim, syscall.SIGKILL)
	assert.Equal(t, 1, s.exit())
	s.await(fmt.Sprintf(`returned prefork: child exited: slot \d pid %d: signal: killed`, victim))
	s.await("is child exited")
	assert.Empty(t, s.matches("EVENT .* recover"))
}

func TestRecoverInterval(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 1, "prefork_recover_interval": 300 * time.Millisecond})
	killed := time.Now()
	kill(t, s.readyPIDs(1)[0], syscall.SIGKILL)
	s.readyPIDs(2)
	assert.GreaterOrEqual(t, time.Since(killed), 300*time.Millisecond)
	s.await(`next child in 300ms`)
	s.stop()
}

func TestChildThatFailsToStart(t *testing.T) {
	t.Parallel()
	s := prepare(t, "app", options{"enable_prefork": true, "Children": 3, "FailStart": "exit1"}).launch()
	s.await(`EVENT \d+ fork`)
	died := time.Now()
	assert.Equal(t, 1, s.exit())
	assert.Less(t, time.Since(died), 10*time.Second)
	s.await(`returned prefork: child did not start: slot 1 pid \d+: exit status 7`)
	s.await("is child did not start")
	assert.Empty(t, s.matches("EVENT .* listen"))
	assert.Empty(t, s.matches("EVENT .* recover"))
}

func TestChildThatNeverGetsReady(t *testing.T) {
	t.Parallel()
	s := prepare(t, "app", options{"enable_prefork": true, "Children": 2, "FailStart": "hang0", "child_start_timeout": 500 * time.Millisecond}).launch()
	assert.Equal(t, 1, s.exit())
	s.await(`returned prefork: child did not start: slot 0 pid \d+: not ready after 500ms \(ChildStartTimeout\)`)
	s.await("is child did not start")
}

// TestReplacementThatFailsToStart: later it is a death like any other.
func TestReplacementThatFailsToStart(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"exit", "hang"} {
		s := start(t, "app", options{
			"enable_prefork": true, "Children": 1, "FailStart": how, "FailAgain": true, "Flag": filepath.Join(t.TempDir(), "been"),
			"child_start_timeout": 2 * time.Second, "max_child_recoveries": 2,
		})
		kill(t, s.readyPIDs(1)[0], syscall.SIGKILL)
		assert.Equal(t, 1, s.exit())
		s.await("is recovery limit reached")
		if how == "hang" {
			s.await(`slot 0 pid \d+: not ready after 2s \(ChildStartTimeout\): killed`)
		} else {
			s.await(`slot 0 pid \d+: exit status 7 after \S+; recovery 2 \(of 2\), next child in \d+ms`)
		}
	}
}

// TestCrashLoopCostsLittle: all children die as soon as they are started,
// again and again.
func TestCrashLoopCostsLittle(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("measures for seconds")
	}
	s := start(t, "app", options{"enable_prefork": true, "Children": 1, "FailStart": "exit", "FailAgain": true, "Flag": filepath.Join(t.TempDir(), "been")})
	kill(t, s.readyPIDs(1)[0], syscall.SIGKILL)
	// The sixth recovery comes after 0, .1–.2, .2–.4, .4–.8, .8–1.6, 1.6–3.2 s.
	s.await(`recovery 6 \(no limit\)`)
	began := s.awaitN(`; recovery \d+ \(no limit\), next child in \S+`, 6)
	assert.LessOrEqual(t, len(began), 8)
	s.stop()
}

// TestCrashLoopCPU measures what TestCrashLoopCostsLittle counts: the
// processor time of a master and its children in the first minute of a crash
// loop. Run it alone, without -race.
func TestCrashLoopCPU(t *testing.T) {
	needsLong(t)
	s := start(t, "app", options{"enable_prefork": true, "Children": 1, "FailStart": "exit", "FailAgain": true, "Flag": filepath.Join(t.TempDir(), "been")})
	began := time.Now()
	kill(t, s.readyPIDs(1)[0], syscall.SIGKILL)
	time.Sleep(time.Minute - time.Since(began))
	s.stop()
	used := s.cmd.ProcessState.UserTime() + s.cmd.ProcessState.SystemTime() // with the children that were waited for
	share := 100 * used.Seconds() / time.Since(began).Seconds()
	t.Logf("%v of processor time in %v: %.2f %% of a core", used, time.Since(began).Round(time.Second), share)
	assert.Less(t, share, 1.0)
}

// TestQueueSurvives is the point of a master that holds the sockets: every
// child is killed at once while connections wait in the accept queues.
func TestQueueSurvives(t *testing.T) {
	t.Parallel()
	for _, mode := range []int{1, 2} {
		if mode == 1 && !spreads {
			continue
		}
		s := start(t, "app", options{"enable_prefork": true, "Children": 2, "listener_mode": mode, "Init": 200 * time.Millisecond})
		pids := s.readyPIDs(2)
		for _, pid := range pids {
			suspend(t, pid) // so that nothing is accepted
		}
		var conns []net.Conn
		for range 200 {
			conns = append(conns, dial(t, "tcp", s.addr, "/ischild"))
		}
		for _, pid := range pids {
			kill(t, pid, syscall.SIGKILL)
		}
		for i, conn := range conns {
			_, body := answer(t, conn)
			require.Equal(t, "true true", body, "connection %d", i)
			require.NoError(t, conn.Close())
		}
		s.stop()
	}
}

// TestNothingLeaks compares the master before and after 100 recoveries.
func TestNothingLeaks(t *testing.T) {
	t.Parallel()
	for _, mode := range []int{1, 2} {
		if mode == 1 && !spreads {
			continue
		}
		// No backoff: each child counts as having been up long enough.
		s := start(t, "app", options{"enable_prefork": true, "Children": 2, "listener_mode": mode, "recovery_window": int64(1), "At": "status"})
		var before usage
		n := 2
		for i := range 102 {
			pids := s.readyPIDs(n)
			if i == 2 { // all of Fiber is running then
				before = s.status()
				eventually(t, func() bool { last := before; before = s.status(); return last == before }, "no two are the same")
			}
			kill(t, pids[n-1], syscall.SIGKILL)
			n++
			if n%20 == 0 {
				assertNonblocking(t, s)
			}
		}
		s.readyPIDs(n)
		eventually(t, func() bool {
			after := s.status()
			return after.fds <= before.fds && after.goroutines <= before.goroutines && after.zombies == 0
		}, "more than %+v", before)
		assertMasterDoesNotPoll(t, s)
		assertNonblocking(t, s)
		s.stop()
	}
}

// usage is what a master holds.
type usage struct{ fds, goroutines, zombies int }

// status asks the master for it.
func (s *server) status() usage {
	s.t.Helper()
	n := len(s.matches(`EVENT \d+ status`))
	s.signal(syscall.SIGUSR1)
	m := s.awaitN(`EVENT \d+ status fds=(\d+) goroutines=(\d+)`, n+1)[n]
	fds, _ := strconv.Atoi(m[1])
	goroutines, _ := strconv.Atoi(m[2])
	return usage{fds, goroutines, zombies(s.cmd.Process.Pid)}
}

func TestEnvironmentOfAChild(t *testing.T) {
	t.Parallel()
	s := prepare(t, "app", options{"enable_prefork": true, "Children": 1, "child_procs": 3})
	s.cmd.Env = append(s.cmd.Env, "NOTIFY_SOCKET=/x", "WATCHDOG_USEC=1", "WATCHDOG_PID=1", "LISTEN_FDS=1", "LISTEN_PID=1", "LISTEN_FDNAMES=x", "KEEP=me", "GOMAXPROCS=2",
		"FASTHTTP_PREFORK_CHILD=1", "FIBER_PREFORK_CHILD=1 1 0 0 0 false forged")
	s.launch().awaitListen()
	env := s.get("/env")
	for _, gone := range []string{"NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_"} {
		assert.NotContains(t, env, gone)
	}
	assert.Contains(t, env, "KEEP=me")
	assert.Contains(t, env, "FASTHTTP_PREFORK_CHILD=1")
	assert.Equal(t, "3", s.get("/gomaxprocs"))
	s.stop()
}

// TestMasterRunsOutOfDescriptors: recovery goes on when there are some again.
func TestMasterRunsOutOfDescriptors(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2, "At": "nofile", "listener_mode": 2})
	pids := s.readyPIDs(2)
	s.signal(syscall.SIGUSR1) // the limit goes below what is open
	s.await("EVENT .* nofile low")
	kill(t, pids[0], syscall.SIGKILL)
	s.awaitN(`slot \d: cannot start a child: .*too many open files; next try in`, 2)
	_ = s.get("/")
	s.signal(syscall.SIGWINCH)
	s.await("EVENT .* nofile high")
	s.await(fmt.Sprintf("EVENT .* recover %d", pids[0]))
	s.stop()
}

// TestChildRunsOutOfDescriptors: it goes on accepting when it has some again.
func TestChildRunsOutOfDescriptors(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 1, "At": "nofile"})
	pid := s.readyPIDs(1)[0]
	kill(t, pid, syscall.SIGUSR1)
	s.await(fmt.Sprintf("EVENT %d nofile low", pid))
	conn := dial(t, "tcp", s.addr, "/ischild")
	s.await(`\[prefork\] accept on .*: too many open files; connections wait`)
	kill(t, pid, syscall.SIGWINCH)
	_, body := answer(t, conn)
	assert.Equal(t, "true true", body)
	assert.Empty(t, s.matches("EVENT .* exit"))
	s.stop()
}

// TestForkFails runs the program as a user whose processes are limited.
func TestForkFails(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root to become another user")
	}
	s := prepare(t, "app", options{"enable_prefork": true, "Children": 1, "At": "nproc"})
	runAs(t, s, 61234)
	s.launch().awaitListen()
	pid := s.readyPIDs(1)[0]
	s.signal(syscall.SIGUSR1)
	s.await("EVENT .* nproc low")
	kill(t, pid, syscall.SIGKILL)
	s.awaitN(`slot 0: cannot start a child: .*resource temporarily unavailable; next try in`, 2)
	s.signal(syscall.SIGWINCH)
	s.await("EVENT .* nproc high")
	s.await(fmt.Sprintf("EVENT .* recover %d", pid))
	s.stop()
}

// runAs makes the program of s run as another user.
func runAs(t *testing.T, s *server, uid uint32) {
	t.Helper()
	dir := t.TempDir()
	exe := filepath.Join(dir, "program")
	copyFile(t, s.cmd.Path, exe)
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if info, err := os.Stat(d); err == nil && info.Mode().Perm()&0o055 != 0o055 {
			require.NoError(t, os.Chmod(d, 0o755))
		}
	}
	s.cmd.Path, s.cmd.Args = exe, []string{exe}
	s.cmd.Dir = "/"
	s.cmd.Env = append(s.cmd.Env, "GOCOVERDIR=")
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
}

// copyFile copies a program. No other test may start a process meanwhile: it
// would hold the copy open for writing until its exec, and a file that
// somebody writes to cannot be run ("text file busy").
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	in, err := os.Open(from)
	require.NoError(t, err)
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	require.NoError(t, err)
	_, err = io.Copy(out, in)
	require.NoError(t, err)
	require.NoError(t, out.Close())
}

// TestExecutableIsReplaced: a recovered child runs the master's image.
func TestExecutableIsReplaced(t *testing.T) {
	t.Parallel()
	if !procSelfExe {
		t.Skip("the system cannot start a deleted image")
	}
	for _, replace := range []bool{true, false} {
		s := prepare(t, "app", options{"enable_prefork": true, "Children": 1})
		exe := filepath.Join(t.TempDir(), "program")
		copyFile(t, s.cmd.Path, exe)
		s.cmd.Path, s.cmd.Args = exe, []string{exe}
		s.launch().awaitListen()
		require.NoError(t, os.Remove(exe))
		if replace {
			require.NoError(t, os.WriteFile(exe, []byte("#!/bin/sh\nexit 9\n"), 0o755))
		}
		kill(t, s.readyPIDs(1)[0], syscall.SIGKILL)
		s.readyPIDs(2)
		assert.Equal(t, "true true", s.get("/ischild"))
		s.stop()
	}
}

// TestClosedStdout: nobody reads what the server writes.
func TestClosedStdout(t *testing.T) {
	t.Parallel()
	for _, disable := range []bool{false, true} {
		closedStdout(t, disable)
	}
}

func closedStdout(t *testing.T, disableSignals bool) {
	t.Helper()
	s := prepare(t, "app", nil)
	r, w, err := os.Pipe()
	require.NoError(t, err)
	s.cmd.Stderr = w
	addr := freeAddr()
	require.NoError(t, r.Close())
	s.cmd.Stdout = w
	s.cmd.Env = append(s.cmd.Env, envConfig+"="+fmt.Sprintf(
		`{"enable_prefork":true,"Children":2,"Addr":%q,"Banner":true,"disable_signals":%t,"Graceful":true}`, addr, disableSignals))
	s.launch()
	require.NoError(t, w.Close())
	ask := func() string { return pidAt(addr) }
	eventually(t, func() bool { return ask() != "" }, "no answer")
	pid, _ := strconv.Atoi(ask())
	kill(t, pid, syscall.SIGKILL)
	for range 3 { // a line of the log each
		eventually(t, func() bool { next := ask(); return next != "" && next != strconv.Itoa(pid) }, "no replacement")
	}
	s.stop()
}
