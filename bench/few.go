package main

// Measures "few", "idle" and "spread": what it means how connections fall on
// children.

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// crowd is a number of connections on a number of children.
type crowd struct {
	connections int
	children    int
	during      time.Duration // in which they arrive
}

func (c crowd) String() string { return fmt.Sprintf("%d on %d", c.connections, c.children) }

const (
	fewTries = 10
	twoTries = 20                   // of two connections: either on one child or not
	fewGap   = 5 * time.Millisecond // between the connections of a try
	fewTime  = 200 * time.Millisecond
)

func fewCrowds() []crowd {
	return []crowd{
		{connections: 1, children: 2},
		{connections: 2, children: 2},
		{connections: 4, children: 2},
		{connections: 8, children: 2},
		{connections: 2, children: 4},
		{connections: 4, children: 4},
		{connections: 8, children: 4},
	}
}

func measureFew(ctx context.Context, b *bench) error {
	tries, crowds := max(fewTries, 2*b.rounds), fewCrowds()
	if b.quick {
		tries, crowds = 1, crowds[1:2]
	}
	for _, children := range []int{2, 4} {
		mine := slices.DeleteFunc(slices.Clone(crowds), func(c crowd) bool { return c.children != children })
		if len(mine) == 0 {
			continue
		}
		names := []string{ours, oursOff, fiberPrefork}
		if children == b.workers {
			names = append(names, fiberAlone)
		}
		servers := b.startAll(ctx, b.named(names...), children, false)
		for _, s := range servers { // warm-up
			s.client(pathCPU, false).closedLoop(ctx, 8, b.short(200*time.Millisecond))
		}
		for _, c := range mine {
			n := tries
			if c.connections == 2 && !b.quick {
				n = max(n, twoTries)
			}
			interleave(ctx, n, servers, func(_ int, s *server) {
				rate, err := s.fewOf(ctx, c.connections)
				if err != nil {
					b.note("few, %v, %s: %v", c, s.peer.name, err)
				}
				b.results.add(key{"few", c.String(), s.peer.name, "rate"}, rate)
			})
		}
		stopAll(servers)
	}
	return ctx.Err()
}

// fewOf opens connections one after the other and measures what they get.
func (s *server) fewOf(ctx context.Context, count int) (float64, error) {
	c := s.client(pathCPU, false)
	conns, err := c.open(ctx, count, fewGap)
	if err != nil {
		return 0, err
	}
	l := &load{tally: newTally(), stopped: make(chan struct{})}
	began := time.Now()
	for _, conn := range conns {
		l.workers.Go(func() { c.work(ctx, l, conn, nil) })
	}
	pause(ctx, fewTime)
	l.stop()
	rate := float64(l.ok) / time.Since(began).Seconds()
	if n := l.lost(); n > 0 {
		return rate, fmt.Errorf("%d requests were not answered", n)
	}
	return rate, nil
}

// open opens connections one after the other. All are used once.
func (c *client) open(ctx context.Context, count int, gap time.Duration) ([]*connection, error) {
	var conns []*connection
	for i := range count {
		conn, err := c.dial(ctx, time.Now().Add(c.timeout))
		if err == nil {
			conns = append(conns, conn)
			_, err = c.ask(conn)
		}
		if err != nil {
			closeAll(conns)
			return nil, err
		}
		if i < count-1 {
			pause(ctx, gap)
		}
	}
	return conns, nil
}

func closeAll(conns []*connection) {
	for _, conn := range conns {
		_ = conn.Close()
	}
}

func writeFew(d *document, b *bench) {
	var names []string
	for _, c := range fewCrowds() {
		names = append(names, c.String())
	}
	d.text(`The CPU-bound handler on few keep-alive connections. With a hash, two connections are as likely as not on the same child, and the other
one has nothing to do. "4 on 2" is four connections on two children. At least %d tries for each, %d of two connections, %v long, with new connections in each,
opened one after the other with %v between them. The mean counts here: each try is a throw of the dice.`, fewTries, twoTries, fewTime, fewGap)
	d.heading("Requests per second: mean, as a ratio to the mean of " + baseline)
	d.grid("few", names, func(k key) string {
		k.Metric = "rate"
		mine := b.results.of(k)
		k.Peer = baseline
		base := b.results.of(k).mean()
		switch {
		case mine.empty():
			return ""
		case base == mine.mean():
			return fmt.Sprintf("1 = %.0f/s (%.2f–%.2f)", base, mine.quantile(0.25)/base, mine.quantile(0.75)/base)
		}
		return fmt.Sprintf("**%.2f** (%.2f–%.2f)", mine.mean()/base, mine.quantile(0.25)/base, mine.quantile(0.75)/base)
	})
	d.plot("few", "Few connections: requests per second, to "+baseline+" = 1 (mean, quartiles)",
		meanRatioBars("few", "rate", names, []string{ours, oursOff, fiberAlone}))
}

// idleConnections are open while others work.
const idleConnections = 2000

func measureIdle(ctx context.Context, b *bench) error {
	count := idleConnections
	if b.quick {
		count = 100
	}
	servers := b.startAll(ctx, b.named(ours, oursOff, fiberPrefork, fiberAlone, netHTTP, nginx), b.workers, false)
	defer func() { stopAll(servers) }()
	for _, s := range servers {
		s.client(pathHello, false).closedLoop(ctx, saturating, b.short(200*time.Millisecond))
	}
	interleave(ctx, b.rounds, servers, func(_ int, s *server) {
		add := func(metric string, v float64) {
			b.results.add(key{"idle", "hello, keep-alive", s.peer.name, metric}, v)
		}
		before := s.resident()
		conns, err := s.client(pathHello, false).open(ctx, count, 0)
		if err != nil {
			b.note("idle, %s: %v", s.peer.name, err)
			return
		}
		defer closeAll(conns)
		add("per connection", (s.resident()-before)*1024/float64(count))
		out, err := b.saturate(ctx, s, pathHello, false, saturating, b.cell)
		if err != nil {
			b.note("idle, %s: %v", s.peer.name, err)
		}
		add("rate", out.Rate)
		add("p99", out.P99)
		add("errors", out.Errors)
		add("memory", s.resident())
	})
	return ctx.Err()
}

// resident is the memory of all processes, in MiB.
func (s *server) resident() float64 {
	sum := 0.0
	for _, pid := range s.processes() {
		rss, _ := memory(pid)
		sum += rss
	}
	return sum
}

func writeIdle(d *document, b *bench) {
	d.text("%d keep-alive connections are open and idle, %d others ask for hello.", idleConnections, saturating)
	const name = "hello, keep-alive"
	d.table([]string{"", "requests per second, ratio", "p99, ratio", "p99 in ms", "resident memory of all processes, MiB"},
		d.eachPeer("idle", []string{name}, func(peer string) []string {
			k := key{"idle", name, peer, "rate"}
			p99 := key{"idle", name, peer, "p99"}
			mem := key{"idle", name, peer, "memory"}
			return []string{
				middle(b.results.ratios(k)), middle(b.results.ratios(p99)),
				spread("%.2f", b.results.of(p99)), spread("%.0f", b.results.of(mem)),
			}
		}))
	d.complaints("idle", []string{name})
}

func spreadCrowds() []crowd {
	return []crowd{
		{connections: 200, children: 4, during: time.Second},
		{connections: 2000, children: 4, during: 2 * time.Second},
		{connections: 200, children: 8, during: time.Second},
		{connections: 2000, children: 8, during: 2 * time.Second},
	}
}

func measureSpread(ctx context.Context, b *bench) error {
	crowds := spreadCrowds()
	if b.quick {
		crowds = crowds[:1]
	}
	for _, children := range []int{4, 8} {
		mine := slices.DeleteFunc(slices.Clone(crowds), func(c crowd) bool { return c.children != children })
		if len(mine) == 0 {
			continue
		}
		servers := b.startAll(ctx, b.named(ours, oursOff, fiberPrefork), children, false)
		interleave(ctx, b.rounds, mine, func(_ int, c crowd) {
			// At the same time on all: a thousand connections a second are
			// no load, and what happens here happens to all.
			var all sync.WaitGroup
			for _, s := range servers {
				all.Go(func() { b.spreadOf(ctx, s, c) })
			}
			all.Wait()
			pause(ctx, 200*time.Millisecond) // the servers see that they are gone
		})
		stopAll(servers)
	}
	return ctx.Err()
}

// spreadOf opens connections at an even pace and counts them by child.
func (b *bench) spreadOf(ctx context.Context, s *server, c crowd) {
	var mu sync.Mutex
	var conns []*connection
	counts := make(map[int]int)
	for _, pid := range s.workers {
		counts[pid] = 0
	}
	cl := s.client(pathPID, false)
	cl.timeout = 10 * time.Second
	began := time.Now()
	var all sync.WaitGroup
	for i := range c.connections {
		pause(ctx, time.Until(began.Add(b.short(c.during)*time.Duration(i)/time.Duration(c.connections))))
		all.Go(func() {
			conn, err := cl.dial(ctx, time.Now().Add(cl.timeout))
			if err != nil {
				b.note("spread, %v, %s: %v", c, s.peer.name, err)
				return
			}
			body, err := cl.ask(conn)
			mu.Lock()
			defer mu.Unlock()
			conns = append(conns, conn)
			if err != nil {
				b.note("spread, %v, %s: %v", c, s.peer.name, err)
				return
			}
			pid := 0
			if _, err := fmt.Sscan(string(body), &pid); err == nil {
				counts[pid]++
			}
		})
	}
	all.Wait()
	closeAll(conns)
	least, most := c.connections, 0
	for _, n := range counts {
		least, most = min(least, n), max(most, n)
	}
	b.results.add(key{"spread", c.String(), s.peer.name, "spread"}, float64(most-least))
	b.results.add(key{"spread", c.String(), s.peer.name, "most"}, float64(most))
}

func writeSpread(d *document, b *bench) {
	d.text(`Keep-alive connections arrive at an even pace, are used once and stay open: 200 in one second, 2,000 in two.
Then they are counted by child. The number is the difference between the child with the most and the one with the fewest. Less is better;
"200 on 4" would ideally be 0, with 50 on each.`)
	var names []string
	for _, c := range spreadCrowds() {
		names = append(names, c.String())
	}
	d.grid("spread", names, func(k key) string {
		k.Metric = "spread"
		return spread("%.0f", b.results.of(k))
	})
	d.plot("spread", "Connections of the fullest child minus those of the emptiest (median, least, most)",
		valueBars("spread", "spread", names, []string{ours, oursOff, fiberPrefork}))
}
