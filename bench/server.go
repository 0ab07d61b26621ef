package main

// A peer that runs: started, found to serve with all its workers, stopped.

import (
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// server is a running peer.
type server struct {
	peer    *peer
	addr    string
	tls     *tls.Config // for a client; nil if it serves without
	cmd     *exec.Cmd
	log     *os.File
	exited  chan struct{} // closed when the process that was started has ended
	workers []int         // pids that answered at the start

	firstAnswer, allAnswer time.Duration // since it was started
}

const (
	startLimit = 15 * time.Second
	portFirst  = 20000 // below those that the system gives to clients
	portLast   = 30000
)

// nextPort finds ports that nobody uses.
type nextPort struct {
	mu   sync.Mutex
	last int
}

func (n *nextPort) take() (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for range portLast - portFirst {
		n.last++
		if n.last < portFirst || n.last > portLast {
			n.last = portFirst
		}
		addr := fmt.Sprintf("127.0.0.1:%d", n.last)
		ln, err := net.Listen("tcp4", addr)
		if err != nil {
			continue
		}
		_ = ln.Close()
		return addr, nil
	}
	return "", fmt.Errorf("no free port from %d to %d", portFirst, portLast)
}

// start starts p and waits until all its workers have answered.
func (b *bench) start(ctx context.Context, p *peer, workers int, secure bool) (_ *server, err error) {
	addr, err := b.ports.take()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.dir, "server")
	if err != nil {
		return nil, err
	}
	s := &server{peer: p, addr: addr, exited: make(chan struct{})}
	set := setup{addr: addr, workers: workers, spin: b.spin, dir: dir}
	if secure {
		set.cert, set.key, s.tls = b.cert, b.key, b.clientTLS
	}
	if s.cmd, err = p.command(ctx, set); err != nil {
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	if s.log, err = os.Create(filepath.Clean(filepath.Join(dir, "log"))); err != nil {
		return nil, err
	}
	if s.cmd.Env == nil {
		s.cmd.Env = os.Environ()
	}
	s.cmd.Env = append(s.cmd.Env, b.mark)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}

	began := time.Now()
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	go func() {
		_ = s.cmd.Wait()
		close(s.exited)
	}()
	count := workers
	if !p.master {
		count = 1
	}
	if err := s.await(ctx, began, count); err != nil {
		s.stop()
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	return s, nil
}

// await connects until count pids have answered.
func (s *server) await(ctx context.Context, began time.Time, count int) error {
	pids := make(map[int]bool)
	c := s.client(pathPID, true)
	c.timeout = time.Second
	for time.Since(began) < startLimit {
		pid, err := c.pid(ctx)
		switch {
		case s.hasExited():
			return fmt.Errorf("ended at its start: %s", s.lastWords())
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			time.Sleep(500 * time.Microsecond)
			continue
		}
		if len(pids) == 0 {
			s.firstAnswer = time.Since(began)
		}
		pids[pid] = true
		if len(pids) == count {
			s.allAnswer = time.Since(began)
			s.workers = slices.Sorted(maps.Keys(pids))
			return nil
		}
	}
	return fmt.Errorf("%d of %d workers answered within %v: %s", len(pids), count, startLimit, s.lastWords())
}

func (s *server) hasExited() bool {
	select {
	case <-s.exited:
		return true
	default:
		return false
	}
}

// lastWords returns the end of what it has printed.
func (s *server) lastWords() string {
	text, err := os.ReadFile(s.log.Name())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], " | ")
}

// pid is the process that was started: the master, if there is one.
func (s *server) pid() int { return s.cmd.Process.Pid }

// processes are all of it that were there at the start.
func (s *server) processes() []int {
	if slices.Contains(s.workers, s.pid()) {
		return s.workers
	}
	return append([]int{s.pid()}, s.workers...)
}

// stop ends everything that was started, at once.
func (s *server) stop() {
	_ = syscall.Kill(-s.pid(), syscall.SIGKILL)
	select {
	case <-s.exited:
	case <-time.After(time.Second):
	}
	waitGone(s.workers, time.Second)
	_ = s.log.Close()
}

// startAll starts peers at the same time. Those that do not start are left
// out, and noted.
func (b *bench) startAll(ctx context.Context, peers []*peer, workers int, secure bool) []*server {
	servers := make([]*server, len(peers))
	var all sync.WaitGroup
	for i, p := range peers {
		all.Go(func() {
			s, err := b.start(ctx, p, workers, secure)
			if err != nil {
				b.note("%v", err)
				return
			}
			servers[i] = s
		})
	}
	all.Wait()
	return slices.DeleteFunc(servers, func(s *server) bool { return s == nil })
}

func stopAll(servers []*server) {
	for _, s := range servers {
		s.stop()
	}
}
