package main

// Measure "tls": a connection for each request, with and without resumption,
// and how often a client may resume on one of several children.

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"
)

const (
	secureConns    = 16
	secureTime     = 500 * time.Millisecond
	resumeChildren = 4
	resumeTries    = 60
)

type handshake struct {
	name    string
	resumes bool
}

func handshakes() []handshake {
	return []handshake{{"full handshake", false}, {"resumption offered", true}}
}

func protocols() map[string]uint16 {
	return map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13}
}

// secure is a client that may resume.
func (s *server) secure(resumes bool, version uint16) *client {
	c := s.client(pathHello, true)
	c.tls = s.tls.Clone()
	c.tls.MinVersion, c.tls.MaxVersion = version, version
	if resumes {
		c.tls.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	}
	return c
}

func measureTLS(ctx context.Context, b *bench) error {
	servers := b.startAll(ctx, b.named(ours, oursOff, fiberPrefork, fiberAlone, netHTTP, nginx), b.workers, true)
	defer func() { stopAll(servers) }()
	for _, s := range servers {
		s.secure(false, tls.VersionTLS13).closedLoop(ctx, secureConns, b.short(200*time.Millisecond))
	}
	for _, h := range handshakes() {
		interleave(ctx, b.rounds, servers, func(_ int, s *server) {
			t, rate := s.secure(h.resumes, tls.VersionTLS13).closedLoop(ctx, secureConns, b.short(secureTime))
			add := func(metric string, v float64) { b.results.add(key{"tls", h.name, s.peer.name, metric}, v) }
			add("rate", rate)
			add("p99", t.percentile(99))
			add("errors", float64(t.lost()))
		})
	}

	many := b.startAll(ctx, b.named(ours, oursOff, fiberPrefork, nginx), resumeChildren, true)
	defer func() { stopAll(many) }()
	for name, version := range protocols() {
		interleave(ctx, b.rounds, many, func(_ int, s *server) {
			c := s.secure(true, version)
			resumed := 0
			for i := range resumeTries + 1 {
				_, did, err := c.single(ctx)
				if err != nil {
					b.note("tls, %s: %v", s.peer.name, err)
				}
				if i > 0 && did {
					resumed++
				}
			}
			b.results.add(key{"tls", name, s.peer.name, "resumed"}, 100*float64(resumed)/resumeTries)
		})
	}
	return ctx.Err()
}

func writeTLS(d *document, b *bench) {
	d.text(`hello over TLS 1.3, a new connection for each request, %d clients of this program (which do their half of the handshakes on the same processors),
each with its own latest ticket. The certificate is ECDSA P-256.`, secureConns)
	var names []string
	for _, h := range handshakes() {
		names = append(names, h.name)
	}
	d.heading("Requests per second, as a ratio to " + baseline)
	d.ratios("tls", "rate", names, "%.0f/s")
	d.heading("p99, as a ratio to " + baseline)
	d.ratios("tls", "p99", names, "%.2f ms")
	d.heading(fmt.Sprintf("Connections that were resumed, of those that offered a ticket, on %d children, in percent", resumeChildren))
	d.text("One client, one connection after the other, %d in each round. More is better.", resumeTries)
	d.grid("tls", []string{"TLS 1.2", "TLS 1.3"}, func(k key) string {
		k.Metric = "resumed"
		return spread("%.0f", b.results.of(k))
	})
	d.complaints("tls", names)
}
