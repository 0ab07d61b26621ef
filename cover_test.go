//go:build unix

package prefork_test

// Slots without a child that accepts, and children that are silent or hang.

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// diedWith says that a request was on a connection that the dead process may
// have had: it was there before the death.
func diedWith(death time.Time) func(failure) bool {
	return func(f failure) bool { return f.dialed.Before(death) }
}

// TestCover: nobody waits for the replacement of a child that died, and
// nothing is lost when it comes.
func TestCover(t *testing.T) {
	t.Parallel()
	slow := 2 * time.Second
	if long() {
		slow = 5 * time.Second
	}
	s := start(t, "app", options{"enable_prefork": true, "Children": 4, "listener_mode": 1, "Init": slow})
	pids := s.readyPIDs(4)
	l := startLoad(t, s.addr, 0, 64)
	l.more(500)
	before := time.Now()
	l.more(2000)
	death := time.Now()
	kill(t, pids[0], syscall.SIGKILL)
	s.await(`\[prefork\] slot \d: covered by 3 children`)
	s.await(fmt.Sprintf(`EVENT \d+ recover %d`, pids[0]))
	ready := time.Now()
	require.GreaterOrEqual(t, ready.Sub(death), slow)
	s.await(`\[prefork\] slot \d: not covered any more`)
	next := strconv.Itoa(s.readyPIDs(5)[4])
	eventually(t, func() bool { _, by := l.since(ready, time.Now()); return by[next] > 10 }, "the replacement gets no connections")
	l.cleanBut(diedWith(death))

	usual, _ := l.since(before, death)
	covered, by := l.since(death, ready)
	t.Logf("before: p50 %v, p99 %v; covered: p50 %v, p99 %v, longest %v; failures: %d of %d", percentile(usual, 50), percentile(usual, 99),
		percentile(covered, 50), percentile(covered, 99), covered[len(covered)-1], len(l.failures), l.count())
	assert.Empty(t, by[strconv.Itoa(pids[0])])
	assert.Less(t, covered[len(covered)-1], slow/2, "nobody waits for the replacement")
	if long() {
		assert.Less(t, percentile(covered, 99), 3*percentile(usual, 99))
	}
	s.stop()
}

// TestCoverInACrashLoop: the same while no replacement gets ready.
func TestCoverInACrashLoop(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{
		"enable_prefork": true, "Children": 3, "listener_mode": 1,
		"FailStart": "exit", "FailAgain": true, "Flag": filepath.Join(t.TempDir(), "been"),
	})
	pids := s.readyPIDs(3)
	l := startLoad(t, s.addr, 0, 32)
	l.more(200)
	death := time.Now()
	kill(t, pids[0], syscall.SIGKILL)
	s.await(`recovery 5 \(no limit\)`)
	// One of the two that cover dies too: the last one covers both.
	kill(t, pids[1], syscall.SIGKILL)
	second := time.Now()
	s.awaitN(`recovery 4 \(no limit\)`, 2)
	l.more(200)
	l.cleanBut(diedWith(second))
	for _, f := range l.failures {
		if f.dialed.After(death.Add(100 * time.Millisecond)) {
			assert.WithinDuration(t, second, f.failed, time.Second, "%+v", f)
		}
	}
	took, _ := l.since(death, time.Now())
	assert.Less(t, took[len(took)-1], time.Second)
	s.stop()
}

// TestQueueIsCovered: what waits when a child dies is answered at once.
func TestQueueIsCovered(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2, "listener_mode": 1, "prefork_recover_interval": time.Hour})
	pids := s.readyPIDs(2)
	for _, pid := range pids {
		suspend(t, pid) // so that nothing is accepted
	}
	var conns []net.Conn
	for range 100 {
		conns = append(conns, dial(t, "tcp", s.addr, "/"))
	}
	kill(t, pids[0], syscall.SIGKILL)
	kill(t, pids[1], syscall.SIGCONT)
	for _, conn := range conns {
		_, body := answer(t, conn)
		assert.Equal(t, strconv.Itoa(pids[1]), body)
	}
	l := startLoad(t, s.addr, 0, 100)
	l.more(300)
	l.clean()
	_, by := l.since(time.Time{}, time.Now())
	assert.Len(t, by, 1)
	s.stop()
}

// TestDrainOfACoveringChild: what it has been given is served to the end.
func TestDrainOfACoveringChild(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "drain_idle": keepAlive, "Children": 2, "listener_mode": 1, "prefork_recover_interval": time.Hour})
	pids := s.readyPIDs(2)
	kill(t, pids[0], syscall.SIGKILL)
	s.await(`\[prefork\] slot \d: covered by 1 children`)
	suspend(t, pids[1])
	var conns []net.Conn
	for range 100 {
		conns = append(conns, dial(t, "tcp", s.addr, "/"))
	}
	s.signal(syscall.SIGTERM)
	s.await("terminated: draining")
	kill(t, pids[1], syscall.SIGCONT)
	for _, conn := range conns {
		_, body := answer(t, conn)
		assert.Equal(t, strconv.Itoa(pids[1]), body)
	}
	assert.Equal(t, 0, s.exit())
}

// TestSilentChild: one that is stopped is covered, and serves again when it
// goes on.
func TestSilentChild(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 4, "listener_mode": 1, "At": "children"})
	pids := s.readyPIDs(4)
	l := startLoad(t, s.addr, 0, 64)
	l.more(500)
	stop := time.Now()
	suspend(t, pids[1])
	s.await(fmt.Sprintf(`slot \d pid %d: has not reported for \S+; last: \d+ connections, \d+ requests answered`, pids[1]))
	noticed := time.Since(stop)
	s.await(`\[prefork\] slot \d: covered by 3 children`)
	s.signal(syscall.SIGUSR1)
	s.await(fmt.Sprintf(`children \[.*PID:%d Generation:0 State:silent`, pids[1]))
	from := time.Now()
	l.more(1000)
	took, by := l.since(from, time.Now())
	assert.Zero(t, by[strconv.Itoa(pids[1])])
	assert.Less(t, took[len(took)-1], time.Second)
	kill(t, pids[1], syscall.SIGCONT)
	s.await(fmt.Sprintf(`slot \d pid %d: reports again`, pids[1]))
	s.await(`\[prefork\] slot \d: not covered any more`)
	again := time.Now()
	eventually(t, func() bool { _, by := l.since(again, time.Now()); return by[strconv.Itoa(pids[1])] > 10 }, "it gets no connections")
	l.clean() // those that it had were answered late, but they were
	t.Logf("noticed after %v", noticed)
	if long() {
		assert.Less(t, noticed, time.Second)
	}
	assert.Empty(t, s.matches("EVENT .* exit"))
	s.stop()
}

// TestPauses: a master that was stopped, or a whole machine, accuses nobody.
func TestPauses(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2, "hang_timeout": time.Second, "report_interval": 100 * time.Millisecond})
	pids := append(s.readyPIDs(2), s.cmd.Process.Pid)
	for _, stopped := range [][]int{pids[2:], pids} {
		for range 2 {
			for _, pid := range stopped {
				suspend(t, pid)
			}
			time.Sleep(1500 * time.Millisecond)
			for _, pid := range stopped {
				kill(t, pid, syscall.SIGCONT)
			}
			time.Sleep(300 * time.Millisecond) // in which it would
		}
	}
	assert.Empty(t, s.matches("hangs|EVENT .* exit"))
	if long() {
		assert.Empty(t, s.matches("has not reported"))
	}
	s.stop()
}

// TestHang: a process that does not run any more is ended, with its
// goroutines printed if it can still do that.
func TestHang(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"spin", "stop"} {
		s := prepare(t, "app", options{
			"enable_prefork": true, "Children": 2, "hang_timeout": time.Second, "report_interval": 100 * time.Millisecond,
		})
		s.cmd.Env = append(s.cmd.Env, "GODEBUG=asyncpreemptoff=1")
		s.launch().awaitListen()
		pid, status := s.readyPIDs(2)[0], "signal: killed"
		if how == "spin" {
			conn := dial(t, "tcp", s.addr, "/spin")
			pid, _ = strconv.Atoi(s.await(`EVENT (\d+) spinning`)[1])
			status = "exit status 2"
			t.Cleanup(func() { _ = conn.Close() })
		} else {
			suspend(t, pid)
		}
		s.await(fmt.Sprintf(`slot \d pid %d: hangs: has not reported for \S+ \(HangTimeout\); last: \d+ connections, \d+ requests answered: ended`, pid))
		s.await(fmt.Sprintf(`EVENT \d+ hang \d %d silent`, pid))
		s.await(fmt.Sprintf(`EVENT \d+ exit \d %d code=-?\d asked=false status=%s`, pid, status))
		s.await(fmt.Sprintf(`EVENT \d+ recover %d`, pid))
		if how == "spin" {
			s.await(`^SIGABRT: abort`)
		}
		s.stop()
	}
}

// TestHangTimeoutOff: a silent child may be silent for ever.
func TestHangTimeoutOff(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2, "hang_timeout": -1, "report_interval": 10 * time.Millisecond})
	pid := s.readyPIDs(2)[0]
	l := startLoad(t, s.addr, 0, 8) // a quiet child would not be missed
	l.more(20)
	suspend(t, pid)
	s.await(`has not reported`)
	time.Sleep(500 * time.Millisecond) // in which it would be ended
	kill(t, pid, syscall.SIGCONT)
	s.await(`reports again`)
	l.clean()
	assert.Empty(t, s.matches("EVENT .* exit"))
	s.stop()
}

// TestCostOfReports measures 16 children that do nothing. Run it alone,
// without -race.
func TestCostOfReports(t *testing.T) {
	needsLong(t)
	cpu := func(interval time.Duration) time.Duration {
		s := start(t, "app", options{"enable_prefork": true, "Children": 16, "report_interval": interval})
		s.readyPIDs(16)
		time.Sleep(5 * time.Second) // for what starting leaves to do
		total := func() (sum time.Duration) {
			for _, pid := range s.processes() {
				sum += processorTime(t, pid)
			}
			return sum
		}
		from := total()
		time.Sleep(30 * time.Second)
		used := total() - from
		s.stop()
		return used
	}
	with, without := cpu(250*time.Millisecond), cpu(time.Hour)
	share := 100 * (with - without).Seconds() / 30
	t.Logf("with reports %v, without %v of processor time in 30 s: %.3f %% of a core", with, without, share)
	assert.Less(t, share, 0.1)
}

// TestCoverOfAFullChild: one that has no room takes no connection of others,
// which would be lost with it.
func TestCoverOfAFullChild(t *testing.T) {
	t.Parallel()
	s := start(t, "listener", options{
		"enable_prefork": true, "Children": 2, "Open": "limited", "listener_mode": 1, "drain_idle": keepAlive, "Init": time.Second,
	})
	pids := s.readyPIDs(2)
	// A connection to each fills it: on these no request is complete.
	var full, conns []net.Conn
	for range 10 {
		conn, err := net.Dial("tcp", s.addr)
		require.NoError(t, err)
		_, err = fmt.Fprint(conn, "GET")
		require.NoError(t, err)
		full = append(full, conn)
	}
	for range 20 {
		conns = append(conns, dial(t, "tcp", s.addr, "/ischild"))
	}
	kill(t, pids[0], syscall.SIGKILL)
	s.await(`\[prefork\] slot \d: covered by 1 children`)
	time.Sleep(200 * time.Millisecond) // in which it would take one
	kill(t, pids[1], syscall.SIGKILL)
	for _, conn := range full {
		require.NoError(t, conn.Close())
	}
	// All at once: each keeps its place until it is closed.
	answers := make(chan error, len(conns))
	for _, conn := range conns {
		go func() {
			defer func() { _ = conn.Close() }()
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err == nil {
				err = resp.Body.Close()
			}
			answers <- err
		}()
	}
	for range conns {
		require.NoError(t, <-answers)
	}
	assert.Empty(t, s.matches("has not reported"), "nor is it silent")
	s.stop()
}

// TestChildThatLeavesAndHangs: it has a deadline too, and is in nobody's way.
func TestChildThatLeavesAndHangs(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2, "At": "operate", "shutdown_timeout": time.Second})
	dial(t, "tcp", s.addr, "/sleep/60000") // so that it does not end
	pid, _ := strconv.Atoi(s.await(`EVENT (\d+) sleeping`)[1])
	kill(t, pid, syscall.SIGTERM)
	s.await(fmt.Sprintf(`slot \d pid %d: draining: terminated`, pid))
	suspend(t, pid)
	assert.Equal(t, "<nil>", s.operate("reload"))
	s.await(fmt.Sprintf(`slot \d pid %d: it was to end by itself: killed`, pid))
	s.stop()
}
