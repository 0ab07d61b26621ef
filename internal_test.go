package prefork

// The pieces without processes: the recovery policy, the environment, what a
// listener is made of, the hooks' queue.

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gofiber/fiber/v3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/fiber-prefork/prefork/internal/control"
	"github.com/fiber-prefork/prefork/internal/report"
)

// run plays a slot whose children live for uptime each, by the synctest
// clock, and returns the delays until the policy gives up or n children died.
func run(p *recovery, n int, uptime time.Duration) (delays []time.Duration, gaveUp bool) {
	for range n {
		readyAt := time.Now()
		time.Sleep(uptime)
		delay, ok := p.died(time.Since(readyAt))
		if !ok {
			return delays, true
		}
		delays = append(delays, delay)
		time.Sleep(delay)
	}
	return delays, false
}

func newPolicy() *recovery {
	return &recovery{window: time.Minute, jitter: func() float64 { return 0 }}
}

func TestRecoveryBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		delays, gaveUp := run(newPolicy(), 12, 0)
		assert.False(t, gaveUp)
		ms := time.Millisecond
		assert.Equal(t, []time.Duration{
			0, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 6400 * ms, 12800 * ms, 25600 * ms,
			30 * time.Second, 30 * time.Second, 30 * time.Second,
		}, delays)
	})
}

func TestRecoveryJitter(t *testing.T) {
	p := newPolicy()
	p.jitter = func() float64 { return 0.999 }
	for range 20 {
		before := p.backoff
		delay, _ := p.died(0)
		if before > 0 {
			assert.Positive(t, delay)
			assert.LessOrEqual(t, delay, maxBackoff)
		}
	}
	delay, _ := p.died(0)
	assert.InDelta(t, float64(maxBackoff)/2, float64(delay), float64(time.Second))
}

func TestRecoveryWindowWipes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy()
		p.limit = 2
		delays, gaveUp := run(p, 50, time.Minute)
		assert.False(t, gaveUp)
		for _, delay := range delays {
			assert.Zero(t, delay)
		}
		delays, gaveUp = run(p, 50, time.Minute-time.Nanosecond)
		assert.True(t, gaveUp)
		assert.Len(t, delays, 1, "one was counted before")
	})
}

func TestRecoveryWholeLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy()
		p.limit, p.window = 3, -1
		delays, gaveUp := run(p, 50, 24*time.Hour)
		assert.True(t, gaveUp)
		assert.Len(t, delays, 3)
	})
}

func TestRecoverySteady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy()
		p.limit = 20
		delays, gaveUp := run(p, 100, steady)
		assert.True(t, gaveUp, "what is steady is counted all the same")
		assert.Len(t, delays, 20)
		for _, delay := range delays {
			assert.Zero(t, delay, "a child that is up for long does not back off")
		}
		p = newPolicy()
		delays, _ = run(p, 30, steady-1)
		assert.Equal(t, maxBackoff, delays[29])
		delay, _ := p.died(steady)
		assert.Equal(t, maxBackoff, delay, "it takes longer after a long delay")
		delay, _ = p.died(10 * maxBackoff)
		assert.Zero(t, delay)
	})
}

func TestHistory(t *testing.T) {
	var h history
	assert.Empty(t, h.String())
	h.add(0, "tcp4 :1", nil)
	h.add(0, "tcp4 :2", fmt.Errorf("prefork: %w", &net.OpError{Op: "listen", Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}))
	h.add(1, "tcp4 :1", errors.New("why"))
	h.add(1, "tcp4 :1", errors.New("why else"))
	t.Setenv(envHistory, h.String())
	got := inheritHistory()
	_, set := os.LookupEnv(envHistory)
	assert.False(t, set)
	ok, err := got.find(0, "tcp4 :1")
	assert.True(t, ok)
	require.NoError(t, err)
	ok, err = got.find(0, "tcp4 :2")
	assert.True(t, ok)
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	ok, err = got.find(1, "tcp4 :1")
	assert.True(t, ok)
	require.ErrorContains(t, err, "in the master: why else")
	ok, _ = got.find(2, "tcp4 :1")
	assert.False(t, ok)
	t.Setenv(envHistory, "no json")
	got = inheritHistory()
	assert.Empty(t, got.String())
}

func TestRecoveryInterval(t *testing.T) {
	p := newPolicy()
	p.interval = 5 * time.Second
	delay, ok := p.died(0)
	assert.True(t, ok)
	assert.Equal(t, 5*time.Second, delay)
}

func TestFailedStartsCostNoBudget(t *testing.T) {
	p := newPolicy()
	p.limit = 1
	var last time.Duration
	for range 20 {
		last = p.failed()
	}
	assert.Equal(t, maxBackoff, last)
	_, ok := p.died(0)
	assert.True(t, ok, "the one recovery is still there")
	_, ok = p.died(0)
	assert.False(t, ok)
}

func FuzzRecovery(f *testing.F) {
	f.Add(3, int64(time.Minute), int64(0), []byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, limit int, window, interval int64, uptimes []byte) {
		p := &recovery{
			limit: max(0, limit), window: time.Duration(window), interval: max(0, time.Duration(interval)),
			jitter: func() float64 { return 0.5 },
		}
		for _, b := range uptimes {
			delay, ok := p.died(time.Duration(b) * time.Second)
			if !ok {
				if p.limit == 0 || p.count < p.limit {
					t.Fatalf("gave up at %d of %d", p.count, p.limit)
				}
				return
			}
			if delay < p.interval || delay > max(maxBackoff, p.interval) {
				t.Fatalf("delay %v", delay)
			}
		}
	})
}

func TestChildEnv(t *testing.T) {
	for _, env := range []childEnv{
		{master: 1, slot: 0},
		{master: 4711, slot: 12, generation: 3, app: 2, tls: true, key: "tcp4 127.0.0.1:3000"},
		{master: 4711, key: "unix /tmp/a b c.sock"},
	} {
		got, err := parseChildEnv(env.String())
		require.NoError(t, err)
		assert.Equal(t, env, got)
	}
	for _, bad := range []string{"", "1", "2 1 0 0 false x", "1 x 0 0 0 false x", "1 1 -1 0 0 false x", "1 1 0 0 0 maybe x", "1 99999999999 0 0 0 true x", "1 1 0 0 false x"} {
		_, err := parseChildEnv(bad)
		require.ErrorContains(t, err, envChild, bad)
	}
}

func FuzzParseChildEnv(f *testing.F) {
	f.Add("1 4711 0 0 0 false tcp4 :3000")
	f.Add("1 1 2 3 4 true unix /run/x y")
	f.Add("2 x")
	f.Fuzz(func(t *testing.T, s string) {
		env, err := parseChildEnv(s)
		if err != nil {
			return
		}
		again, err := parseChildEnv(env.String())
		if err != nil || again != env {
			t.Fatalf("%q became %+v, then %+v, %v", s, env, again, err)
		}
		if env.slot < 0 || env.master < 0 || env.generation < 0 {
			t.Fatalf("%q became %+v", s, env)
		}
	})
}

type wrapper struct {
	net.Listener
	_ int
}

type hidden struct {
	_     sync.Mutex
	inner net.Listener
}

func (h *hidden) Accept() (net.Conn, error) { return h.inner.Accept() }
func (h *hidden) Close() error              { return h.inner.Close() }
func (h *hidden) Addr() net.Addr            { return h.inner.Addr() }

func TestTakeApart(t *testing.T) {
	own := &boundListener{}
	inh := &inheritedListener{}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = tcp.Close() }()
	config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{}}}
	var nilTCP *net.TCPListener
	for name, test := range map[string]struct {
		ln   net.Listener
		want parts
	}{
		"nil":                 {nil, parts{}},
		"typed nil":           {nilTCP, parts{}},
		"own":                 {own, parts{own: own}},
		"inherited":           {inh, parts{inherited: inh}},
		"own deep":            {&hidden{inner: wrapper{Listener: &hidden{inner: own}}}, parts{own: own}},
		"inherited in tls":    {tls.NewListener(inh, config), parts{inherited: inh, tls: config}},
		"tcp":                 {tcp, parts{plain: tcp}},
		"tcp in tls":          {tls.NewListener(tcp, config), parts{plain: tcp, tls: config}},
		"nothing in tls":      {tls.NewListener(nil, config), parts{tls: config}},
		"tcp in a wrapper":    {wrapper{Listener: tcp}, parts{}},
		"tls in a wrapper":    {wrapper{Listener: tls.NewListener(tcp, config)}, parts{}},
		"own in tls in a box": {&hidden{inner: tls.NewListener(own, config)}, parts{own: own}},
	} {
		assert.Equal(t, test.want, takeApart(test.ln), name)
	}
}

func TestForkHandlersOfFiber(t *testing.T) {
	app := fiber.New()
	called := 0
	app.Hooks().OnFork(func(int) error { called++; return nil })
	handlers := forkHandlers(app.Hooks())
	require.Len(t, handlers, 1, "Fiber keeps its OnFork handlers elsewhere now")
	require.NoError(t, handlers[0](1))
	assert.Equal(t, 1, called)
}

func TestHooksSurviveTheirHandlers(t *testing.T) {
	var written lines
	l := logger{custom: &written}
	var got []int
	runHandlers(l, "OnFork", []func(int) error{
		func(int) error { panic("oops") },
		func(int) error { return errors.New("no") },
		func(pid int) error { got = append(got, pid); return nil },
	}, 7)
	assert.Equal(t, []int{7}, got)
	require.Len(t, written, 2)
	assert.True(t, strings.HasPrefix(written[0], "[prefork] OnFork handler panicked: oops"))
	assert.Equal(t, "[prefork] OnFork handler: no", written[1])
}

func TestCallsRunInOrder(t *testing.T) {
	c := newCalls()
	var got []int
	for i := range 100 {
		c.post(0, func() { got = append(got, i) })
	}
	c.flush()
	require.Len(t, got, 100)
	assert.IsIncreasing(t, got)
	block := make(chan struct{})
	c.post(0, func() { <-block })
	c.post(1, func() {})
	c.post(1, func() { t.Error("one too many") })
	assert.False(t, c.flushWithin(time.Millisecond))
	close(block)
	assert.True(t, c.flushWithin(time.Minute))
}

// FuzzParseHandover: what another program has left is taken as it is, or not.
func FuzzParseHandover(f *testing.F) {
	pid := os.Getpid()
	f.Add(fmt.Sprintf(`{"Version":1,"PID":%d,"Key":"tcp :3000","Mode":1,"Slots":[{"Socket":{"FD":9,"Network":"tcp"},"Child":{"PID":2,"Control":7,"Page":8}}]}`, pid))
	f.Add(`{"Version":2}`)
	f.Add(`{"Version":1,"PID":-1}`)
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		h, err := parseHandover([]byte(s))
		if err != nil {
			return
		}
		if h.Version != stateVersion || h.PID != pid || len(h.Slots) == 0 {
			t.Fatalf("%s became %+v", s, h)
		}
	})
}

// TestParseHandoverRefuses what is not for this program.
func TestParseHandoverRefuses(t *testing.T) {
	pid := os.Getpid()
	for state, want := range map[string]string{
		``:                      "unexpected end",
		`{"Version":9}`:         "of version 9, want 1",
		`{"Version":1,"PID":1}`: "of process 1",
		fmt.Sprintf(`{"Version":1,"PID":%d}`, pid):                       "0 slots",
		fmt.Sprintf(`{"Version":1,"PID":%d,"Mode":0,"Slots":[{}]}`, pid): "listener mode 0",
	} {
		_, err := parseHandover([]byte(state))
		require.ErrorContains(t, err, want, state)
	}
}

// TestCoverers: those that follow a slot cover it, and not all of them.
func TestCoverers(t *testing.T) {
	var able []*process
	for i := range 6 {
		if i != 2 {
			able = append(able, &process{slot: &slot{Child: Child{Slot: i}}})
		}
	}
	slots := func(of int) (all []int) {
		for _, p := range coverers(able, of) {
			all = append(all, p.slot.Slot)
		}
		return all
	}
	assert.Equal(t, []int{3, 4, 5, 0}, slots(2))
	assert.Equal(t, []int{0, 1, 3, 4}, slots(9), "a slot that is removed")
	assert.Empty(t, coverers(nil, 0))
}

// TestLook plays a child by its page and looks at it as the supervise
// goroutine does.
func TestLook(t *testing.T) {
	page, err := report.New()
	require.NoError(t, err)
	defer page.Close()
	now := time.Now()
	m := &master{
		app: New(), cfg: ListenConfig{HangTimeout: time.Minute, ReportInterval: time.Second, ListenerMode: ListenerModeShared},
		log: logger{queue: newCalls()}, calls: newCalls(), stopping: newLatch(), awake: now,
	}
	mine, theirs, err := control.Pair()
	require.NoError(t, err)
	defer func() { _, _ = mine.Close(), theirs.Close() }()
	var signals []os.Signal
	s := &slot{}
	p := &process{
		slot: s, page: page, control: mine, interval: time.Second, readyAt: now, heard: now, looked: now,
		signal: func(sig os.Signal) { signals = append(signals, sig) },
	}
	s.process = p
	m.slots, m.size = []*slot{s}, 1
	// at looks when it is time to, until d from now.
	at := func(d time.Duration) {
		until := now.Add(d)
		for !m.lookAt(p).IsZero() && !m.lookAt(p).After(until) {
			m.look(p, m.lookAt(p))
		}
	}
	at(2900 * time.Millisecond)
	assert.False(t, p.silent, "two reports are missing")
	at(3100 * time.Millisecond)
	assert.True(t, p.silent, "three are, and at a second look too")
	page.Write(report.Report{})
	at(5 * time.Second)
	assert.False(t, p.silent, "it is back")
	m.awake = now.Add(time.Hour) // the master was stopped
	at(time.Hour + 2*time.Second)
	assert.False(t, p.silent)
	page.Write(report.Report{Quiet: true})
	at(time.Hour + 40*time.Second)
	assert.False(t, p.silent, "it said that it is quiet")
	at(time.Hour + 55*time.Second)
	assert.True(t, p.silent, "but not for so long")
	assert.Empty(t, signals)
	at(time.Hour + 2*time.Minute)
	require.NotEmpty(t, signals)
	assert.Equal(t, abort, signals[0])
	m.calls.flush()
	m.log.queue.flush()
}
