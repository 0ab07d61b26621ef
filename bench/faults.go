package main

// Measures "kill", "stop", "reload", "shutdown" and "orphans": what clients
// lose when something happens to the processes. The clients never try again.

import (
	"context"
	"fmt"
	"math"
	"sync"
	"syscall"
	"time"
)

// kinds of errors, in the order of the tables.
func kinds() []string { return []string{"refused", "reset", "closed", "timeout", "status", "other"} }

// kill is what is killed, under which load.
type kill struct {
	name    string
	clients int
	all     bool // children at once, else one after the other
	rounds  int  // times b.rounds
	peers   []string
}

func kills() []kill {
	peers := []string{ours, oursOff, fiberPrefork, fastShared, nginx, puma}
	return []kill{
		{name: "one child, 8 clients", clients: 8, rounds: 2, peers: peers},
		{name: "one child, 64 clients", clients: 64, rounds: 1, peers: peers},
		{name: "all children, 8 clients", clients: 8, all: true, rounds: 1, peers: peers},
	}
}

const (
	beforeFault = 150 * time.Millisecond
	afterFault  = 150 * time.Millisecond
	fullLimit   = 4 * time.Second
)

// withMaster are the peers that have children to kill.
func (b *bench) withMaster() []*peer {
	return b.those(func(p *peer) bool { return p.master })
}

func measureKill(ctx context.Context, b *bench) error {
	list := kills()
	if b.quick {
		list = list[:1]
	}
	for _, k := range list {
		rounds := b.rounds * k.rounds
		if b.quick {
			rounds = 1
		}
		interleave(ctx, rounds, b.named(k.peers...), func(_ int, p *peer) {
			if err := b.killOf(ctx, p, k); err != nil {
				b.note("kill, %s, %s: %v", k.name, p.name, err)
			}
		})
	}
	return ctx.Err()
}

// killOf starts a server, loads it, and kills its first children: all at once
// or two of them, the second when the first is replaced.
func (b *bench) killOf(ctx context.Context, p *peer, k kill) error {
	s, err := b.start(ctx, p, b.workers, false)
	if err != nil {
		return err
	}
	defer s.stop()
	l := s.client(pathPID, true).begin(ctx, k.clients)
	defer func() { l.stop() }()
	known := make(map[int]bool)
	for _, pid := range s.workers {
		known[pid] = true
	}
	pause(ctx, beforeFault)
	if k.all {
		return b.killNow(ctx, s, l, k, s.workers, known)
	}
	for _, pid := range s.workers[:min(2, len(s.workers))] {
		if err := b.killNow(ctx, s, l, k, []int{pid}, known); err != nil {
			return err
		}
	}
	return nil
}

// killNow kills pids and waits until as many that are not known have answered.
func (b *bench) killNow(ctx context.Context, s *server, l *load, k kill, pids []int, known map[int]bool) error {
	add := func(metric string, v float64) { b.results.add(key{"kill", k.name, s.peer.name, metric}, v) }
	before, lost := make(map[string]int), l.lost()
	for _, kind := range kinds() {
		before[kind] = l.kind(kind)
	}
	l.restartGap()
	began := time.Now()
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return fmt.Errorf("kill %d: %w", pid, err)
		}
	}
	full := math.NaN()
	var fresh []time.Time
	for time.Since(began) < fullLimit && ctx.Err() == nil {
		if fresh = l.newcomers(known); len(fresh) >= len(pids) {
			full = milliseconds(fresh[len(pids)-1].Sub(began))
			break
		}
		time.Sleep(time.Millisecond)
	}
	pause(ctx, afterFault)
	add("lost", float64(l.lost()-lost))
	for _, kind := range kinds() {
		add(kind, float64(l.kind(kind)-before[kind]))
	}
	add("full", full)
	add("gap", milliseconds(l.longestGap(time.Now())))
	l.mu.Lock()
	for pid := range l.first {
		known[pid] = true
	}
	l.mu.Unlock()
	if math.IsNaN(full) {
		return fmt.Errorf("not at full strength %v after the kill", fullLimit)
	}
	return nil
}

// errorKinds is how a table says which errors there were.
func (d *document) errorKinds(measure, name, peer string) string {
	out := ""
	for _, kind := range kinds() {
		if n := d.results.of(key{measure, name, peer, kind}).sum(); n > 0 {
			if out != "" {
				out += ", "
			}
			out += fmt.Sprintf("%s %.0f", kind, n)
		}
	}
	return out
}

func writeKill(d *document, b *bench) {
	d.text(`SIGKILL of a child, under load: clients that ask as fast as they are answered, on a new connection each time, and never try again.
With 8 clients two children of %d fresh servers are killed, one after the other, with 64 of %d. Lost are requests without an answer,
of those that were sent before the kill or after it. The gap is the longest time in which no client at all got an answer. Full strength is when
as many new processes have answered as were killed, counted from the kill. Fiber's and fasthttp's prefork have got a RecoverThreshold that is never
reached: with their default the second kill ends the service on two CPUs.`, 2*b.rounds, b.rounds)
	var names []string
	for _, k := range kills() {
		names = append(names, k.name)
		d.heading(k.name)
		d.table([]string{"", "lost per kill", "mean", "by kind, all kills", "longest gap, ms", "full strength after, ms"},
			d.eachPeer("kill", []string{k.name}, func(peer string) []string {
				lost := b.results.of(key{"kill", k.name, peer, "lost"})
				return []string{
					spread("%.0f", lost), fmt.Sprintf("%.1f", lost.mean()), d.errorKinds("kill", k.name, peer),
					spread("%.0f", b.results.of(key{"kill", k.name, peer, "gap"})), spread("%.0f", b.results.of(key{"kill", k.name, peer, "full"})),
				}
			}))
	}
	d.plot("kill", "Requests lost when a child is killed (median, least, most)",
		valueBars("kill", "lost", names, []string{ours, oursOff, fiberPrefork, fastShared, nginx, puma, gunicorn}))
}

const (
	stopTime  = 3 * time.Second
	stopRate  = 100 // requests per second that are begun, whatever becomes of those before
	stopLead  = 200 * time.Millisecond
	stopLimit = 2 * time.Second // of a request
)

func measureStop(ctx context.Context, b *bench) error {
	together(ctx, b, b.withMaster(), b.workers, func(s *server, ready func()) { b.stopOf(ctx, s, ready) })
	return ctx.Err()
}

// lookTime is how often some peers' children look whether their master lives.
// The rounds begin at moments that are spread over it.
const lookTime = 500 * time.Millisecond

// together starts all peers, and does something with all of them at the same
// time, in each round anew. It is for what waits and does not work. What each
// of them prepares before it calls ready is over before any goes on.
func together(ctx context.Context, b *bench, peers []*peer, workers int, do func(s *server, ready func())) {
	for round := range b.rounds {
		if ctx.Err() != nil {
			return
		}
		servers := b.startAll(ctx, peers, workers, false)
		pause(ctx, lookTime*time.Duration(2*round+1)/time.Duration(2*b.rounds))
		var prepared, all sync.WaitGroup
		prepared.Add(len(servers))
		for _, s := range servers {
			all.Go(func() {
				do(s, func() {
					prepared.Done()
					prepared.Wait()
				})
			})
		}
		all.Wait()
		stopAll(servers)
	}
}

func (b *bench) stopOf(ctx context.Context, s *server, ready func()) {
	add := func(metric string, v float64) {
		b.results.add(key{"stop", "one child", s.peer.name, metric}, v)
	}
	c := s.client(pathPID, true)
	c.timeout = stopLimit
	t := newTally()
	victim := s.workers[0]
	ready()
	length := b.short(stopTime)
	began := time.Now()
	stopped, over := began.Add(stopLead), began.Add(stopLead+length)
	var all sync.WaitGroup
	resume := sync.OnceFunc(func() { _ = syscall.Kill(victim, syscall.SIGCONT) })
	defer resume()
	sent := 0
	for i := 0; ctx.Err() == nil; i++ {
		at := began.Add(time.Duration(i) * time.Second / stopRate)
		if at.After(over) {
			break
		}
		pause(ctx, time.Until(at))
		if !stopped.IsZero() && time.Now().After(stopped) {
			_ = syscall.Kill(victim, syscall.SIGSTOP)
			stopped = time.Time{}
		}
		if stopped.IsZero() {
			sent++
		}
		all.Go(func() {
			asked := time.Now()
			pid, err := c.pid(ctx)
			if err != nil {
				t.failed(err)
				return
			}
			now := time.Now()
			t.answered(now, now.Sub(asked), pid, false)
		})
	}
	resume()
	all.Wait()
	add("lost", float64(t.lost()))
	add("sent", float64(sent))
	add("p99", t.percentile(99))
	add("slowest", float64(t.latency.Max())/1000)
	for _, kind := range kinds() {
		add(kind, float64(t.kind(kind)))
	}
}

func writeStop(d *document, b *bench) {
	d.text(`SIGSTOP of one of %d children for %v: it does not run, and nobody has told its master. %d requests per second, each on a new connection,
are sent by clients that wait %v for an answer. All peers at the same time: hardly anything runs.`, b.workers, stopTime, stopRate, stopLimit)
	d.table([]string{"", "not answered", "of", "by kind, all rounds", "slowest answer, ms", "p99 of the answers, ms"},
		d.eachPeer("stop", []string{"one child"}, func(peer string) []string {
			of := func(metric string) samples { return b.results.of(key{"stop", "one child", peer, metric}) }
			return []string{
				spread("%.0f", of("lost")), fmt.Sprintf("%.0f", of("sent").median()), d.errorKinds("stop", "one child", peer),
				spread("%.0f", of("slowest")), spread("%.0f", of("p99")),
			}
		}))
}

const (
	reloadLimit = 6 * time.Second
	reloadKeep  = 8 // clients that keep their connections
	reloadClose = 8 // clients that open new ones
)

func measureReload(ctx context.Context, b *bench) error {
	peers := b.those(func(p *peer) bool { return p.reload != 0 && p.name != oursOff })
	interleave(ctx, b.rounds, peers, func(_ int, p *peer) {
		if err := b.reloadOf(ctx, p); err != nil {
			b.note("reload, %s: %v", p.name, err)
		}
	})
	return ctx.Err()
}

func (b *bench) reloadOf(ctx context.Context, p *peer) error {
	s, err := b.start(ctx, p, b.workers, false)
	if err != nil {
		return err
	}
	defer s.stop()
	old := make(map[int]bool)
	for _, pid := range s.workers {
		old[pid] = true
	}
	l := s.client(pathPID, true).begin(ctx, reloadClose)
	s.client(pathPID, false).onto(ctx, l, reloadKeep)
	pause(ctx, beforeFault)
	before := l.lost()
	l.restartGap()
	began := time.Now()
	if err := syscall.Kill(s.pid(), p.reload); err != nil {
		l.stop()
		return err
	}
	over := math.NaN()
	for time.Since(began) < reloadLimit && ctx.Err() == nil {
		fresh, last := l.newcomers(old), l.lastOf(old)
		if len(fresh) >= b.workers && time.Since(last) > 2*afterFault {
			over = milliseconds(last.Sub(began))
			over = max(over, milliseconds(fresh[b.workers-1].Sub(began)))
			break
		}
		time.Sleep(2 * time.Millisecond)
	}
	gap := l.longestGap(time.Now())
	l.stop()
	add := func(metric string, v float64) { b.results.add(key{"reload", "reload", p.name, metric}, v) }
	add("lost", float64(l.lost()-before))
	for _, kind := range kinds() {
		add(kind, float64(l.kind(kind)))
	}
	add("answered", float64(l.ok))
	add("over", over)
	add("gap", milliseconds(gap))
	if math.IsNaN(over) {
		return fmt.Errorf("not over after %v", reloadLimit)
	}
	return nil
}

func writeReload(d *document, b *bench) {
	d.text(`A reload while %d clients ask on keep-alive connections and %d on a new one each time, as fast as they are answered.
It is SIGHUP for prefork, nginx and gunicorn, SIGUSR1 (a phased restart) for puma. Fiber, fasthttp and net/http have none.
It is over when all new processes have answered and the old ones do not any more.`, reloadKeep, reloadClose)
	d.table([]string{"", "lost", "by kind, all rounds", "answered meanwhile", "longest gap, ms", "over after, ms"},
		d.eachPeer("reload", []string{"reload"}, func(peer string) []string {
			of := func(metric string) samples { return b.results.of(key{"reload", "reload", peer, metric}) }
			return []string{
				spread("%.0f", of("lost")), d.errorKinds("reload", "reload", peer), fmt.Sprintf("%.0f", of("answered").median()),
				spread("%.0f", of("gap")), spread("%.0f", of("over")),
			}
		}))
}

const (
	inFlight   = 20
	endLimit   = 2 * time.Second
	inFlightAt = 100 * time.Millisecond // after they were sent
)

// inFlightOf sends slow requests, does something, and counts the answers.
func (s *server) inFlightOf(ctx context.Context, do func()) (answered int, t *tally) {
	c := s.client(pathSlow, true)
	c.timeout = endLimit
	t = newTally()
	var all sync.WaitGroup
	for range inFlight {
		all.Go(func() {
			if _, _, err := c.single(ctx); err != nil {
				t.failed(err)
				return
			}
			t.answered(time.Now(), slowTime, 0, false)
		})
	}
	pause(ctx, inFlightAt)
	do()
	all.Wait()
	return t.ok, t
}

func measureShutdown(ctx context.Context, b *bench) error {
	peers := b.those(func(p *peer) bool { return p.serves(pathSlow) })
	together(ctx, b, peers, b.workers, func(s *server, ready func()) {
		ready()
		add := func(metric string, v float64) { b.results.add(key{"shutdown", "SIGTERM", s.peer.name, metric}, v) }
		began := time.Now()
		answered, t := s.inFlightOf(ctx, func() {
			began = time.Now()
			_ = syscall.Kill(s.pid(), syscall.SIGTERM)
		})
		add("answered", float64(answered))
		for _, kind := range kinds() {
			add(kind, float64(t.kind(kind)))
		}
		gone := waitGone(s.processes(), endLimit-time.Since(began))
		if !gone {
			b.note("shutdown, %s: processes were left after %v", s.peer.name, endLimit)
			add("ended", math.NaN())
			return
		}
		add("ended", milliseconds(time.Since(began)))
	})
	return ctx.Err()
}

func writeShutdown(d *document, b *bench) {
	d.text(`%d requests that take %v are %v old when the process that was started (the master, if there is one) gets SIGTERM. fiber without prefork and net/http
drain because their main calls Shutdown and waits for it; the others do what they do by themselves.
With Fiber's and fasthttp's prefork the master just dies, and its children notice when they look for it the next time, which they do every %v: the moments of the signal
are spread over that time. All peers at the same time.`,
		inFlight, slowTime, inFlightAt, lookTime)
	d.table([]string{"", fmt.Sprintf("answered, of %d", inFlight), "by kind, all rounds", "all processes gone after, ms"},
		d.eachPeer("shutdown", []string{"SIGTERM"}, func(peer string) []string {
			of := func(metric string) samples { return b.results.of(key{"shutdown", "SIGTERM", peer, metric}) }
			return []string{spread("%.0f", of("answered")), d.errorKinds("shutdown", "SIGTERM", peer), spread("%.0f", of("ended"))}
		}))
	d.plot("shutdown", fmt.Sprintf("Of %d requests in flight, answered (median, least, most)", inFlight), func(r *results) *bars {
		chart := newBars([]string{"SIGTERM to the master", "SIGKILL to the master"}, []string{ours, fiberPrefork, fiberAlone, netHTTP, fastShared, puma, gunicorn})
		chart.fill(func(group, peer string) samples {
			if group == "SIGTERM to the master" {
				return r.of(key{"shutdown", "SIGTERM", peer, "answered"})
			}
			return r.of(key{"orphans", "busy", peer, "answered"})
		})
		return chart
	})
}

func measureOrphans(ctx context.Context, b *bench) error {
	for _, name := range []string{"idle", "busy"} {
		together(ctx, b, b.withMaster(), b.workers, func(s *server, ready func()) {
			if name == "busy" && !s.peer.serves(pathSlow) {
				ready()
				return
			}
			ready()
			add := func(metric string, v float64) { b.results.add(key{"orphans", name, s.peer.name, metric}, v) }
			began := time.Now()
			end := func() {
				began = time.Now()
				_ = syscall.Kill(s.pid(), syscall.SIGKILL)
			}
			if name == "busy" {
				answered, _ := s.inFlightOf(ctx, end)
				add("answered", float64(answered))
			} else {
				end()
			}
			gone := waitGone(s.workers, endLimit-time.Since(began))
			took := milliseconds(time.Since(began))
			if !gone {
				took = math.Inf(1)
			}
			add("gone", took)
		})
	}
	return ctx.Err()
}

func writeOrphans(d *document, b *bench) {
	d.text(`SIGKILL of the master. Children without one are a danger: nobody replaces them, and they hold the port. "Idle" is how long they live on
when they have nothing to do, "busy" with %d requests that take %v in flight, which they may finish. All peers at the same time.`, inFlight, slowTime)
	d.table([]string{"", "idle: gone after, ms", "busy: gone after, ms", fmt.Sprintf("busy: answered, of %d", inFlight)},
		d.eachPeer("orphans", []string{"idle", "busy"}, func(peer string) []string {
			of := func(name, metric string) string {
				v := b.results.of(key{"orphans", name, peer, metric})
				if len(v) > 0 && v.empty() {
					return fmt.Sprintf("not within %v", endLimit)
				}
				return spread("%.0f", v)
			}
			return []string{of("idle", "gone"), of("busy", "gone"), of("busy", "answered")}
		}))
}
