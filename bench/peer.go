package main

// The peers: who they are, what they can do, how they are started. The files
// of those that are not Go programs are in foreign.go.

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// peer is a server that is measured.
type peer struct {
	name    string
	program string // that has to be installed; "" for what is in this program
	master  bool   // it has a master and children
	control bool   // it is the baseline once more, and only compared with that
	tls     bool
	paths   []string
	reload  syscall.Signal // 0 if it has none
	version func(ctx context.Context) string
	command func(ctx context.Context, s setup) (*exec.Cmd, error)
}

// setup is how a peer is to serve.
type setup struct {
	addr    string
	workers int
	spin    int
	cert    string // "" for no TLS
	key     string
	dir     string // for its files
}

func (p *peer) serves(path string) bool { return slices.Contains(p.paths, path) }

// Peers that measures name.
const (
	ours         = "prefork"
	oursOff      = "prefork, steering off"
	fiberPrefork = "fiber prefork"
	fiberAlone   = "fiber"
	fastReuse    = "fasthttp reuseport"
	fastShared   = "fasthttp shared"
	netHTTP      = "net/http"
	nginx        = "nginx"
	puma         = "puma"
	gunicorn     = "gunicorn"
	controlled   = "fiber prefork, again"
)

// baseline is what ratios are to.
const baseline = fiberPrefork

// newPeers returns all peers, in the order of the tables.
func newPeers() []*peer {
	all := []string{pathHello, pathJSON, pathCPU, pathSleep, pathSlow, pathPID}
	return []*peer{
		{name: ours, master: true, tls: true, paths: all, reload: syscall.SIGHUP, version: fixed("this repository"), command: inGo("prefork")},
		{name: oursOff, master: true, tls: true, paths: all, reload: syscall.SIGHUP, version: fixed("this repository"), command: inGo("prefork-off")},
		{name: fiberPrefork, master: true, tls: true, paths: all, version: module("github.com/gofiber/fiber/v3"), command: inGo("fiber-prefork")},
		{name: controlled, master: true, control: true, paths: all, version: fixed("the same again: as far apart come servers that are equal"), command: inGo("fiber-prefork")},
		{name: fiberAlone, tls: true, paths: all, version: module("github.com/gofiber/fiber/v3"), command: inGo("fiber")},
		{name: fastReuse, master: true, tls: true, paths: all, version: module("github.com/valyala/fasthttp"), command: inGo("fasthttp-reuseport")},
		{name: fastShared, master: true, tls: true, paths: all, version: module("github.com/valyala/fasthttp"), command: inGo("fasthttp-shared")},
		{name: netHTTP, tls: true, paths: all, version: fixed(runtime.Version()), command: inGo("nethttp")},
		{
			name: nginx, program: "nginx", master: true, tls: true, paths: []string{pathHello, pathJSON, pathPID}, reload: syscall.SIGHUP,
			version: printed("nginx", "-v"), command: nginxCommand,
		},
		{
			name: puma, program: "puma", master: true, paths: []string{pathHello, pathSlow, pathPID}, reload: syscall.SIGUSR1,
			version: printed("puma", "--version"), command: pumaCommand,
		},
		{
			name: gunicorn, program: "gunicorn", master: true, paths: []string{pathHello, pathSlow, pathPID}, reload: syscall.SIGHUP,
			version: printed("gunicorn", "--version"), command: gunicornCommand,
		},
	}
}

// installed reports whether p can be started here.
func (p *peer) installed() bool {
	if p.program == "" {
		return true
	}
	_, err := exec.LookPath(p.program)
	return err == nil
}

func fixed(version string) func(context.Context) string {
	return func(context.Context) string { return version }
}

func module(path string) func(context.Context) string {
	return func(context.Context) string { return moduleVersion(path) }
}

var versionNumber = regexp.MustCompile(`\d+(\.\d+)+`)

// printed asks a program for its version.
func printed(program string, args ...string) func(context.Context) string {
	return func(ctx context.Context) string {
		out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
		if v := versionNumber.Find(out); v != nil {
			return string(v)
		}
		if err != nil {
			return "?"
		}
		return strings.TrimSpace(string(out))
	}
}

// inGo starts this program as a server. GOMAXPROCS is the number of children
// of Fiber's and fasthttp's prefork, and what one process alone may use.
func inGo(kind string) func(context.Context, setup) (*exec.Cmd, error) {
	return func(ctx context.Context, s setup) (*exec.Cmd, error) {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		args := []string{"serve", "-kind", kind, "-addr", s.addr, "-workers", strconv.Itoa(s.workers), "-spin", strconv.Itoa(s.spin)}
		if s.cert != "" {
			args = append(args, "-cert", s.cert, "-key", s.key)
		}
		cmd := exec.CommandContext(ctx, self, args...)
		cmd.Env = append(os.Environ(), "GOMAXPROCS="+strconv.Itoa(s.workers))
		return cmd, nil
	}
}

func writeFile(dir, name, text string) (string, error) {
	path := filepath.Join(dir, name)
	return path, os.WriteFile(path, []byte(text), 0o600)
}
