package main

// The load generator of this program: a raw HTTP/1.1 client that costs little,
// never tries again, and knows its errors by kind.

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// client asks one server for one path.
type client struct {
	addr    string
	request []byte
	once    bool // a connection for each request
	tls     *tls.Config
	timeout time.Duration // of a request, its connection included
}

func (s *server) client(path string, once bool) *client {
	c := &client{addr: s.addr, once: once, tls: s.tls, timeout: 2 * time.Second}
	header := ""
	if once {
		header = "Connection: close\r\n"
	}
	c.request = []byte("GET " + path + " HTTP/1.1\r\nHost: localhost\r\n" + header + "\r\n")
	return c
}

// connection is one that a client has opened.
type connection struct {
	net.Conn

	reader  *bufio.Reader
	resumed bool
	last    bool // the server has said that it closes it
}

var dialer = net.Dialer{KeepAlive: -1}

func (c *client) dial(ctx context.Context, deadline time.Time) (*connection, error) {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	plain, err := dialer.DialContext(ctx, "tcp4", c.addr)
	if err != nil {
		return nil, err
	}
	conn := &connection{Conn: plain}
	if err := plain.SetDeadline(deadline); err != nil {
		_ = plain.Close()
		return nil, err
	}
	if c.tls != nil {
		secure := tls.Client(plain, c.tls)
		if err := secure.HandshakeContext(ctx); err != nil {
			_ = plain.Close()
			return nil, err
		}
		conn.Conn, conn.resumed = secure, secure.ConnectionState().DidResume
	}
	conn.reader = bufio.NewReaderSize(conn.Conn, 2048)
	return conn, nil
}

var (
	errStatus   = errors.New("the answer is not 200")
	errNoLength = errors.New("the answer has no length")
)

// ask sends the request and returns the body of the answer.
func (c *client) ask(conn *connection) ([]byte, error) {
	if _, err := conn.Write(c.request); err != nil {
		return nil, err
	}
	line, err := conn.reader.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	if len(line) < 12 || string(line[9:12]) != "200" {
		return nil, fmt.Errorf("%w: %q", errStatus, line)
	}
	length := -1
	for {
		line, err = conn.reader.ReadSlice('\n')
		if err != nil {
			return nil, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case len(name) == 14 && bytes.EqualFold(name, []byte("Content-Length")):
			if length, err = strconv.Atoi(string(value)); err != nil {
				return nil, fmt.Errorf("%w: %w", errNoLength, err)
			}
		case len(name) == 10 && bytes.EqualFold(name, []byte("Connection")):
			conn.last = bytes.EqualFold(value, []byte("close"))
		}
	}
	if length < 0 {
		return nil, errNoLength
	}
	body, err := conn.reader.Peek(length)
	if err != nil {
		return nil, err
	}
	_, err = conn.reader.Discard(length)
	return body, err
}

// leave waits for the server's close, so that the port that stays behind in
// TIME-WAIT is not the client's.
func (conn *connection) leave() {
	_, _ = conn.reader.ReadByte()
	_ = conn.Close()
}

// single makes one request on a connection of its own.
func (c *client) single(ctx context.Context) (body []byte, resumed bool, err error) {
	conn, err := c.dial(ctx, time.Now().Add(c.timeout))
	if err != nil {
		return nil, false, err
	}
	defer conn.leave()
	body, err = c.ask(conn)
	return body, conn.resumed, err
}

// pid asks who answers.
func (c *client) pid(ctx context.Context) (int, error) {
	body, _, err := c.single(ctx)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(body))
}

// kindOf names an error as a client sees it.
func kindOf(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	case errors.Is(err, errStatus):
		return "status"
	default:
		return "other"
	}
}

// tally is what clients have seen.
type tally struct {
	mu      sync.Mutex
	ok      int
	resumed int
	errors  map[string]int
	latency *hdrhistogram.Histogram // in microseconds
	first   map[int]time.Time       // answer of a pid, when the path is pathPID
	last    map[int]time.Time
	latest  time.Time     // answer of all
	gap     time.Duration // the longest between two answers
}

func newTally() *tally {
	return &tally{
		errors: make(map[string]int), latency: hdrhistogram.New(1, 60_000_000, 3),
		first: make(map[int]time.Time), last: make(map[int]time.Time),
	}
}

// answered notes an answer. pid is 0 if it does not say who gave it.
func (t *tally) answered(now time.Time, took time.Duration, pid int, resumed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ok++
	if resumed {
		t.resumed++
	}
	_ = t.latency.RecordValue(max(1, took.Microseconds()))
	if pid == 0 {
		return
	}
	if !t.latest.IsZero() {
		t.gap = max(t.gap, now.Sub(t.latest))
	}
	t.latest = now
	if _, known := t.first[pid]; !known {
		t.first[pid] = now
	}
	t.last[pid] = now
}

func (t *tally) failed(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.errors[kindOf(err)]++
}

// lost is how many requests had no answer.
func (t *tally) lost() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for _, count := range t.errors {
		n += count
	}
	return n
}

func (t *tally) kind(name string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.errors[name]
}

// restartGap begins to look for the longest gap anew.
func (t *tally) restartGap() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.gap = 0
}

// longestGap is the longest time without an answer, up to now.
func (t *tally) longestGap(now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return max(t.gap, now.Sub(t.latest))
}

// newcomers returns when pids that known lacks have answered first, in order of time.
func (t *tally) newcomers(known map[int]bool) []time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	var times []time.Time
	for pid, at := range t.first {
		if !known[pid] {
			times = append(times, at)
		}
	}
	sortTimes(times)
	return times
}

// lastOf returns when one of pids has answered last.
func (t *tally) lastOf(pids map[int]bool) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	var latest time.Time
	for pid := range pids {
		if at := t.last[pid]; at.After(latest) {
			latest = at
		}
	}
	return latest
}

// percentile is of the latency, in milliseconds.
func (t *tally) percentile(q float64) float64 {
	return float64(t.latency.ValueAtQuantile(q)) / 1000
}

// load is clients that work until they are stopped.
type load struct {
	*tally

	stopped chan struct{}
	workers sync.WaitGroup
}

func (l *load) stop() {
	close(l.stopped)
	l.workers.Wait()
}

// begin starts count clients that ask as fast as they are answered.
func (c *client) begin(ctx context.Context, count int) *load {
	l := &load{tally: newTally(), stopped: make(chan struct{})}
	for range count {
		l.workers.Go(func() { c.work(ctx, l, nil, nil) })
	}
	return l
}

// onto is begin with more clients that work for l.
func (c *client) onto(ctx context.Context, l *load, count int) {
	for range count {
		l.workers.Go(func() { c.work(ctx, l, nil, nil) })
	}
}

// schedule is when an open loop's requests are due.
type schedule struct {
	next time.Time
	step time.Duration
}

// work asks until l is stopped, on conn if that is not nil. With a schedule it
// waits until a request is due; the time of one that is due while the one
// before is not answered yet counts from when it was due.
func (c *client) work(ctx context.Context, l *load, conn *connection, due *schedule) {
	defer func() {
		if conn != nil {
			_ = conn.Close()
		}
	}()
	config := c.tls
	if config != nil { // each client has tickets of its own
		own := config.Clone()
		if config.ClientSessionCache != nil {
			own.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		}
		mine := *c
		mine.tls = own
		c = &mine
	}
	wantPID := bytes.Contains(c.request, []byte(" "+pathPID+" "))
	for {
		began := time.Now()
		if due != nil {
			if wait := due.next.Sub(began); wait > 0 {
				time.Sleep(wait)
				began = time.Now()
			} else {
				began = due.next
			}
			due.next = due.next.Add(due.step)
		}
		select {
		case <-l.stopped:
			return
		default:
		}
		deadline := time.Now().Add(c.timeout)
		if conn == nil {
			var err error
			if conn, err = c.dial(ctx, deadline); err != nil {
				conn = nil
				l.failed(err)
				select { // an address that refuses is not asked in a busy loop
				case <-l.stopped:
					return
				case <-time.After(time.Millisecond):
				}
				continue
			}
		} else if err := conn.SetDeadline(deadline); err != nil {
			l.failed(err)
			return
		}
		body, err := c.ask(conn)
		if err != nil {
			l.failed(err)
			_ = conn.Close()
			conn = nil
			continue
		}
		now, pid := time.Now(), 0
		if wantPID {
			pid, _ = strconv.Atoi(string(body))
		}
		l.answered(now, now.Sub(began), pid, conn.resumed)
		if c.once || conn.last {
			conn.leave()
			conn = nil
		}
	}
}

// closedLoop loads with count clients for a time, and returns what they saw
// and the requests per second.
func (c *client) closedLoop(ctx context.Context, count int, d time.Duration) (*tally, float64) {
	l := c.begin(ctx, count)
	began := time.Now()
	pause(ctx, d)
	l.mu.Lock()
	rate := float64(l.ok) / time.Since(began).Seconds()
	l.mu.Unlock()
	l.stop()
	return l.tally, rate
}

// openLoop asks rate times a second, with count clients, for a time.
func (c *client) openLoop(ctx context.Context, count int, rate float64, d time.Duration) *tally {
	l := &load{tally: newTally(), stopped: make(chan struct{})}
	step := time.Duration(float64(count) / rate * float64(time.Second))
	began := time.Now()
	for i := range count {
		due := &schedule{next: began.Add(step * time.Duration(i) / time.Duration(count)), step: step}
		l.workers.Go(func() { c.work(ctx, l, nil, due) })
	}
	pause(ctx, d)
	l.stop()
	return l.tally
}

// pause waits, unless everything ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
