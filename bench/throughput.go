package main

// Measures "throughput" and "moderate": requests per second and latency, with
// as many requests as the servers take, and with a third of it.

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"
)

// saturating is how many connections the throughput is measured with.
const saturating = 64

// workload is a handler and a way to use connections.
type workload struct {
	name  string
	path  string
	once  bool
	peers []string // nil for all that can
}

func workloads() []workload {
	few := []string{ours, fiberPrefork, fiberAlone, netHTTP}
	more := append([]string{oursOff}, few...)
	json := append([]string{controlled}, few...)
	return []workload{
		{"hello, keep-alive", pathHello, false, nil},
		{"hello, close", pathHello, true, nil},
		{"JSON, keep-alive", pathJSON, false, json},
		{"JSON, close", pathJSON, true, json},
		{"CPU 1 ms, keep-alive", pathCPU, false, more},
		{"CPU 1 ms, close", pathCPU, true, more},
		{"sleep 10 ms, keep-alive", pathSleep, false, few},
		{"sleep 10 ms, close", pathSleep, true, few},
	}
}

func (w workload) takes(p *peer) bool {
	return p.serves(w.path) && (w.peers == nil || slices.Contains(w.peers, p.name))
}

// cell is one peer under one workload.
type cell struct {
	*server
	workload
}

func measureThroughput(ctx context.Context, b *bench) error {
	servers := b.startAll(ctx, b.peers, b.workers, false)
	defer func() { stopAll(servers) }()
	loads := workloads()
	if b.quick {
		loads = loads[:2]
	}
	var cells []cell
	for _, w := range loads {
		for _, s := range servers {
			if w.takes(s.peer) {
				cells = append(cells, cell{s, w})
				s.client(w.path, w.once).closedLoop(ctx, saturating, b.short(200*time.Millisecond)) // warm-up
			}
		}
	}
	// Of one workload after the other in each round, the peers in another
	// order each time: what is compared is close in time.
	for range b.rounds {
		for _, w := range loads {
			mine := slices.DeleteFunc(slices.Clone(cells), func(c cell) bool { return c.workload.name != w.name })
			interleave(ctx, 1, mine, func(_ int, c cell) { b.throughputOf(ctx, c) })
		}
	}
	for _, s := range servers {
		b.recordMemory(s)
	}
	return ctx.Err()
}

// load saturates s with w for a time. What could not be measured is not a number.
func (b *bench) load(ctx context.Context, s *server, w workload, d time.Duration) outcome {
	out, err := b.saturate(ctx, s, w.path, w.once, saturating, d)
	if err != nil {
		b.note("%s, %s: %v", s.peer.name, w.name, err)
		return outcome{Rate: math.NaN(), P50: math.NaN(), P99: math.NaN(), P999: math.NaN(), Errors: math.NaN()}
	}
	return out
}

func (b *bench) throughputOf(ctx context.Context, c cell) {
	out := b.load(ctx, c.server, c.workload, b.cell)
	add := func(metric string, v float64) {
		b.results.add(key{"throughput", c.workload.name, c.peer.name, metric}, v)
	}
	add("rate", out.Rate)
	add("p50", out.P50)
	add("p99", out.P99)
	add("p99.9", out.P999)
	add("errors", out.Errors)
}

func writeThroughput(d *document, b *bench) {
	d.text(`%d connections that ask again as soon as they are answered: a closed loop that keeps the servers saturated.
The client runs on the same processors. "Close" means a new connection for each request. JSON encodes a small struct.
"CPU 1 ms" is a fixed amount of work that takes a millisecond on a processor of its own, "sleep" waits.`, saturating)
	var names []string
	for _, w := range workloads() {
		names = append(names, w.name)
	}
	d.heading("Requests per second, as a ratio to " + baseline)
	d.text("Median of %d rounds of %v each, and the quartiles. More is better.", b.rounds, b.cell)
	d.ratios("throughput", "rate", names, "%.0f/s")
	d.heading("99th percentile of the latency, as a ratio to " + baseline)
	d.text("Less is better. These are latencies under saturation: they say how long the queue was, and how evenly it was served.")
	d.ratios("throughput", "p99", names, "%.2f ms")
	d.heading("Latency in ms: p50 / p99 / p99.9")
	d.text("Medians of the rounds.")
	d.grid("throughput", names, func(k key) string {
		var values []float64
		for _, metric := range []string{"p50", "p99", "p99.9"} {
			k.Metric = metric
			values = append(values, b.results.of(k).median())
		}
		if math.IsNaN(values[0]) {
			return ""
		}
		return fmt.Sprintf("%.2f / %.2f / %.2f", values[0], values[1], values[2])
	})
	d.complaints("throughput", names)
	d.plot("throughput", "Requests per second, to "+baseline+" = 1 (median, quartiles)",
		ratioBars("throughput", "rate", names, []string{ours, oursOff, controlled, fiberAlone, netHTTP, nginx}))
	d.plot("latency", "99th percentile under saturation, to "+baseline+" = 1 (median, quartiles): less is better",
		ratioBars("throughput", "p99", names, []string{ours, oursOff, controlled, fiberAlone, netHTTP, nginx}))
}

// Of the measure "moderate".
const (
	moderateShare = 0.3  // of what the baseline can do
	moderateMost  = 6000 // requests per second: the client runs here too
	moderateConns = 32
	moderateTime  = 800 * time.Millisecond
)

func moderateLoads() []workload {
	return []workload{{name: "hello, keep-alive", path: pathHello}, {name: "hello, close", path: pathHello, once: true}}
}

func measureModerate(ctx context.Context, b *bench) error {
	servers := b.startAll(ctx, b.named(ours, oursOff, fiberPrefork, fiberAlone), b.workers, false)
	defer func() { stopAll(servers) }()
	for _, w := range moderateLoads() {
		rate := moderateShare * b.results.of(key{"throughput", w.name, baseline, "rate"}).median()
		if !(rate > 0 && rate < moderateMost) {
			rate = moderateMost
		}
		b.results.add(key{"moderate", w.name, "", "asked"}, rate)
		for _, s := range servers {
			s.client(w.path, w.once).openLoop(ctx, moderateConns, rate, b.short(200*time.Millisecond))
		}
		interleave(ctx, b.rounds, servers, func(_ int, s *server) {
			t := s.client(w.path, w.once).openLoop(ctx, moderateConns, rate, b.short(moderateTime))
			for metric, q := range map[string]float64{"p50": 50, "p99": 99, "p99.9": 99.9} {
				b.results.add(key{"moderate", w.name, s.peer.name, metric}, t.percentile(q))
			}
			b.results.add(key{"moderate", w.name, s.peer.name, "errors"}, float64(t.lost()))
		})
	}
	return ctx.Err()
}

func writeModerate(d *document, b *bench) {
	var names []string
	for _, w := range moderateLoads() {
		names = append(names, w.name)
		d.text("%s: %.0f requests per second, on %d connections.", w.name, b.results.of(key{"moderate", w.name, "", "asked"}).median(), moderateConns)
	}
	d.text(`An open loop: requests are due at fixed times (at most %.0f %% of what %s can do), whether or not the one before is answered,
and a late one counts from when it was due.`, 100*moderateShare, baseline)
	d.heading("p99, as a ratio to " + baseline)
	d.ratios("moderate", "p99", names, "%.2f ms")
	d.heading("Latency in ms: p50 / p99 / p99.9, medians")
	d.grid("moderate", names, func(k key) string {
		var values []any
		for _, metric := range []string{"p50", "p99", "p99.9"} {
			k.Metric = metric
			v := b.results.of(k)
			if v.empty() {
				return ""
			}
			values = append(values, v.median())
		}
		return fmt.Sprintf("%.2f / %.2f / %.2f", values...)
	})
	d.complaints("moderate", names)
}
