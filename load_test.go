//go:build unix

package prefork_test

// Clients that never retry: what they are not answered is an error. They speak
// plain HTTP/1.1 and do what a correct client does: a connection on which the
// server has said that it will close is not used again.

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// load is a number of clients that ask until they are stopped.
type load struct {
	t       testing.TB
	network string
	addr    string
	path    string
	pause   time.Duration // of each client between two requests
	done    chan struct{}
	clients sync.WaitGroup

	mu       sync.Mutex
	answers  []sample
	failures []failure
}

// sample is a request that was answered.
type sample struct {
	began time.Time
	took  time.Duration
	body  string
}

// failure is a request that was not.
type failure struct {
	dialed time.Time // when its connection was asked for
	failed time.Time
	reused bool // it was not the first request on its connection
	err    error
}

// keepAlive is the default of DrainIdle: clients that go on asking on a
// connection do so within this time, also on a machine that is very busy.
const keepAlive = 5 * time.Second

// startLoad lets clients ask for "/", some on one connection as long as that
// lasts, some on a new connection for each request.
func startLoad(t testing.TB, addr string, keepAlive, closing int) *load {
	t.Helper()
	l := &load{t: t, network: "tcp", addr: addr, path: "/", pause: 3 * time.Millisecond, done: make(chan struct{})}
	return l.start(keepAlive, closing)
}

func (l *load) start(keepAlive, closing int) *load {
	for i := range keepAlive + closing {
		l.clients.Go(func() { l.client(i < keepAlive) })
	}
	l.t.Cleanup(func() { l.end() })
	return l
}

func (l *load) client(keepAlive bool) {
	var conn net.Conn
	var r *bufio.Reader
	var dialed time.Time
	reused := false
	hangUp := func() {
		if conn != nil {
			_ = conn.Close()
			conn = nil
		}
	}
	defer hangUp()
	for {
		select {
		case <-l.done:
			return
		case <-time.After(l.pause):
		}
		began := time.Now()
		if conn == nil {
			dialed, reused = began, false
			var err error
			if conn, err = net.DialTimeout(l.network, l.addr, patience); err != nil {
				conn = nil
				l.fail(failure{dialed, time.Now(), false, err})
				continue
			}
			r = bufio.NewReader(conn)
		}
		body, last, err := l.request(conn, r, keepAlive)
		if err != nil {
			l.fail(failure{dialed, time.Now(), reused, err})
			hangUp()
			continue
		}
		l.mu.Lock()
		l.answers = append(l.answers, sample{began, time.Since(began), body})
		l.mu.Unlock()
		reused = true
		if last {
			hangUp()
		}
	}
}

func (l *load) request(conn net.Conn, r *bufio.Reader, keepAlive bool) (body string, last bool, err error) {
	_ = conn.SetDeadline(time.Now().Add(patience))
	header := ""
	if !keepAlive {
		header = "Connection: close\r\n"
	}
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n", l.path, header); err != nil {
		return "", true, err
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return "", true, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", resp.Status)
	}
	return string(b), resp.Close, err
}

func (l *load) fail(f failure) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = append(l.failures, f)
}

// end stops the clients and waits for them.
func (l *load) end() {
	select {
	case <-l.done:
	default:
		close(l.done)
	}
	l.clients.Wait()
}

// since returns the times that answers took that were asked for from a time
// on, the shortest first, and who gave them how often.
func (l *load) since(from, to time.Time) (took []time.Duration, by map[string]int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	by = map[string]int{}
	for _, s := range l.answers {
		if !s.began.Before(from) && s.began.Before(to) {
			took = append(took, s.took)
			by[s.body]++
		}
	}
	slices.Sort(took)
	return took, by
}

// count is how many answers there are.
func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.answers)
}

// more waits for n answers more.
func (l *load) more(n int) {
	l.t.Helper()
	n += l.count()
	eventually(l.t, func() bool { return l.count() >= n }, "no more answers")
}

// percentile returns the p-th of sorted times.
func percentile(took []time.Duration, p float64) time.Duration {
	if len(took) == 0 {
		return 0
	}
	return took[min(len(took)-1, int(float64(len(took))*p/100))]
}

// clean ends the load and expects that every request was answered.
func (l *load) clean() {
	l.t.Helper()
	l.cleanBut(func(failure) bool { return false })
}

// cleanBut is clean but for failures that may be.
func (l *load) cleanBut(may func(failure) bool) {
	l.t.Helper()
	l.end()
	require.NotZero(l.t, l.count(), "no answers")
	kinds := map[string]int{}
	for _, f := range l.failures {
		if !may(f) {
			kinds[fmt.Sprintf("%v (reused connection: %t)", f.err, f.reused)]++
		}
	}
	assert.Empty(l.t, kinds, "errors among %d answers", l.count())
}
