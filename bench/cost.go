package main

// Measures "start" and "cost": how long until it serves, what it uses, what
// the library adds to a request.

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"
)

const startTries = 20

func measureStart(ctx context.Context, b *bench) error {
	tries := max(startTries, 4*b.rounds)
	if b.quick {
		tries = 1
	}
	interleave(ctx, tries, b.named(ours, oursOff, fiberPrefork, fiberAlone, fastReuse, fastShared, nginx), func(_ int, p *peer) {
		s, err := b.start(ctx, p, b.workers, false)
		if err != nil {
			b.note("start: %v", err)
			return
		}
		s.stop()
		b.results.add(key{"start", "first", p.name, "ms"}, milliseconds(s.firstAnswer))
		b.results.add(key{"start", "all", p.name, "ms"}, milliseconds(s.allAnswer))
	})
	return ctx.Err()
}

func writeStart(d *document, b *bench) {
	d.text(`From the start of the program to the first answer, and until each of %d children has answered, found from outside with one new connection
after the other. %d starts. A kernel that goes by a hash sends some of them to the same child again: that is in the numbers.`, b.workers, max(startTries, 4*b.rounds))
	d.table([]string{"", "first answer, ms", "all answer, ms", "all answer, ratio"},
		d.eachPeer("start", []string{"first", "all"}, func(peer string) []string {
			all := key{"start", "all", peer, "ms"}
			return []string{
				spread("%.0f", b.results.of(key{"start", "first", peer, "ms"})), spread("%.0f", b.results.of(all)),
				middle(b.results.ratios(all)),
			}
		}))
}

// recordMemory notes what a server uses after its load.
func (b *bench) recordMemory(s *server) {
	if s.hasExited() || s.peer.control {
		return
	}
	add := func(name string, pid int) {
		rss, pss := memory(pid)
		b.results.add(key{"cost", name, s.peer.name, "rss"}, rss)
		b.results.add(key{"cost", name, s.peer.name, "pss"}, pss)
		b.results.add(key{"cost", name, s.peer.name, "files"}, float64(descriptors(pid)))
	}
	for _, pid := range s.workers {
		add("child", pid)
	}
	if s.peer.master {
		add("master", s.pid())
	}
}

const idleTime = 5 * time.Second

// measureCost is the rest of it: the memory, and the work of the master, are
// taken while the throughput is measured.
func measureCost(ctx context.Context, b *bench) error {
	servers := b.startAll(ctx, b.those(func(*peer) bool { return true }), b.workers, false)
	defer func() { stopAll(servers) }()
	pause(ctx, b.short(time.Second)) // what they do after their start
	for range max(1, b.rounds/5) {
		before := make(map[int]time.Duration)
		for _, s := range servers {
			for _, pid := range s.processes() {
				before[pid] = cpuTime(pid)
			}
		}
		began := time.Now()
		pause(ctx, b.short(idleTime))
		for _, s := range servers {
			var sum time.Duration
			for _, pid := range s.processes() {
				sum += cpuTime(pid) - before[pid]
			}
			b.results.add(key{"cost", "idle", s.peer.name, "share"}, 100*float64(sum)/float64(time.Since(began)))
		}
	}
	b.measureMasters(ctx, servers)
	if err := b.libraryBenchmark(ctx); err != nil {
		b.note("what the library adds to a request was not measured: %v", err)
	}
	return ctx.Err()
}

// trickles are connections per second that are far from what a server can do:
// a master that they wake has nobody to hide behind.
var trickles = []int{10, 100, 1000}

const (
	trickleTime = 500 * time.Millisecond
	flood       = "saturated"
	floodTime   = time.Second
)

// measureMasters is what the master does, with steering and without, while
// connections come that are used once.
func (b *bench) measureMasters(ctx context.Context, servers []*server) {
	servers = slices.DeleteFunc(slices.Clone(servers), func(s *server) bool {
		return s.peer.name != ours && s.peer.name != oursOff
	})
	work := func(s *server, name string, load func()) (master time.Duration) {
		before, began := cpuTime(s.pid()), time.Now()
		load()
		master = cpuTime(s.pid()) - before
		b.results.add(key{"cost", "master", s.peer.name, name}, 100*float64(master)/float64(time.Since(began)))
		return master
	}
	for range b.rounds {
		for _, rate := range trickles {
			interleave(ctx, 1, servers, func(_ int, s *server) {
				work(s, strconv.Itoa(rate), func() {
					s.client(pathHello, true).openLoop(ctx, 4, float64(rate), b.short(trickleTime))
				})
			})
		}
		interleave(ctx, 1, servers, func(_ int, s *server) {
			var out outcome
			master := work(s, flood, func() {
				out = b.load(ctx, s, workload{name: flood, path: pathHello, once: true}, b.short(floodTime))
			})
			if out.Count > 0 {
				b.results.add(key{"cost", "master", s.peer.name, "per million"}, milliseconds(master)/out.Count*1e6)
			}
		})
	}
}

// The library's own benchmarks of what it adds.
const (
	added       = "prefork"
	addedSilent = "prefork-silent"
)

var (
	benchmarkLine = regexp.MustCompile(`BenchmarkAdded/(prefork|prefork-silent)(?:-\d+)?\s+\d+\s+([\d.]+) ns/op\s+([\d.]+) B/op\s+([\d.]+) allocs/op`)
	benchmarkTime = "300ms"
)

// libraryBenchmark runs the library's own benchmark, once in each round.
func (b *bench) libraryBenchmark(ctx context.Context) error {
	binary := filepath.Join(b.dir, "library.test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", binary, ".")
	build.Dir = b.library
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go test -c: %w: %s", err, bytes.TrimSpace(out))
	}
	length := benchmarkTime
	if b.quick {
		length = "10x"
	}
	for range b.rounds {
		limit, cancel := context.WithTimeout(ctx, time.Minute)
		cmd := exec.CommandContext(limit, binary, "-test.run", "^$", "-test.bench", "^BenchmarkAdded$", "-test.benchmem", "-test.benchtime", length)
		cmd.Dir = b.library
		out, err := cmd.CombinedOutput()
		cancel()
		if err != nil {
			return fmt.Errorf("BenchmarkAdded: %w: %s", err, bytes.TrimSpace(out))
		}
		found := benchmarkLine.FindAllSubmatch(out, -1)
		if len(found) == 0 {
			return fmt.Errorf("no BenchmarkAdded in %s", b.library)
		}
		for _, match := range found {
			for i, metric := range []string{"ns", "bytes", "allocs"} {
				v, err := strconv.ParseFloat(string(match[2+i]), 64)
				if err != nil {
					return err
				}
				b.results.add(key{"cost", "request", string(match[1]), metric}, v)
			}
		}
	}
	return nil
}

func writeCost(d *document, b *bench) {
	d.heading("The master's work while connections come")
	d.text(`Processor time of the master in percent of a core, while so many connections per second come, with one request each ("saturated": as many as are
answered, in %v), and per million connections then. The master has nothing to do with a connection: what is there is what it does meanwhile.`, floodTime)
	header := []string{""}
	for _, rate := range trickles {
		header = append(header, strconv.Itoa(rate)+"/s")
	}
	d.table(append(header, flood, "ms per million"), d.eachPeer("cost", []string{"master"}, func(peer string) []string {
		of := func(metric string) samples { return b.results.of(key{"cost", "master", peer, metric}) }
		if of(flood).empty() {
			return nil
		}
		var out []string
		for _, rate := range trickles {
			out = append(out, spread("%.2f", of(strconv.Itoa(rate))))
		}
		return append(out, spread("%.2f", of(flood)), spread("%.1f", of("per million")))
	}))
	d.heading("Idle")
	d.text("Processor time of all processes of a server that nobody asks, in percent of a core, over %v.", idleTime)
	d.table([]string{"", "% of a core"}, d.eachPeer("cost", []string{"idle"}, func(peer string) []string {
		v := b.results.of(key{"cost", "idle", peer, "share"})
		if v.empty() {
			return nil
		}
		return []string{spread("%.3f", v)}
	}))
	d.heading("Memory and files")
	d.text(`MiB after the load of "Throughput and latency", and open descriptors. RSS counts pages that processes share in each of them, PSS divides them.
A peer without a master is one process, in the columns of the child. "All" is the PSS of all processes.`)
	d.table([]string{"", "child RSS", "child PSS", "child files", "master RSS", "master PSS", "master files", "all"},
		d.eachPeer("cost", []string{"child"}, func(peer string) []string {
			of := func(name, metric string) samples { return b.results.of(key{"cost", name, peer, metric}) }
			if of("child", "rss").empty() {
				return nil
			}
			out := make([]string, 0, 7)
			for _, name := range []string{"child", "master"} {
				out = append(out, single("%.1f", of(name, "rss").median()), single("%.1f", of(name, "pss").median()), single("%.0f", of(name, "files").median()))
			}
			return append(out, single("%.1f", of("child", "pss").sum()+of("master", "pss").sum()))
		}))
	d.heading("What the library adds to a request")
	d.text("`go test -bench BenchmarkAdded/`: what is called before and after the handler of a request. \"Beside a silent one\": while another connection is open on which nothing was asked.")
	var rows [][]string
	for _, c := range []struct{ name, title string }{{added, "a request"}, {addedSilent, "beside a silent one"}} {
		of := func(metric string) samples { return b.results.of(key{"cost", "request", c.name, metric}) }
		if of("ns").empty() {
			d.text("Not measured.")
			return
		}
		rows = append(rows, []string{c.title, spread("%.0f", of("ns")), spread("%.0f", of("bytes")), spread("%.0f", of("allocs"))})
	}
	d.table([]string{"", "ns", "bytes allocated", "allocations"}, rows)
}

// single is a number for a table, or nothing.
func single(format string, v float64) string {
	if math.IsNaN(v) {
		return ""
	}
	return fmt.Sprintf(format, v)
}
