//go:build linux

package prefork_test

// A walk through everything that can happen to a server, in any order: deaths,
// stops, reloads, upgrades, scaling, under load. What must always hold is
// looked at after each step.

import (
	"fmt"
	"math/rand/v2"
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

// walkSteps is how long a walk is, a minute or so; with -short it is a tenth of
// that. PREFORK_TEST_SEED repeats one.
const walkSteps = 200

// walkLosses is how many children a server loses in its life. The delay of a
// recovery grows with those of its slot, to 6 to 13 s after that many.
const walkLosses = 8

func TestRandomWalk(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	if s := os.Getenv("PREFORK_TEST_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("PREFORK_TEST_SEED=%d repeats this walk", seed)
	w := &walk{t: t, rand: rand.New(rand.NewPCG(seed, 0)), size: 3}
	w.versions = []string{build(t, "A"), build(t, "B", "-s")}
	w.path = filepath.Join(t.TempDir(), "app")
	install(t, w.versions[0], w.path)
	w.begin()
	steps := walkSteps
	if testing.Short() {
		steps = 20
	}
	for step := range steps {
		w.step(step)
		if t.Failed() {
			break
		}
	}
	w.end()
}

type walk struct {
	t        *testing.T
	rand     *rand.Rand
	versions []string
	path     string

	s      *server
	load   *load
	size   int
	kills  []time.Time // of children, in this life of the server
	losses int         // these, and those that were told to end
	usual  int         // descriptors of the master, for 3 children
	trail  []string
	asking time.Time // of the shutdown
}

func (w *walk) begin() {
	w.s = startApp(w.t, w.path, "TESTAPP_CHILDREN="+strconv.Itoa(w.size))
	w.load = startLoad(w.t, w.s.addr, 8, 8)
	w.kills, w.losses, w.asking = nil, 0, time.Time{}
	w.settle()
	w.usual = w.s.descriptors() - w.size*perChild + 1 // for the executable that was reloaded
}

// perChild is how many descriptors the master has for each child: listener,
// channel, page, and the process itself.
const perChild = 4

// children asks the system who serves: the master's children.
func (w *walk) children() []int {
	var pids []int
	for _, pid := range w.s.processes() {
		if f := stat(strconv.Itoa(pid)); f[1] == strconv.Itoa(w.s.cmd.Process.Pid) && f[0] != "Z" {
			pids = append(pids, pid)
		}
	}
	return pids
}

// ready asks the master how many children are.
func (w *walk) ready() (ready, size int) {
	m := w.s.reply("children", `^EVENT \d+ children ready=(\d+) size=(\d+)`)
	ready, _ = strconv.Atoi(m[1])
	size, _ = strconv.Atoi(m[2])
	return ready, size
}

// settle waits until all children are ready.
func (w *walk) settle() {
	w.t.Helper()
	eventually(w.t, func() bool {
		time.Sleep(10 * time.Millisecond)
		ready, size := w.ready()
		return ready == size && size == w.size
	}, "not all ready: %v", w.trail)
}

func (w *walk) step(n int) {
	what := []string{"kill", "kill", "stop", "reload", "reload", "scale", "scale", "scale", "upgrade", "hang up a child", "end a child", "ask", "shutdown"}[w.rand.IntN(13)]
	switch {
	case w.losses >= walkLosses:
		what = "shutdown"
	case what == "shutdown" && w.rand.IntN(3) > 0:
		what = "kill two"
	}
	w.trail = append(w.trail, what)
	least := w.size // ready children that there are at any time
	switch what {
	case "kill":
		w.kill(1)
		least--
	case "kill two":
		w.kill(2)
		least -= 2
	case "stop":
		if pids := w.children(); len(pids) > 0 {
			pid := pids[w.rand.IntN(len(pids))]
			suspend(w.t, pid)
			time.Sleep(time.Duration(w.rand.IntN(300)) * time.Millisecond)
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
		least--
	case "reload":
		require.Equal(w.t, "<nil>", w.operate("reload"))
	case "scale":
		w.size = 1 + w.rand.IntN(4)
		least = min(least, w.size) // the others are on their way
		require.Equal(w.t, "<nil>", w.operate(fmt.Sprintf("scale %d", w.size)))
	case "upgrade":
		install(w.t, w.versions[n%2], w.path)
		w.s.upgrade()
	case "hang up a child", "end a child":
		sig := syscall.SIGHUP
		if what == "end a child" {
			sig = syscall.SIGTERM
			least--
			w.losses++
		}
		if pids := w.children(); len(pids) > 0 {
			pid := pids[w.rand.IntN(len(pids))]
			_ = syscall.Kill(pid, sig)
			w.s.await(fmt.Sprintf(`slot \d pid %d: (draining: terminated|hangup: asks|exit status 0)`, pid))
		}
	case "ask": // for several things at once
		w.s.signal(syscall.SIGHUP)
		if w.rand.IntN(2) == 0 {
			w.kill(1)
			least--
		}
		w.operate("reloads")
	case "shutdown":
		w.asking = time.Now()
		w.s.signal([]syscall.Signal{syscall.SIGTERM, syscall.SIGINT}[w.rand.IntN(2)])
		w.load.end() // refused from now on
		assert.Equal(w.t, 0, w.s.exit())
		w.judge(time.Now())
		w.size = 3
		w.begin()
		return
	}
	ready, _ := w.ready()
	assert.GreaterOrEqual(w.t, ready, least, "after %q", what)
	w.settle()
	eventually(w.t, func() bool { return w.s.descriptors() <= w.usual+w.size*perChild+perRemoved*w.leaving() }, "descriptors: %v", w.trail)
}

// perRemoved is how many descriptors the master has for a child that drains
// beside the one that fills its slot.
const perRemoved = 4

func (w *walk) operate(what string) string {
	return w.s.reply(what, `^EVENT \d+ operated (.*)`)[1]
}

func (w *walk) leaving() int { return max(0, len(w.children())-w.size) }

func (w *walk) kill(n int) {
	pids := w.children()
	w.rand.Shuffle(len(pids), func(i, j int) { pids[i], pids[j] = pids[j], pids[i] })
	for _, pid := range pids[:min(n, len(pids))] {
		w.kills = append(w.kills, time.Now())
		w.losses++
		_ = syscall.Kill(pid, syscall.SIGKILL)
		w.s.await(fmt.Sprintf(`^EVENT \d+ exit \d %d `, pid)) // the master knows
	}
}

// judge looks at all that clients have seen in this life of the server.
func (w *walk) judge(end time.Time) {
	w.load.cleanBut(func(f failure) bool {
		if !w.asked(f.failed, end) { // the port is closed then
			return true
		}
		for _, killed := range w.kills {
			if f.dialed.Before(killed) && f.failed.After(killed) && (f.reused || f.failed.Sub(killed) < time.Second) {
				return true
			}
		}
		return false
	})
	assert.Empty(w.t, w.s.matches("panic|DATA RACE|fatal error"))
}

// asked says whether a failure at a time counts: once the server is asked to
// end, new connections are refused.
func (w *walk) asked(failed, end time.Time) bool {
	return w.asking.IsZero() || failed.Before(w.asking) || failed.After(end)
}

func (w *walk) end() {
	if w.t.Failed() {
		w.t.Logf("steps: %s", strings.Join(w.trail, ", "))
		return
	}
	w.load.end()
	w.judge(time.Now())
	w.s.stop()
}
