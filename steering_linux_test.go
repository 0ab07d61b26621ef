package prefork_test

// Which child gets a new connection.

import (
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// connect opens n connections, one every gap, and leaves them open: who
// answered on how many of them.
func connect(t *testing.T, s *server, n int, gap time.Duration) (conns []net.Conn, by map[string]int) {
	t.Helper()
	by = map[string]int{}
	tick := time.NewTicker(gap)
	defer tick.Stop()
	for range n {
		conn := dial(t, "tcp", s.addr, "/")
		_, pid := answer(t, conn)
		conns = append(conns, conn)
		by[pid]++
		<-tick.C
	}
	return conns, by
}

func hangUp(conns []net.Conn) {
	for _, conn := range conns {
		_ = conn.Close()
	}
}

// TestSteering: connections that come one after the other, and stay, are
// spread evenly. A busy machine may keep the master from looking in time: it
// may try again, but not often enough for a hash to get there by chance.
func TestSteering(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 4, "listener_mode": 1})
	s.readyPIDs(4)
	best := 200
	for try := 0; try < 3 && best > 4; try++ {
		conns, by := connect(t, s, 200, 5*time.Millisecond)
		assert.Len(t, by, 4)
		counts := slices.Sorted(maps.Values(by))
		t.Logf("%v", counts)
		best = min(best, counts[len(counts)-1]-counts[0])
		hangUp(conns)
	}
	assert.LessOrEqual(t, best, 4, "between the child that has most and the one that has fewest")
	s.stop()
}

// TestSteeringOfFew: of two connections each child gets one. By chance that
// would be so in half of the tries.
func TestSteeringOfFew(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2, "listener_mode": 1})
	s.readyPIDs(2)
	most := 0
	for try := 0; try < 3 && most < 16; try++ {
		apart := 0
		for range 20 {
			conns, by := connect(t, s, 2, 25*time.Millisecond)
			if len(by) == 2 {
				apart++
			}
			hangUp(conns)
		}
		t.Logf("%d of 20", apart)
		most = max(most, apart)
	}
	assert.GreaterOrEqual(t, most, 16)
	s.stop()
}

// TestSteeringOfABurst: connections that come at once are not all for the
// child that had fewer when the first of them was seen.
func TestSteeringOfABurst(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2, "listener_mode": 1})
	s.readyPIDs(2)
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	fewest := 20
	for try := 0; try < 3 && fewest > 2; try++ {
		uneven := 0
		for range 20 {
			var conns []net.Conn
			for range 64 {
				conns = append(conns, dial(t, "tcp", s.addr, "/"))
			}
			by := map[string]int{}
			for _, conn := range conns {
				_, pid := answer(t, conn)
				by[pid]++
			}
			if most := slices.Max(slices.Collect(maps.Values(by))); most > 48 {
				t.Logf("%d of 64", most)
				uneven++
			}
			hangUp(conns)
			<-tick.C
		}
		t.Logf("%d of 20", uneven)
		fewest = min(fewest, uneven)
	}
	assert.LessOrEqual(t, fewest, 2, "of 20 bursts; by chance it would be one in 30,000")
	s.stop()
}

// TestSteeringAfterRecovery: a child that takes the place of one that died is
// the one that has fewest.
func TestSteeringAfterRecovery(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2, "listener_mode": 1})
	pids := s.readyPIDs(2)
	_, by := connect(t, s, 20, 10*time.Millisecond)
	assert.Len(t, by, 2)
	kill(t, pids[0], syscall.SIGKILL)
	next := strconv.Itoa(s.readyPIDs(3)[2])
	began := time.Now()
	_, by = connect(t, s, 6, 10*time.Millisecond)
	t.Logf("%v of 6 in %v", by[next], time.Since(began))
	assert.GreaterOrEqual(t, by[next], 4)
	s.stop()
}

// TestSteeringPastAStoppedChild: what waits for a child counts as its. The
// others get what comes long before it is noticed that it is stopped.
func TestSteeringPastAStoppedChild(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2, "listener_mode": 1, "report_interval": time.Minute})
	pids := s.readyPIDs(2)
	suspend(t, pids[0])
	var conns []net.Conn
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 40 {
		conns = append(conns, dial(t, "tcp", s.addr, "/"))
		<-tick.C
	}
	// The other one has 20 at most if they are counted, and all but those that
	// came before the first look if they are not.
	kill(t, pids[0], syscall.SIGCONT)
	by := map[string]int{}
	for _, conn := range conns {
		_, pid := answer(t, conn)
		by[pid]++
	}
	assert.Less(t, by[strconv.Itoa(pids[0])], 30, "%v", by)
	s.stop()
}

// TestCostOfSteering: what the master takes while connections come as fast as
// they can be served.
func TestCostOfSteering(t *testing.T) {
	needsLong(t)
	for steering, most := range []float64{0.005, 0.001} {
		s := start(t, "app", options{"enable_prefork": true, "Children": 2, "listener_mode": 1, "steering": steering})
		s.readyPIDs(2)
		l := &load{t: t, network: "tcp", addr: s.addr, path: "/", done: make(chan struct{})}
		l.start(0, 32)
		l.more(5000)
		began, before, answers := time.Now(), cpu(t, s.cmd.Process.Pid), l.count()
		l.more(100_000)
		share := float64(cpu(t, s.cmd.Process.Pid)-before) / float64(time.Since(began))
		t.Logf("steering %d: %.3f %% of a core, %.0f connections/s", steering, 100*share, float64(l.count()-answers)/time.Since(began).Seconds())
		assert.Less(t, share, most)
		l.clean()
		s.stop()
	}
}

// cpu is the processor time that a process has taken.
func cpu(t *testing.T, pid int) time.Duration {
	t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	require.NoError(t, err)
	sum := int64(0)
	for _, task := range tasks {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", pid, task.Name()))
		require.NoError(t, err)
		ns, err := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
		require.NoError(t, err)
		sum += ns
	}
	return time.Duration(sum)
}
