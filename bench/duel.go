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

// Of the measure "duel": two servers of the same kind differ by some percent as
// long as they live, by where their memory happens to be. So they are started
// anew, and each start is one sample.
const duelStarts = 2 // for each of the rounds of other measures

// duelAll is the geometric mean of the workloads, of one start.
const duelAll = "all six"

// duelRounds says how many rounds there are in each start, and how long one is.
// A load differs from the next by how its connections fell, not by how long it
// takes: many short rounds say more than a few long ones. With work in it,
// answers take a while.
func duelRounds(w workload) (rounds int, each time.Duration) {
	if w.path == pathCPU {
		return 1, 500 * time.Millisecond
	}
	return 4, 100 * time.Millisecond
}

func duelLoads() []workload {
	return slices.DeleteFunc(workloads(), func(w workload) bool { return w.path == pathSleep })
}

func measureDuel(ctx context.Context, b *bench) error {
	starts, loads := duelStarts*b.rounds, duelLoads()
	if b.quick {
		starts, loads = 1, loads[:1]
	}
	peers := b.named(ours, fiberPrefork, controlled)
	for range starts {
		servers := b.startAll(ctx, peers, b.workers, false)
		if len(servers) < len(peers) { // it is in the notes; a sample of one start is compared with those of the same
			stopAll(servers)
			continue
		}
		for _, s := range servers {
			s.client(pathHello, false).closedLoop(ctx, saturating, b.short(200*time.Millisecond)) // warm-up
		}
		together := make(map[key]float64) // sums of logarithms
		for _, w := range loads {
			rounds, each := duelRounds(w)
			outcomes := make(map[string][]outcome)
			interleave(ctx, rounds, servers, func(_ int, s *server) {
				outcomes[s.peer.name] = append(outcomes[s.peer.name], b.load(ctx, s, w, each))
			})
			for _, s := range servers {
				var rates, tails, errors samples
				for _, out := range outcomes[s.peer.name] {
					rates, tails, errors = append(rates, out.Rate), append(tails, out.P99), append(errors, out.Errors)
				}
				b.results.add(key{"duel", w.name, s.peer.name, "rate"}, rates.mean())
				b.results.add(key{"duel", w.name, s.peer.name, "p99"}, tails.mean())
				b.results.add(key{"duel", w.name, s.peer.name, "errors"}, errors.sum())
				together[key{"duel", duelAll, s.peer.name, "rate"}] += math.Log(rates.mean())
				together[key{"duel", duelAll, s.peer.name, "p99"}] += math.Log(tails.mean())
			}
		}
		for k, sum := range together {
			b.results.add(k, math.Exp(sum/float64(len(loads))))
		}
		stopAll(servers)
	}
	return ctx.Err()
}

func writeDuel(d *document, b *bench) {
	d.text(`The workloads that saturate the servers once more, with servers that are started anew: %d times, with four short rounds in each, or a longer one of those that compute.
A sample is what one start gave: servers of the same kind differ as long as they live, by where their memory happens to be.
The mean here is the geometric one, and what is in parentheses is where it lies with a confidence of 95 %%.`,
		duelStarts*b.rounds)
	names := []string{duelAll}
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
			switch {
			case k.Peer == baseline && k.Case == duelAll:
				return "1"
			case k.Peer == baseline:
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
