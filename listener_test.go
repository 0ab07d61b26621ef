//go:build unix

package prefork_test

// Addresses and listeners: networks, second instances, listeners that the
// application opens itself.

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp/fasthttputil"
	"github.com/valyala/fasthttp/reuseport"

	"github.com/fiber-prefork/prefork"
)

// prefixed is a wrapper that takes "PREFIX " off what connections send, as a
// PROXY protocol listener would.
type prefixed struct{ inner net.Listener }

func (p *prefixed) Accept() (net.Conn, error) {
	conn, err := p.inner.Accept()
	if err != nil {
		return nil, err
	}
	b := make([]byte, len("PREFIX "))
	if _, err := conn.Read(b); err != nil || string(b) != "PREFIX " {
		_ = conn.Close()
		return p.Accept()
	}
	return conn, nil
}
func (p *prefixed) Close() error   { return p.inner.Close() }
func (p *prefixed) Addr() net.Addr { return p.inner.Addr() }

// listener opens its listener in the way that Open names.
func listener(o *programOptions) {
	app := newApp(o)
	var ln net.Listener
	var err error
	switch o.Open {
	case "new":
		ln, err = prefork.NewListener("tcp4", o.Addr)
	case "wrapped":
		ln, err = prefork.NewListener("tcp4", o.Addr)
		ln = &prefixed{ln}
	case "limited":
		ln, err = prefork.NewListener("tcp4", o.Addr)
		ln = &limited{ln, make(chan struct{}, 1)}
	case "new unix":
		ln, err = prefork.NewListener("unix", o.Addr)
	case "reuseport":
		ln, err = reuseport.Listen("tcp4", o.Addr)
	case "net", "net with config", "net, tls everywhere":
		if !prefork.IsChild() {
			ln, err = net.Listen("tcp", o.Addr)
		}
	case "net everywhere":
		ln, err = net.Listen("tcp", o.Addr)
	case "unix":
		if !prefork.IsChild() {
			ln, err = net.Listen("unix", o.Addr)
		}
	case "memory":
		ln = fasthttputil.NewInmemoryListener()
	case "foreign":
		ln, err = net.Listen("tcp", o.Addr)
		ln = &prefixed{ln}
	case "mptcp":
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) { setReuseport(int(fd)) })
		}}
		lc.SetMultipathTCP(true)
		ln, err = lc.Listen(context.Background(), "tcp4", o.Addr)
	}
	if err != nil {
		log.Fatalf("open: %v", err)
	}
	if o.TLS {
		pair, err := tls.LoadX509KeyPair(filepath.Join(o.Dir, "server.pem"), filepath.Join(o.Dir, "server-key.pem"))
		if err != nil {
			log.Fatal(err)
		}
		config := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
		switch {
		case o.Open == "net with config" && prefork.IsChild():
			o.TLSConfig = config
		case o.Open == "net, tls everywhere" || ln != nil:
			ln = tls.NewListener(ln, config)
		}
	}
	finish(o, app.Listener(ln, o.ListenConfig))
}

// distinct asks until n children have answered.
func (s *server) distinct(client *http.Client, url string, n int) {
	s.t.Helper()
	seen := map[string]bool{}
	eventually(s.t, func() bool {
		body, err := fetch(client, url)
		require.NoError(s.t, err)
		seen[body] = true
		return len(seen) >= n
	}, "fewer than %d children answer", n)
	assert.NotContains(s.t, seen, fmt.Sprint(s.cmd.Process.Pid))
}

func unixClient(path string) *http.Client {
	return &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}
}

func TestNetworks(t *testing.T) {
	t.Parallel()
	_, port0, _ := strings.Cut("x:0", ":")
	for network, addr := range map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0", "tcp": ":" + port0} {
		for _, mode := range []int{1, 2} {
			t.Run(fmt.Sprint(network, mode), func(t *testing.T) {
				if mode == 1 && !spreads {
					t.Skip("the system does not spread connections")
				}
				s := start(t, "app", options{"enable_prefork": true, "Children": 2, "listener_network": network, "Addr": addr, "listener_mode": mode})
				_, port, err := net.SplitHostPort(s.addr)
				require.NoError(t, err)
				require.NotEqual(t, "0", port)
				hosts := map[string][]string{"tcp4": {"127.0.0.1"}, "tcp6": {"::1"}, "tcp": {"127.0.0.1", "::1"}}[network]
				for _, host := range hosts {
					url := "http://" + net.JoinHostPort(host, port) + "/"
					if mode == 1 {
						s.distinct(newClient(), url, 2)
					}
					_, err := fetch(newClient(), url)
					require.NoError(t, err, host)
				}
				s.stop()
			})
		}
	}
}

func TestUnix(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	require.NoError(t, err)
	stale.SetUnlinkOnClose(false)
	require.NoError(t, stale.Close())

	s := start(t, "app", options{"enable_prefork": true, "Children": 2, "listener_network": "unix", "Addr": path, "unix_socket_file_mode": 0o640})
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o640), info.Mode().Perm())
	_, err = fetch(unixClient(path), "http://x/")
	require.NoError(t, err)

	second := prepare(t, "app", options{"enable_prefork": true, "listener_network": "unix", "Addr": path}).launch()
	assert.Equal(t, 1, second.exit())
	second.await("is address already in use")
	_, err = fetch(unixClient(path), "http://x/")
	require.NoError(t, err, "the first one still serves")
	s.stop()
	require.NoFileExists(t, path)
}

func TestSecondInstance(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2})
	for _, prefork := range []bool{true, false} {
		second := prepare(t, "app", options{"enable_prefork": prefork, "Children": 2, "Addr": s.addr}).launch()
		assert.Equal(t, 1, second.exit())
		second.await(`returned .*listen tcp4 ` + s.addr + `: bind: address already in use`)
		second.await("is address already in use")
		assert.Empty(t, second.matches("EVENT .* fork"), "no child was started")
	}
	s.stop()

	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = ln.Close() }()
	taken := prepare(t, "app", options{"enable_prefork": true, "Addr": ln.Addr().String()}).launch()
	assert.Equal(t, 1, taken.exit())
	taken.await("is address already in use")
}

func TestBadAddress(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{"127.0.0.1:99999", "no port", "192.0.2.1:0"} {
		s := prepare(t, "app", options{"enable_prefork": true, "Addr": addr}).launch()
		assert.Equal(t, 1, s.exit(), addr)
		assert.Empty(t, s.matches("EVENT .* fork"), addr)
		s.await("returned prefork: listen")
	}
}

func TestNewListener(t *testing.T) {
	t.Parallel()
	s := start(t, "listener", options{"enable_prefork": true, "Children": 2, "Open": "new"})
	if spreads {
		s.distinct(newClient(), "http://"+s.addr+"/", 2)
	}
	s.stop()
}

func TestWrappedNewListener(t *testing.T) {
	t.Parallel()
	s := start(t, "listener", options{"enable_prefork": true, "Children": 2, "Open": "wrapped"})
	for range 10 {
		conn, err := net.Dial("tcp", s.addr)
		require.NoError(t, err)
		_, err = fmt.Fprint(conn, "PREFIX GET /ischild HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		require.NoError(t, err)
		_, body := answer(t, conn)
		assert.Equal(t, "true true", body, "the wrapper works in the children")
		require.NoError(t, conn.Close())
	}
	s.stop()
}

func TestNewListenerUnix(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	s := start(t, "listener", options{"enable_prefork": true, "Children": 2, "Open": "new unix", "Addr": path})
	body, err := fetch(unixClient(path), "http://x/ischild")
	require.NoError(t, err)
	assert.Equal(t, "true true", body)
	s.stop()
	require.NoFileExists(t, path)
}

func TestPlainListeners(t *testing.T) {
	t.Parallel()
	s := start(t, "listener", options{"enable_prefork": true, "Children": 2, "Open": "net"})
	assert.Equal(t, "true true", s.get("/ischild"))
	s.stop()

	path := filepath.Join(t.TempDir(), "s")
	s = start(t, "listener", options{"enable_prefork": true, "Children": 2, "Open": "unix", "Addr": path})
	body, err := fetch(unixClient(path), "http://x/ischild")
	require.NoError(t, err)
	assert.Equal(t, "true true", body)
	s.stop()
	require.NoFileExists(t, path)
}

// TestListenerOpenedInEveryProcess: without a guard main fails in the child,
// and the master says why the server did not start.
func TestListenerOpenedInEveryProcess(t *testing.T) {
	t.Parallel()
	s := prepare(t, "listener", options{"enable_prefork": true, "Children": 1, "Open": "net everywhere", "Addr": freeAddr()}).launch()
	assert.Equal(t, 1, s.exit())
	s.await("open: .*address already in use")
	s.await("is child did not start")
}

func TestTLSAroundListeners(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	a.issue("server", "localhost")
	for _, how := range []string{"new", "reuseport", "net with config", "net, tls everywhere"} {
		s := start(t, "listener", options{"enable_prefork": true, "Children": 2, "Open": how, "TLS": true, "Dir": a.dir})
		for range 4 {
			body, err := fetch(a.client(&tls.Config{MinVersion: tls.VersionTLS12}), "https://"+s.addr+"/ischild")
			require.NoError(t, err)
			assert.Equal(t, "true true", body)
		}
		s.stop()
	}
	// A child that passes no listener would serve a TLS port without TLS.
	s := prepare(t, "listener", options{"enable_prefork": true, "Children": 1, "Open": "net", "TLS": true, "Dir": a.dir}).launch()
	assert.Equal(t, 1, s.exit())
	s.await("invalid configuration: Listener = a listener without TLS in a child")
}

// TestCannotPrefork: what cannot be shared is served by one process.
func TestCannotPrefork(t *testing.T) {
	t.Parallel()
	s := start(t, "listener", options{"enable_prefork": true, "Open": "foreign"})
	s.await(`\[Warn\] \[prefork\] no prefork for the \*prefork_test.prefixed on .*prefork.NewListener`)
	conn, err := net.Dial("tcp", s.addr)
	require.NoError(t, err)
	_, err = fmt.Fprint(conn, "PREFIX GET /ischild HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	require.NoError(t, err)
	_, body := answer(t, conn)
	assert.Equal(t, "false false", body)
	require.NoError(t, conn.Close())
	assert.Empty(t, s.matches("EVENT .* fork"))
	s.signal(syscall.SIGKILL) // Fiber alone has no signal handling
	s.exit()

	s = start(t, "listener", options{"enable_prefork": true, "Open": "memory"})
	s.await(`no prefork for the \*fasthttputil.InmemoryListener`)
	s.signal(syscall.SIGKILL)
	s.exit()
}

// twoApps is a program with two servers that prefork.
func twoApps(o *programOptions) {
	second := newApp(&programOptions{})
	second.Get("/which", func(c fiberCtx) error { return c.SendString("second") })
	done := make(chan error, 1)
	go func() { done <- second.Listen("localhost:0", o.ListenConfig) }()
	first := newApp(o)
	first.Get("/which", func(c fiberCtx) error { return c.SendString("first") })
	err := first.Listen(o.Addr, o.ListenConfig)
	finish(o, errors.Join(err, <-done))
}

func TestTwoServersInOneProgram(t *testing.T) {
	t.Parallel()
	s := prepare(t, "two", options{"enable_prefork": true, "Children": 2}).launch()
	which := map[string]bool{}
	for _, m := range s.awaitN(`^EVENT \d+ listen (\S+)`, 2) {
		for range 8 {
			body, err := fetch(newClient(), "http://"+m[1]+"/which")
			require.NoError(t, err)
			which[m[1]+" "+body] = true
		}
	}
	assert.Len(t, which, 2, "each port answers as one app: %v", which)
	s.stop()
}

// twoForeign is a program with two servers on listeners of its own.
func twoForeign(o *programOptions) {
	serve := func(name string) *prefork.App {
		app := newApp(o)
		app.Get("/which", func(c fiberCtx) error { return c.SendString(name) })
		return app
	}
	open := func() net.Listener {
		if prefork.IsChild() {
			return nil
		}
		ln, err := net.Listen("tcp", o.Addr)
		if err != nil {
			log.Fatal(err)
		}
		return ln
	}
	first, second, done := serve("first"), serve("second"), make(chan error, 1)
	go func() { done <- second.Listener(open(), o.ListenConfig) }()
	err := first.Listener(open(), o.ListenConfig)
	finish(o, errors.Join(err, <-done))
}

// alike is a program whose two servers are asked for in the same words.
func alike(o *programOptions) {
	done := make(chan error, 2)
	for i := range 2 {
		app := newApp(o)
		app.Get("/which", func(c fiberCtx) error { return c.SendString(strconv.Itoa(i)) })
		app.Hooks().OnListen(func(d fiberListenData) error { tell("listens", "%d %s:%s", i, d.Host, d.Port); return nil })
		go func() { done <- app.Listen(o.Addr, o.ListenConfig) }()
	}
	finish(o, errors.Join(<-done, <-done))
}

func TestTwoForeignListeners(t *testing.T) {
	t.Parallel()
	s := prepare(t, "two foreign", options{"enable_prefork": true, "Children": 1}).launch()
	which := map[string]bool{}
	for _, m := range s.awaitN(`^EVENT \d+ listen (\S+)`, 2) {
		body, err := fetch(newClient(), "http://"+m[1]+"/which")
		require.NoError(t, err)
		which[body] = true
	}
	assert.Len(t, which, 2)
	s.stop()
}

func TestServersThatAreAlike(t *testing.T) {
	t.Parallel()
	s := prepare(t, "alike", options{"enable_prefork": true, "Children": 2}).launch()
	for _, m := range s.awaitN(`^EVENT \d+ listens (\d) (\S+)`, 2) {
		for range 4 {
			body, err := fetch(newClient(), "http://"+m[2]+"/which")
			require.NoError(t, err)
			assert.Equal(t, m[1], body)
		}
	}
	s.stop()
}

// TestServersInSequence: the children of a later server come to the Listen of
// an earlier one too, and get from it what the master got.
func TestServersInSequence(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = taken.Close() }()
	s := start(t, "fallback", options{"enable_prefork": true, "Children": 2, "Dir": taken.Addr().String()})
	assert.Equal(t, "true true", s.get("/ischild"))
	s.awaitN("EVENT .* fallback true ", 3) // in the master and in both children
	s.stop()

	s = start(t, "sequence", options{"enable_prefork": true, "Children": 2})
	assert.Equal(t, "true true", s.get("/ischild"))
	s.awaitN("EVENT .* first <nil>", 3)
	s.stop()

	s = start(t, "branch", options{"enable_prefork": true, "Children": 2})
	assert.Equal(t, "true true", s.get("/ischild"))
	s.stop()
}

func TestSharedIsRefused(t *testing.T) {
	t.Parallel()
	for program, opts := range map[string]options{
		"app":      {"listener_network": "unix", "Addr": filepath.Join(t.TempDir(), "s")},
		"listener": {"Open": "net"},
	} {
		opts["enable_prefork"], opts["disable_reuseport_fallback"] = true, true
		s := prepare(t, program, opts).launch()
		assert.Equal(t, 1, s.exit())
		s.await("is SO_REUSEPORT is not supported")
		assert.Empty(t, s.matches("EVENT .* fork"))
	}
}

// limited lets one connection be open at a time.
type limited struct {
	net.Listener
	free chan struct{}
}

type limitedConn struct {
	net.Conn
	release func()
}

func (l *limited) Accept() (net.Conn, error) {
	l.free <- struct{}{}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &limitedConn{conn, sync.OnceFunc(func() { <-l.free })}, nil
}

func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// TestLimitedListenerDuringDrain: what waits behind a limit is served too.
func TestLimitedListenerDuringDrain(t *testing.T) {
	t.Parallel()
	s := start(t, "listener", options{"enable_prefork": true, "Children": 1, "Open": "limited"})
	conns := []net.Conn{dial(t, "tcp", s.addr, "/sleep/300")}
	s.await("EVENT .* sleeping")
	for range 4 {
		conns = append(conns, dial(t, "tcp", s.addr, "/sleep/300"))
	}
	s.signal(syscall.SIGTERM)
	for _, conn := range conns {
		_, body := answer(t, conn)
		assert.Equal(t, "slept", body)
		_ = conn.Close()
	}
	assert.Equal(t, 0, s.exit())

	// Idle connections that use up the limit do not hold up the end.
	s = start(t, "listener", options{"enable_prefork": true, "Children": 1, "Open": "limited"})
	idle := dial(t, "tcp", s.addr, "/")
	_, _ = answer(t, idle)
	waiting := dial(t, "tcp", s.addr, "/ischild")
	began := time.Now()
	s.signal(syscall.SIGTERM)
	_, body := answer(t, waiting)
	assert.Equal(t, "true true", body)
	assert.Equal(t, 0, s.exit())
	assert.Less(t, time.Since(began), 8*time.Second)
	s.await(fmt.Sprintf(`EVENT %d postshutdown <nil>`, s.cmd.Process.Pid))
}

// twice calls Listen while the app is running.
func twice(o *programOptions) {
	app := newApp(o)
	app.Hooks().OnListen(func(fiberListenData) error {
		tell("again", "%v", app.Listen(o.Addr, o.ListenConfig))
		return nil
	})
	finish(o, app.Listen(o.Addr, o.ListenConfig))
}

func TestListenTwice(t *testing.T) {
	t.Parallel()
	s := start(t, "twice", options{"enable_prefork": true, "Children": 1})
	s.await("again prefork: app is already running")
	s.stop()
}
