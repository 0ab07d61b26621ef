package main

// Load by wrk, where it is installed, and by this program's client where not.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"
)

// outcome is one load on one server.
type outcome struct {
	Rate   float64 `json:"rate"`   // requests per second
	P50    float64 `json:"p50"`    // ms
	P99    float64 `json:"p99"`    // ms
	P999   float64 `json:"p999"`   // ms
	Errors float64 `json:"errors"` // requests without a good answer
	Count  float64 `json:"count"`  // of requests
}

const wrkScript = `done = function(summary, latency, requests)
	local e = summary.errors
	io.write(string.format('\nresult {"rate": %f, "p50": %f, "p99": %f, "p999": %f, "errors": %d, "count": %d}\n',
		summary.requests / (summary.duration / 1e6),
		latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency:percentile(99.9) / 1000,
		e.connect + e.read + e.write + e.status + e.timeout, summary.requests))
end
`

const wrkThreads = 2

// saturate loads s with count connections for a time.
func (b *bench) saturate(ctx context.Context, s *server, path string, once bool, count int, d time.Duration) (outcome, error) {
	opened := connectionsOpened()
	var out outcome
	var err error
	if b.wrk == "" {
		t, rate := s.client(path, once).closedLoop(ctx, count, d)
		out = outcome{
			Rate: rate, P50: t.percentile(50), P99: t.percentile(99), P999: t.percentile(99.9),
			Errors: float64(t.lost()), Count: float64(t.ok),
		}
	} else if out, err = b.runWrk(ctx, s, path, once, count, d); err != nil {
		return out, err
	}
	// Whoever says that it opens a connection for each request has to.
	opened = connectionsOpened() - opened
	if once && float64(opened) < 0.95*out.Count {
		return out, fmt.Errorf("%s %s: %d connections for %.0f requests", s.peer.name, path, opened, out.Count)
	}
	if !once && float64(opened) > 0.05*out.Count+float64(2*count) {
		b.note("%s %s: it closes connections that were to stay open", s.peer.name, path)
	}
	if s.hasExited() {
		return out, fmt.Errorf("%s has ended: %s", s.peer.name, s.lastWords())
	}
	return out, nil
}

func (b *bench) runWrk(ctx context.Context, s *server, path string, once bool, count int, d time.Duration) (outcome, error) {
	// Its shortest time is a second. It ends in order, and counts the time that
	// it has had, when it is interrupted.
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	args := []string{"-t", strconv.Itoa(min(wrkThreads, count)), "-c", strconv.Itoa(count), "-d", "1m", "-s", b.script}
	if once {
		args = append(args, "-H", "Connection: close")
	}
	cmd := exec.CommandContext(ctx, b.wrk, append(args, "http://"+s.addr+path)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	text, err := cmd.CombinedOutput()
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return outcome{}, fmt.Errorf("wrk: %w: %s", err, text)
	}
	_, line, ok := bytes.Cut(text, []byte("\nresult "))
	if !ok {
		return outcome{}, fmt.Errorf("wrk: no result in %q", text)
	}
	var out outcome
	if err := json.Unmarshal(line, &out); err != nil {
		return outcome{}, fmt.Errorf("wrk: %w in %q", err, line)
	}
	return out, nil
}
