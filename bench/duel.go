package main

// Measure "duel": the two servers whose difference is smaller than what a
// machine's moods make of a few rounds.

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"
)

const duelRounds = 30 // where other measures have 5

// duelTime is how long a round is: with work in it, answers take a while.
func duelTime(w workload) time.Duration {
	if w.path == pathCPU {
		return 300 * time.Millisecond
	}
	return 120 * time.Millisecond
}

func duelLoads() []workload {
	return slices.DeleteFunc(workloads(), func(w workload) bool { return w.path == pathSleep })
}

func (b *bench) duelRounds(w workload) int {
	rounds := max(1, duelRounds*b.rounds/5)
	if w.path == pathCPU {
		rounds = max(1, rounds/2)
	}
	return rounds
}

func measureDuel(ctx context.Context, b *bench) error {
	servers := b.startAll(ctx, b.named(ours, fiberPrefork, controlled), b.workers, false)
	defer func() { stopAll(servers) }()
	loads := duelLoads()
	if b.quick {
		loads = loads[:1]
	}
	usual := b.cell
	defer func() { b.cell = usual }()
	for _, w := range loads {
		mine := slices.DeleteFunc(slices.Clone(servers), func(s *server) bool { return !s.peer.serves(w.path) })
		b.cell = duelTime(w)
		for _, s := range mine {
			s.client(w.path, w.once).closedLoop(ctx, saturating, b.short(200*time.Millisecond)) // warm-up
		}
		interleave(ctx, b.duelRounds(w), mine, func(_ int, s *server) {
			out, err := b.saturate(ctx, s, w.path, w.once, saturating)
			if err != nil {
				b.note("%s, %s: %v", s.peer.name, w.name, err)
				out = outcome{Rate: math.NaN(), P99: math.NaN()}
			}
			b.results.add(key{"duel", w.name, s.peer.name, "rate"}, out.Rate)
			b.results.add(key{"duel", w.name, s.peer.name, "p99"}, out.P99)
			b.results.add(key{"duel", w.name, s.peer.name, "errors"}, out.Errors)
		})
	}
	return ctx.Err()
}

func writeDuel(d *document, b *bench) {
	d.text(`The workloads that saturate the servers once more, with more rounds: %d, and %d of those that compute.
The mean here is the geometric one, and what is in parentheses is where it lies with a confidence of 95 %%.`,
		b.duelRounds(workload{}), b.duelRounds(workload{path: pathCPU}))
	var names []string
	for _, w := range duelLoads() {
		names = append(names, w.name)
	}
	for _, m := range []struct{ metric, title, format string }{
		{"rate", "Requests per second: mean, as a ratio to " + baseline, "%.0f/s"},
		{"p99", "99th percentile of the latency: mean, as a ratio to " + baseline, "%.2f ms"},
	} {
		d.heading(m.title)
		d.grid("duel", names, func(k key) string {
			k.Metric = m.metric
			if k.Peer == baseline {
				return single("1 = "+m.format, d.results.of(k).median())
			}
			ratios := d.results.ratios(k)
			if ratios.empty() {
				return ""
			}
			mean, low, high := ratios.estimate()
			return fmt.Sprintf("**%.2f** (%.2f–%.2f)", mean, low, high)
		})
	}
	d.complaints("duel", names)
}
