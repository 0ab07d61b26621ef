//go:build unix

package prefork_test

// Reload, upgrade, scaling and recycling.

import (
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestReloads: 20 in a row, and no client notices.
func TestReloads(t *testing.T) {
	t.Parallel()
	for _, mode := range []int{1, 2} {
		if mode == 1 && !spreads {
			continue
		}
		s := start(t, "app", options{"enable_prefork": true, "Children": 2, "listener_mode": mode, "At": "operate", "drain_idle": 5 * time.Second})
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
	_, err := s.in.WriteString(what + "\n")
	require.NoError(s.t, err)
	s.operations++
	return s.awaitN(`^EVENT \d+ operated (.*)`, s.operations)[s.operations-1][1]
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
