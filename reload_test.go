//go:build unix

package prefork_test

// Reload, upgrade, scaling and recycling.

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/fiber-prefork/prefork"
)

// TestReloads: 20 in a row, and no client notices.
func TestReloads(t *testing.T) {
	t.Parallel()
	for _, mode := range []int{1, 2} {
		if mode == 1 && !spreads {
			continue
		}
		s := start(t, "app", options{"enable_prefork": true, "drain_idle": keepAlive, "Children": 2, "listener_mode": mode, "At": "operate"})
		l := startLoad(t, s.addr, 64, 64)
		l.more(200)
		for range 20 {
			require.Equal(t, "<nil>", s.operate("reload"))
		}
		l.more(200)
		l.clean()
		assert.Len(t, s.matches(`\[prefork\] reloaded: generation`), 20)
		assert.Len(t, s.matches(`EVENT \d+ exit \d \d+ code=0 asked=true status=exit status 0`), 40)
		assert.Empty(t, s.matches("EVENT .* recover"))
		s.stop()
	}
}

// operate has the master do something, and returns the outcome.
func (s *server) operate(what string) string {
	s.t.Helper()
	return s.reply(what, `^EVENT \d+ operated (.*)`)[1]
}

// TestHangupReloads: SIGHUP is a reload.
func TestHangupReloads(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2})
	pids := s.readyPIDs(2)
	s.signal(syscall.SIGHUP)
	s.await(`\[prefork\] hangup: reload`)
	s.await(`\[prefork\] reloaded: generation 1`)
	next := s.readyPIDs(4)[2:]
	for range 20 {
		pid, _ := strconv.Atoi(s.get("/"))
		assert.Contains(t, next, pid)
		assert.NotContains(t, pids, pid)
	}
	s.stop()
}

// TestReloadThatFails: what is old stays, and with ReloadRollback also where a
// new child was ready already.
func TestReloadThatFails(t *testing.T) {
	t.Parallel()
	for _, rollback := range []bool{false, true} {
		flag := filepath.Join(t.TempDir(), "broken")
		s := start(t, "app", options{
			"enable_prefork": true, "drain_idle": keepAlive, "Children": 3, "At": "operate", "reload_rollback": rollback, "FailStart": "exit1", "FailIf": flag,
		})
		old := s.readyPIDs(3)
		l := startLoad(t, s.addr, 8, 8)
		l.more(50)
		require.NoError(t, os.WriteFile(flag, nil, 0o600))
		assert.Regexp(t, `^prefork: reload failed: prefork: child did not start: slot 1 pid \d+: exit status 7$`, s.operate("reload"))
		s.await("operation is reload failed")
		s.await("operation is child did not start")
		ready := len(s.matches(`EVENT \d+ ready`))
		if rollback {
			s.await(`reload: .*: going back to generation 0`)
			assert.Equal(t, 5, ready, "slot 0 has got a new child, and one of the old version again")
		} else {
			assert.Equal(t, 4, ready)
		}
		l.more(200)
		l.clean()
		_, by := l.since(time.Time{}, time.Now())
		for _, pid := range old[1:] {
			assert.NotZero(t, by[strconv.Itoa(pid)])
		}
		assert.Empty(t, s.matches("EVENT .* recover"), "it costs no recovery")

		// What is broken is mended: the next reload replaces all.
		require.NoError(t, os.Remove(flag))
		assert.Equal(t, "<nil>", s.operate("reload"))
		s.await(`\[prefork\] reloaded: generation 2`)
		s.stop()
	}
}

// TestReloadOfAChildThatNeverGetsReady ends at ChildStartTimeout.
func TestReloadOfAChildThatNeverGetsReady(t *testing.T) {
	t.Parallel()
	flag := filepath.Join(t.TempDir(), "broken")
	s := start(t, "app", options{
		"enable_prefork": true, "Children": 2, "At": "operate", "FailStart": "hang", "FailIf": flag, "child_start_timeout": 3 * time.Second,
	})
	s.readyPIDs(2)
	require.NoError(t, os.WriteFile(flag, nil, 0o600))
	assert.Regexp(t, `slot 0 pid \d+: not ready after 3s \(ChildStartTimeout\)$`, s.operate("reload"))
	assert.Len(t, s.matches(`EVENT \d+ ready`), 2)
	s.stop()
}

// TestReloadsAtOnce: one runs, all others are one that comes after it.
func TestReloadsAtOnce(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 4, "At": "operate", "reload_parallel": 3, "Init": 300 * time.Millisecond})
	s.readyPIDs(4)
	_, err := s.in.WriteString("reloads\n")
	require.NoError(t, err)
	s.awaitN(`^EVENT \d+ operated <nil>`, 10)
	assert.Len(t, s.matches(`\[prefork\] reloaded: generation`), 2)
	assert.Len(t, s.matches(`EVENT \d+ ready`), 12)
	s.stop()
}

// TestShutdownDuringReload wins.
func TestShutdownDuringReload(t *testing.T) {
	t.Parallel()
	for _, when := range []string{`\[prefork\] reloading: generation 1`, `EVENT \d+ ready [01] \d+ 0 ready\n(.*\n)*.*; pid \d+ drains`} {
		s := start(t, "app", options{"enable_prefork": true, "Children": 2, "At": "operate", "Init": time.Second})
		s.readyPIDs(2)
		conn := dial(t, "tcp", s.addr, "/untildrain")
		s.await("EVENT .* sleeping")
		_, err := s.in.WriteString("reload\n")
		require.NoError(t, err)
		re := regexp.MustCompile(when)
		eventually(t, func() bool { return re.MatchString(s.output()) }, "no reload")
		s.signal(syscall.SIGTERM)
		_, body := answer(t, conn)
		assert.Equal(t, "slept", body)
		assert.Equal(t, 0, s.exit())
		if told := s.matches(`operated (.*)`); len(told) > 0 { // main may end before it has told
			assert.Equal(t, "prefork: reload failed: stopped while reloading", told[0][1])
		}
		assert.Empty(t, s.matches("EVENT .* recover"))
	}
}

// TestDeathDuringReload: the old child of a slot dies while the new one
// starts, and the new one too: the slot is filled again.
func TestDeathDuringReload(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2, "At": "operate", "Init": 700 * time.Millisecond})
	old := s.readyPIDs(2)
	l := startLoad(t, s.addr, 0, 16)
	_, err := s.in.WriteString("reload\n")
	require.NoError(t, err)
	forked := s.awaitN(`EVENT \d+ fork (\d+)`, 3)
	death := time.Now()
	slot0 := s.await(`EVENT \d+ ready 0 (\d+)`)[1]
	pid, _ := strconv.Atoi(slot0)
	kill(t, pid, syscall.SIGKILL)
	next, _ := strconv.Atoi(forked[2][1])
	s.await(`slot 0 pid ` + slot0 + `: signal: killed .*; recovery 1`)
	kill(t, next, syscall.SIGKILL)
	assert.Regexp(t, `slot 0 pid \d+: signal: killed`, s.awaitN(`operated (.*)`, 1)[0][1])
	s.await(`EVENT \d+ recover ` + slot0)
	l.more(50)
	l.cleanBut(diedWith(death.Add(100 * time.Millisecond)))
	assert.Len(t, old, 2)
	assert.Equal(t, "<nil>", s.operate("reload"), "and it can be reloaded")
	s.stop()
}

// TestRecoveryAfterReload: a child that dies is replaced by one of its own
// version, also when the file has been replaced since.
func TestRecoveryAfterReload(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "app")
	versions := []string{build(t, "A"), build(t, "B"), build(t, "C")}
	install(t, versions[0], path)
	s := startApp(t, path)
	install(t, versions[1], path)
	require.Equal(t, "<nil>", s.operate("reload"))
	install(t, versions[2], path)
	for range 3 {
		version, pid, _ := strings.Cut(s.get("/"), " ")
		assert.Equal(t, "B", version)
		number, err := strconv.Atoi(pid)
		require.NoError(t, err)
		kill(t, number, syscall.SIGKILL)
		s.await(`replaces pid ` + pid)
	}
	require.Equal(t, "<nil>", s.operate("scale 3"))
	eventually(t, func() bool { return len(s.matches(`EVENT \d+ ready 2`)) == 1 }, "no third child")
	for range 20 {
		assert.True(t, strings.HasPrefix(s.get("/"), "B "))
	}
	require.Equal(t, "<nil>", s.operate("reload"))
	assert.True(t, strings.HasPrefix(s.get("/"), "C "))
	s.stop()
}

// TestScale: up and down twenty times, and no client notices.
func TestScale(t *testing.T) {
	t.Parallel()
	for _, mode := range []int{1, 2} {
		if mode == 1 && !spreads {
			continue
		}
		s := start(t, "app", options{"enable_prefork": true, "drain_idle": keepAlive, "Children": 1, "listener_mode": mode, "At": "operate"})
		l := startLoad(t, s.addr, 32, 32)
		l.more(100)
		ready := 1
		for range 20 {
			require.Equal(t, "<nil>", s.operate("scale 4"))
			ready += 3
			s.readyPIDs(ready)
			require.Equal(t, "<nil>", s.operate("scale 1"))
		}
		s.awaitN(`EVENT \d+ exit \d \d+ code=0 asked=true status=exit status 0`, 60)
		for n := 1; n < 4; n++ {
			s.await(fmt.Sprintf(`\[prefork\] slot %d: removed`, n))
		}
		l.more(100)
		l.clean()
		eventually(t, func() bool { return len(listening(t, s.cmd.Process.Pid)) <= 1 }, "listeners are left")
		assert.Empty(t, s.matches("EVENT .* recover"))
		s.stop()
	}
}

// TestScaleBySignal: SIGTTIN and SIGTTOU, and not below one.
func TestScaleBySignal(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2, "At": "children"})
	s.readyPIDs(2)
	s.signal(syscall.SIGTTIN)
	s.readyPIDs(3)
	s.await(`scaled from 2 to 3 children`)
	for _, left := range []string{"3 to 2", "2 to 1"} {
		s.signal(syscall.SIGTTOU)
		s.await(`scaled from ` + left + ` children`)
	}
	s.signal(syscall.SIGTTOU)
	s.await(`\[prefork\] invalid configuration: Scale = 0: want 1 to 1024`)
	s.awaitN(`EVENT \d+ exit \d \d+ code=0 asked=true`, 2)
	s.signal(syscall.SIGUSR1)
	s.await(`children \[{Slot:0 PID:\d+ Generation:0 State:ready StartedAt:[^{]*}\]`)
	s.stop()
}

// TestScaleOutOfRange is refused before anything happens.
func TestScaleOutOfRange(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 1, "At": "operate"})
	for _, n := range []int{0, -1, 1025} {
		assert.Equal(t, fmt.Sprintf("prefork: invalid configuration: Scale = %d: want 1 to 1024", n), s.operate(fmt.Sprintf("scale %d", n)))
	}
	s.awaitN("operation is invalid configuration", 3)
	s.stop()
}

// TestScaleDownKeepsTheQueue: connections that wait for a child that goes, and
// cannot go, are served by others.
func TestScaleDownKeepsTheQueue(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2, "listener_mode": 1, "At": "operate", "shutdown_timeout": 3 * time.Second})
	slots := map[string]int{}
	for _, m := range s.awaitN(`^EVENT \d+ ready (\d+) (\d+)`, 2) {
		slots[m[1]], _ = strconv.Atoi(m[2])
	}
	suspend(t, slots["1"])
	l := startLoad(t, s.addr, 0, 40)
	require.Equal(t, "<nil>", s.operate("scale 1"))
	l.more(200)
	s.await(fmt.Sprintf(`slot 1 pid %d: the drain deadline has passed: killed`, slots["1"]))
	s.await(`\[prefork\] slot 1: removed`)
	l.clean()
	s.stop()
}

// TestRecycling: children that have done enough are replaced, one at a time,
// and no client notices.
func TestRecycling(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string]options{
		"ChildMaxRequests": {"child_max_requests": 100},
		"ChildMaxLifetime": {"child_max_lifetime": 1500 * time.Millisecond},
		"ChildMaxRSS":      {"child_max_rss": 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "ChildMaxRSS" && !procSelfExe {
				t.Skip("Linux only")
			}
			all := options{"enable_prefork": true, "drain_idle": keepAlive, "Children": 3, "Init": 100 * time.Millisecond, "report_interval": 50 * time.Millisecond}
			for k, v := range opts {
				all[k] = v
			}
			s := start(t, "app", all)
			s.readyPIDs(3)
			l := startLoad(t, s.addr, 16, 16)
			s.awaitN(`slot \d pid \d+: is recycled: .* \(`+name+`\)`, 7)
			l.clean()
			// Never two at once: between two of these lines one has come to its end.
			lines := s.matches(`\[prefork\] slot \d pid \d+: (?:(is recycled): |exit status 0 after)`)
			open := 0
			for _, m := range lines {
				if m[1] != "" {
					open++
				} else {
					open--
				}
				assert.LessOrEqual(t, open, 1, "two at once")
			}
			assert.Empty(t, s.matches("EVENT .* recover"), "it costs no recovery")
			s.stop()
		})
	}
}

// TestRecyclingThatFails: the old child stays.
func TestRecyclingThatFails(t *testing.T) {
	t.Parallel()
	flag := filepath.Join(t.TempDir(), "broken")
	s := start(t, "app", options{
		"enable_prefork": true, "Children": 1, "child_max_lifetime": time.Second, "FailStart": "exit", "FailIf": flag, "max_child_recoveries": 1,
	})
	pid := s.readyPIDs(1)[0]
	require.NoError(t, os.WriteFile(flag, nil, 0o600))
	s.await(fmt.Sprintf(`slot 0 pid \d+: exit status 7: was to replace pid %d; next try in 30s`, pid))
	assert.Equal(t, strconv.Itoa(pid), s.get("/"))
	s.stop()
}

// TestSignalsInAChild: each is at least a clean drain.
func TestSignalsInAChild(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "drain_idle": keepAlive, "Children": 2})
	s.readyPIDs(2)
	l := startLoad(t, s.addr, 16, 16)
	for i, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR2, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGINT, syscall.SIGTERM} {
		pid, err := strconv.Atoi(s.get("/"))
		require.NoError(t, err)
		kill(t, pid, sig)
		s.await(fmt.Sprintf(`EVENT \d+ exit \d %d code=0 asked=%t status=exit status 0`, pid, i < 4))
		s.readyPIDs(3 + i)
		if i < 4 {
			s.await(fmt.Sprintf(`slot \d pid %d: is recycled: %s`, pid, regexp.QuoteMeta(sig.String())))
		}
	}
	l.clean()
	assert.Empty(t, s.matches("scaled|reload"))
	s.stop()
}

// TestSignalsToAll: as pkill sends them, to the master and to its children.
func TestSignalsToAll(t *testing.T) {
	t.Parallel()
	s := prepare(t, "app", options{"enable_prefork": true, "drain_idle": keepAlive, "Children": 3})
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s.launch().awaitListen()
	s.readyPIDs(3)
	l := startLoad(t, s.addr, 16, 16)
	l.more(50)
	require.NoError(t, syscall.Kill(-s.cmd.Process.Pid, syscall.SIGHUP))
	s.await(`\[prefork\] reloaded: generation 1`)
	l.more(50)
	l.clean()
	s.stop()
}

// TestOperationsWithoutAMaster have an answer too.
func TestOperationsWithoutAMaster(t *testing.T) {
	app := prefork.New()
	require.ErrorIs(t, app.Reload(context.Background()), prefork.ErrNotRunning)
	require.ErrorIs(t, app.Upgrade(context.Background()), prefork.ErrNotRunning)
	require.ErrorIs(t, app.Scale(1), prefork.ErrNotRunning)
	require.ErrorIs(t, app.Scale(0), prefork.ErrInvalidConfig)
}
