// Bench measures prefork side by side with others, on loopback, and writes
// what came out as tables and plots.
//
//	go -C bench run . -out ../docs
package main

// The plan, top to bottom: what is asked for, which measures there are, one
// after the other, what is written.

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
)

// measure is a part of the plan, and a chapter of the document.
type measure struct {
	name  string
	title string
	run   func(context.Context, *bench) error
	write func(*document, *bench)
}

// plan is every measure, in the order of the document.
func plan() []measure {
	return []measure{
		{"throughput", "Throughput and latency", measureThroughput, writeThroughput},
		{"duel", "Against Fiber's prefork", measureDuel, writeDuel},
		{"moderate", "Latency when there is room", measureModerate, writeModerate},
		{"tls", "TLS", measureTLS, writeTLS},
		{"few", "Few connections", measureFew, writeFew},
		{"idle", "Many idle connections", measureIdle, writeIdle},
		{"spread", "Spread of connections", measureSpread, writeSpread},
		{"kill", "A child is killed", measureKill, writeKill},
		{"stop", "A child is stopped", measureStop, writeStop},
		{"reload", "Reload", measureReload, writeReload},
		{"shutdown", "Shutdown", measureShutdown, writeShutdown},
		{"orphans", "The master is killed", measureOrphans, writeOrphans},
		{"start", "Start", measureStart, writeStart},
		{"cost", "What it costs", measureCost, writeCost},
	}
}

// bench is one run.
type bench struct {
	out     string
	only    *regexp.Regexp
	rounds  int
	quick   bool
	workers int
	library string // folder of the library, for its own Go benchmark

	dir       string // for scratch files
	mark      string // in the environment of every process that is started
	wrk       string // "" where it is not installed
	script    string // for wrk
	spin      int    // rounds of work that take a millisecond
	cell      time.Duration
	cert, key string
	clientTLS *tls.Config
	ports     nextPort
	peers     []*peer // that are installed
	absent    []*peer
	began     time.Time
	took      map[string]time.Duration
	results   *results

	mu    sync.Mutex
	notes []string
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		if err := serve(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run is a whole run: prepare, measure, write.
func run(ctx context.Context, args []string) (err error) {
	b, err := newBench(args)
	if err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "bench"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if err := b.prepare(); err != nil {
		return err
	}
	defer func() {
		if left := marked(b.mark); len(left) > 0 {
			endAll(left)
			err = errors.Join(err, fmt.Errorf("processes were left behind: %v", left))
		}
	}()

	var done []measure
	for _, m := range plan() {
		if !b.only.MatchString(m.name) {
			continue
		}
		began := time.Now()
		if err := m.run(ctx, b); err != nil {
			b.note("%s: %v", m.name, err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		b.took[m.name] = time.Since(began)
		done = append(done, m)
		fmt.Printf("%-12s %5.1f s\n", m.name, b.took[m.name].Seconds())
	}
	return b.publish(ctx, done)
}

func newBench(args []string) (*bench, error) {
	if runtime.GOOS != "linux" {
		return nil, fmt.Errorf("it reads /proc, and %s has none: run it on Linux", runtime.GOOS)
	}
	b := &bench{began: time.Now(), took: make(map[string]time.Duration), results: newResults()}
	var only string
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&b.out, "out", "", "folder for benchmarks.md and the plots")
	flags.StringVar(&only, "only", "", "measures to run, as a regular expression")
	flags.IntVar(&b.rounds, "rounds", 5, "how often everything is done")
	flags.IntVar(&b.workers, "workers", 2, "children of each peer, and processors of those that are one process")
	flags.BoolVar(&b.quick, "quick", false, "one short round of a few peers: tests this program, measures nothing")
	flags.StringVar(&b.library, "library", "..", "folder of the library, for its own benchmark")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if b.out == "" || flags.NArg() > 0 || b.rounds < 1 || b.workers < 1 {
		return nil, errors.New("usage: bench -out folder [-only measures] [-rounds n] [-workers n] [-quick]")
	}
	var err error
	if b.only, err = regexp.Compile(only); err != nil {
		return nil, fmt.Errorf("-only: %w", err)
	}
	return b, nil
}

// prepare makes what all measures need.
func (b *bench) prepare() error {
	b.mark = fmt.Sprintf("FIBER_PREFORK_BENCH=%d.%d", os.Getpid(), b.began.UnixNano())
	b.cell = 300 * time.Millisecond
	if b.quick {
		b.rounds, b.cell = 1, 200*time.Millisecond
	}
	if path, err := exec.LookPath("wrk"); err == nil && !b.quick {
		b.wrk = path
	}
	for _, p := range newPeers() {
		switch {
		case b.quick && !slices.Contains([]string{ours, oursOff, fiberPrefork}, p.name):
		case p.installed():
			b.peers = append(b.peers, p)
		default:
			b.absent = append(b.absent, p)
		}
	}
	b.spin = calibrate(time.Millisecond)
	var err error
	if b.script, err = writeFile(b.dir, "result.lua", wrkScript); err != nil {
		return err
	}
	if b.cert, b.key, b.clientTLS, err = newCertificate(b.dir); err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	if b.out, err = filepath.Abs(b.out); err != nil {
		return err
	}
	return os.MkdirAll(filepath.Join(b.out, plotFolder), 0o755)
}

// note keeps something that a reader of the results has to know.
func (b *bench) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	fmt.Fprintln(os.Stderr, "note:", text)
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Contains(b.notes, text) {
		b.notes = append(b.notes, text)
	}
}

// named returns the peers with those names that are installed, in that order.
func (b *bench) named(names ...string) []*peer {
	var found []*peer
	for _, name := range names {
		for _, p := range b.peers {
			if p.name == name {
				found = append(found, p)
			}
		}
	}
	return found
}

// those returns the installed peers for which keep holds, without the control.
func (b *bench) those(keep func(*peer) bool) []*peer {
	var found []*peer
	for _, p := range b.peers {
		if keep(p) && !p.control {
			found = append(found, p)
		}
	}
	return found
}

// interleave does something with each of some things in each round, in another
// order each time. It stops early when everything ends.
func interleave[T any](ctx context.Context, rounds int, things []T, do func(round int, thing T)) {
	for round := range rounds {
		for _, i := range rand.Perm(len(things)) {
			if ctx.Err() != nil {
				return
			}
			do(round, things[i])
		}
	}
}

// short is d, and less in a quick run.
func (b *bench) short(d time.Duration) time.Duration {
	if b.quick {
		return d / 5
	}
	return d
}
