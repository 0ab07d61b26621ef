package systemd

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// answer is what a program got for an address: "" for no socket.
type answer struct {
	Addr string
	Err  string
}

// descriptor is what a program has at one number.
type descriptor struct {
	Is          string // "listener", "/dev/null", …
	CloseOnExec bool
	Nonblock    bool
}

// report is what the program "ask" prints.
type report struct {
	None        bool // Inherited returned nil
	Answers     []answer
	Unused      []string
	Descriptors map[int]descriptor // from firstFD on
	Own         []descriptor       // of what it took
	Environment []string           // LISTEN_…, but for the pid
	Activation  []string           // what go-systemd makes of all this, "" for nothing
}

func runProgram(name string) {
	sockets := Inherited()
	var ask []address
	if err := json.Unmarshal([]byte(os.Getenv(envAsk)), &ask); err != nil {
		log.Fatal(err)
	}
	switch name {
	case "ask":
		printJSON(askFor(sockets, ask))
	case "look":
		printJSON(len(sockets.Unused()))
	case "exec": // takes, and becomes a program that asks for the same and all else
		if must(sockets.Listener(ask[0].Network, ask[0].Addr)) == nil {
			log.Fatalf("no socket: %v", sockets.Unused())
		}
		_ = os.Setenv(envProgram, "ask")
		log.Fatal(syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
	case "race": // many ask for the same
		got := make(chan net.Listener)
		for range 16 {
			go func() {
				ln, err := sockets.Listener(ask[0].Network, ask[0].Addr)
				if err != nil {
					log.Fatal(err)
				}
				got <- ln
			}()
		}
		found := 0
		for range 16 {
			if ln := <-got; ln != nil {
				found++
			}
		}
		printJSON(found)
	case "reuse": // the application uses the sockets first, and others get their numbers
		used := must(activation.Listeners())
		own := must(net.Listen("tcp4", "127.0.0.1:0")) // at a number that was passed
		_ = os.Setenv("LISTEN_FDS", "1")               // go-systemd has removed it
		printJSON(askFor(sockets, ask))
		_, _ = own.Close(), used[0].Close()
	case "serve": // one connection
		for _, a := range ask {
			ln := must(sockets.Listener(a.Network, a.Addr))
			if ln == nil {
				continue
			}
			conn := must(ln.Accept())
			_, _ = fmt.Fprintf(conn, "%s %s\n", a.Addr, strings.Join(sockets.Unused(), ","))
			_ = conn.Close()
			return
		}
		log.Fatalf("no socket: %v", sockets.Unused())
	}
}

func printJSON(v any) { _, _ = os.Stdout.Write(must(json.Marshal(v))) }

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}

func askFor(sockets *Sockets, ask []address) report {
	r := report{None: sockets == nil, Descriptors: map[int]descriptor{}}
	var taken []net.Listener
	for _, a := range ask {
		ln, err := sockets.Listener(a.Network, a.Addr)
		var got answer
		if err != nil {
			got.Err = err.Error()
		}
		if ln != nil {
			got.Addr = ln.Addr().String()
			taken = append(taken, ln)
			raw := must(ln.(syscall.Conn).SyscallConn())
			_ = raw.Control(func(fd uintptr) { r.Own = append(r.Own, describe(int(fd))) })
		}
		r.Answers = append(r.Answers, got)
	}
	r.Unused = sockets.Unused()
	runtime.GC() // closes what is open by accident
	runtime.GC()
	count, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	for fd := firstFD; fd < firstFD+count; fd++ {
		r.Descriptors[fd] = describe(fd)
	}
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "LISTEN_FD") {
			r.Environment = append(r.Environment, kv)
		}
	}
	slices.Sort(r.Environment)
	for _, ln := range must(activation.Listeners()) {
		if ln == nil {
			r.Activation = append(r.Activation, "")
			continue
		}
		r.Activation = append(r.Activation, ln.Addr().String())
		_ = ln.Close()
	}
	for _, ln := range taken {
		_ = ln.Close()
	}
	return r
}

func describe(fd int) descriptor {
	is, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && n == 1 {
		is = "listener"
	}
	fdFlags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return descriptor{Is: is, CloseOnExec: fdFlags&unix.FD_CLOEXEC != 0, Nonblock: flags&unix.O_NONBLOCK != 0}
}

// asPassed is a socket that nobody has taken: as the service manager passes it.
var asPassed = descriptor{Is: "listener"}

// taken is what is left at the number of one that was.
var taken = descriptor{Is: "/dev/null"}

func TestListener(t *testing.T) {
	http, httpAddr := listenTCP(t, "tcp4", "127.0.0.1:0")
	admin, adminAddr := listenTCP(t, "tcp4", "127.0.0.1:0")
	path := filepath.Join(t.TempDir(), "s")
	local := listenUnix(t, path)
	abstract := fmt.Sprintf("@prefork-%s-%d", t.Name(), os.Getpid())

	r := output[report](t, service(t, "ask", []address{
		{"tcp4", "127.0.0.1:0"},
		{"tcp6", adminAddr},
		{"udp", adminAddr},
		{"tcp", ""},
		{"tcp", "no port"},
		{"unix", adminAddr},
		{"tcp4", adminAddr},
		{"tcp4", adminAddr},
		{"tcp", "www"},
		{"tcp", httpAddr},
		{"unix", "\x00" + abstract[1:]},
	}, "www::local:abstract", http, admin, local, listenUnix(t, abstract)))

	assert.Equal(t, []answer{{}, {}, {}, {}, {}, {}, {Addr: adminAddr}, {}, {Addr: httpAddr}, {}, {Addr: abstract}}, r.Answers)
	assert.Equal(t, []string{"local " + path}, r.Unused)
	assert.Equal(t, map[int]descriptor{3: taken, 4: taken, 5: asPassed, 6: taken}, r.Descriptors)
	assert.Equal(t, []string{"LISTEN_FDNAMES=www::local:abstract", "LISTEN_FDS=4"}, r.Environment)
	assert.Equal(t, []string{"", "", path, ""}, r.Activation, "the application can use the one that is left, and no other")
	own := descriptor{Is: "listener", CloseOnExec: true, Nonblock: true}
	assert.Equal(t, []descriptor{own, own, own}, r.Own)
	require.FileExists(t, path, "the file of a unix socket is not ours")
}

func TestListenerByName(t *testing.T) {
	first, firstAddr := listenTCP(t, "tcp4", "127.0.0.1:0")
	second, secondAddr := listenTCP(t, "tcp4", "127.0.0.1:0")
	path := filepath.Join(t.TempDir(), "s")

	r := output[report](t, service(t, "ask", []address{
		{"unix", "web"}, {"tcp6", "web"}, {"tcp", "local"}, {"tcp", "web"},
	}, "web:web:local", first, second, listenUnix(t, path)))
	assert.Equal(t, []answer{{Addr: firstAddr}, {Addr: secondAddr}, {Addr: path}, {}}, r.Answers, "a name means one socket after the other, of any kind")
	assert.Empty(t, r.Unused)
}

func TestListenerOnAllAddresses(t *testing.T) {
	v4, addr4 := listenTCP(t, "tcp4", "0.0.0.0:0")
	_, port4, _ := net.SplitHostPort(addr4)
	both, addr := listenTCP(t, "tcp", "[::]:0")
	_, port, _ := net.SplitHostPort(addr)
	v6, addr6 := listenTCP(t, "tcp6", "[::]:0")
	_, port6, _ := net.SplitHostPort(addr6)

	r := output[report](t, service(t, "ask", []address{
		{"tcp6", ":" + port4},
		{"tcp4", "127.0.0.1:" + port4},
		{"tcp4", ":" + port4},
		{"tcp4", "0.0.0.0:" + port},
		{"tcp4", ":" + port6},
		{"tcp", "0.0.0.0:" + port6},
	}, "", v4, both, v6))
	assert.Equal(t, []answer{{}, {}, {Addr: addr4}, {Addr: addr}, {}, {Addr: addr6}}, r.Answers)
}

func TestOnlyListeningStreamSockets(t *testing.T) {
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	defer func() { _ = udp.Close() }()
	datagrams, err := udp.File()
	require.NoError(t, err)
	defer func() { _ = datagrams.Close() }()

	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = ln.Close() }()
	conn, err := net.Dial("tcp4", ln.Addr().String())
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	connected, err := conn.(*net.TCPConn).File()
	require.NoError(t, err)
	defer func() { _ = connected.Close() }()

	file, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer func() { _ = file.Close() }()

	r := output[report](t, service(t, "ask", []address{
		{"tcp", "a"}, {"tcp", "b"}, {"tcp", "c"}, {"tcp4", udp.LocalAddr().String()}, {"tcp4", conn.LocalAddr().String()},
	}, "a:b:c", datagrams, connected, file))
	assert.Equal(t, make([]answer, 5), r.Answers)
	assert.True(t, r.None)
	for fd, d := range r.Descriptors {
		assert.False(t, d.CloseOnExec, "descriptor %d: %+v", fd, d)
	}
}

func TestSocketsOfAnotherProcess(t *testing.T) {
	f, _ := listenTCP(t, "tcp4", "127.0.0.1:0")
	for name, environment := range map[string][]string{
		"parent":         {"LISTEN_PID=" + strconv.Itoa(os.Getpid()), "LISTEN_FDS=1"},
		"no pid":         {"LISTEN_FDS=1"},
		"no count":       {"LISTEN_PID=$$"},
		"not a count":    {"LISTEN_PID=$$", "LISTEN_FDS=one"},
		"negative count": {"LISTEN_PID=$$", "LISTEN_FDS=-1"},
		"huge count":     {"LISTEN_PID=$$", "LISTEN_FDS=2000000000"},
		"count too big":  {"LISTEN_PID=$$", "LISTEN_FDS=99999999999999999999"},
	} {
		t.Run(name, func(t *testing.T) {
			exe, err := os.Executable()
			require.NoError(t, err)
			cmd := exec.CommandContext(t.Context(), "sh", "-c", strings.Join(environment, " ")+` exec "$0"`, exe)
			cmd.Env = append(os.Environ(), programEnv(t, "look", nil)...)
			cmd.ExtraFiles = []*os.File{f}
			assert.Zero(t, output[int](t, cmd))
		})
	}
}

// TestExecInPlace: the pid stays, the environment stays, and the numbers mean
// what they meant.
func TestExecInPlace(t *testing.T) {
	one, oneAddr := listenTCP(t, "tcp4", "127.0.0.1:0")
	two, twoAddr := listenTCP(t, "tcp4", "127.0.0.1:0")
	r := output[report](t, service(t, "exec", []address{{"tcp4", oneAddr}, {"tcp4", twoAddr}}, "one:two", one, two))
	assert.Equal(t, []answer{{}, {Addr: twoAddr}}, r.Answers)
	assert.Equal(t, map[int]descriptor{3: taken, 4: taken}, r.Descriptors)
}

// TestApplicationWasFirst: it has used the sockets in its own way, and others
// have their numbers now.
func TestApplicationWasFirst(t *testing.T) {
	f, addr := listenTCP(t, "tcp4", "127.0.0.1:0")
	r := output[report](t, service(t, "reuse", []address{{"tcp4", addr}, {"tcp", "www"}}, "www", f))
	assert.Equal(t, []answer{{}, {}}, r.Answers)
	assert.Empty(t, r.Unused)
	require.Contains(t, r.Descriptors, 3)
	assert.Equal(t, "listener", r.Descriptors[3].Is, "the application's, which nobody touches")
}

func TestListenerIsSafe(t *testing.T) {
	f, addr := listenTCP(t, "tcp4", "127.0.0.1:0")
	assert.Equal(t, 1, output[int](t, service(t, "race", []address{{"tcp4", addr}}, "", f)))
}

func TestNoSockets(t *testing.T) {
	s := Inherited()
	require.Nil(t, s)
	ln, err := s.Listener("tcp4", "127.0.0.1:80")
	require.NoError(t, err)
	require.Nil(t, ln)
	assert.Empty(t, s.Unused())
}

func TestServes(t *testing.T) {
	v4 := func(addr string) *passed { return &passed{addr: netip.MustParseAddrPort(addr)} }
	v6 := v4
	v6only := func(addr string) *passed { return &passed{addr: netip.MustParseAddrPort(addr), v6only: true} }
	for _, c := range []struct {
		socket        *passed
		network, addr string
		want          bool
	}{
		{v4("127.0.0.1:80"), "tcp", "127.0.0.1:80", true},
		{v4("127.0.0.1:80"), "tcp4", "127.0.0.1:80", true},
		{v4("127.0.0.1:80"), "tcp4", "127.0.0.1:http", true},
		{v4("127.0.0.1:80"), "tcp4", "127.0.0.1:81", false},
		{v4("127.0.0.1:80"), "tcp4", "127.0.0.2:80", false},
		{v4("127.0.0.1:80"), "tcp4", ":80", false},
		{v4("127.0.0.1:80"), "tcp", "[::ffff:127.0.0.1]:80", true},
		{v4("127.0.0.1:80"), "tcp6", "[::1]:80", false},
		{v4("0.0.0.0:80"), "tcp", ":80", true},
		{v4("0.0.0.0:80"), "tcp", "[::]:80", true},
		{v4("0.0.0.0:80"), "tcp4", "0.0.0.0:80", true},
		{v4("0.0.0.0:80"), "tcp4", "127.0.0.1:80", false},
		{v4("0.0.0.0:80"), "tcp6", ":80", false},
		{v4("0.0.0.0:80"), "tcp", ":0", false},
		{v4("0.0.0.0:80"), "tcp", ":", false},
		{v6("[::]:80"), "tcp", ":80", true},
		{v6("[::]:80"), "tcp", ":http", true},
		{v6("[::]:80"), "tcp", "0.0.0.0:80", true},
		{v6("[::]:80"), "tcp4", ":80", true},
		{v6("[::]:80"), "tcp4", "0.0.0.0:80", true},
		{v6("[::]:80"), "tcp6", "[::]:80", true},
		{v6("[::]:80"), "tcp6", ":80", true},
		{v6("[::]:80"), "tcp", "[::1]:80", false},
		{v6only("[::]:80"), "tcp", ":80", true},
		{v6only("[::]:80"), "tcp4", ":80", false},
		{v6only("[::]:80"), "tcp6", ":80", true},
		{v6("[::1]:80"), "tcp", "[::1]:80", true},
		{v6("[::1]:80"), "tcp6", "[::1]:80", true},
		{v6("[::1]:80"), "tcp6", "[::]:80", false},
		{v6("[::1]:80"), "tcp4", ":80", false},
		{v6("[::ffff:127.0.0.1]:80"), "tcp4", "127.0.0.1:80", true},
		{v6("[::ffff:127.0.0.1]:80"), "tcp", "127.0.0.1:80", true},
		{v6("[fe80::1%1]:80"), "tcp6", "[fe80::1%lo]:80", true},
		{v6("[fe80::1%1]:80"), "tcp", "[fe80::1%1]:80", true},
		{v6("[fe80::1%1]:80"), "tcp", "[fe80::1%2]:80", false},
		{v6("[fe80::1%1]:80"), "tcp", "[fe80::1]:80", false},
		{&passed{path: "/run/s"}, "tcp", ":80", false},
		{&passed{path: "/run/s"}, "tcp", ":", false},
	} {
		want, err := net.ResolveTCPAddr(c.network, c.addr)
		got := err == nil && want.Port != 0 && c.socket.serves(c.network, want.AddrPort()) // as Listener does
		assert.Equal(t, c.want, got, "%v for %s %s", c.socket, c.network, c.addr)
	}
}

func TestIsAt(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "s"), filepath.Join(dir, "link")
	_ = listenUnix(t, path)
	require.NoError(t, os.Symlink(dir, link))
	other := filepath.Join(dir, "other")
	_ = listenUnix(t, other)
	t.Chdir(dir)
	for asked, want := range map[string]bool{
		path: true, dir + "//./s": true, "s": true, "./s": true, filepath.Join(link, "s"): true,
		other: false, "@s": false, filepath.Join(dir, "missing"): false,
	} {
		assert.Equal(t, want, (&passed{path: path}).isAt(asked), asked)
	}
	assert.True(t, (&passed{path: "/gone/s"}).isAt("/gone//s"))
	assert.True(t, (&passed{path: "@s"}).isAt("@s"))
	assert.True(t, (&passed{path: "@s"}).isAt("\x00s"))
	assert.False(t, (&passed{path: "@s"}).isAt("s"))
	assert.False(t, (&passed{}).isAt("s"), "no path: a TCP socket, or a unix socket without one")
}

// TestSystemdSocketActivate is the same with systemd's own tool.
func TestSystemdSocketActivate(t *testing.T) {
	tool, err := exec.LookPath("systemd-socket-activate")
	if err != nil {
		t.Skip("systemd-socket-activate is not installed")
	}
	dir := t.TempDir()
	port := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	for name, c := range map[string]struct {
		listen  []string
		names   string
		network string
		ask     []address
		want    string
	}{
		"address": {[]string{port}, "", "tcp4", []address{{"tcp4", "127.0.0.1:1"}, {"tcp4", port}}, port},
		"name":    {[]string{port, dir + "/a"}, "web:local", "tcp4", []address{{"tcp", "web"}}, "web local " + dir + "/a"},
		"path":    {[]string{dir + "/b"}, "", "unix", []address{{"unix", dir + "/b"}}, dir + "/b"},
	} {
		t.Run(name, func(t *testing.T) {
			exe, err := os.Executable()
			require.NoError(t, err)
			var args []string
			for _, l := range c.listen {
				args = append(args, "--listen="+l)
			}
			if c.names != "" {
				args = append(args, "--fdname="+c.names)
			}
			for _, kv := range programEnv(t, "serve", c.ask) {
				args = append(args, "--setenv="+kv)
			}
			cmd := exec.CommandContext(t.Context(), tool, append(args, exe)...)
			stderr, err := cmd.StderrPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			lines := bufio.NewScanner(stderr)
			for range c.listen { // it says so for each
				require.True(t, lines.Scan())
				require.Contains(t, lines.Text(), "Listening on ")
			}
			said := make(chan string)
			go func() {
				var rest []string
				for lines.Scan() {
					rest = append(rest, lines.Text())
				}
				said <- strings.Join(rest, "\n")
			}()
			conn, err := net.Dial(c.network, c.listen[0])
			require.NoError(t, err)
			require.NoError(t, conn.SetDeadline(time.Now().Add(patient)))
			got, err := io.ReadAll(conn)
			_ = conn.Close()
			rest := <-said
			require.NoError(t, cmd.Wait(), rest)
			require.NoError(t, err, rest)
			assert.Equal(t, c.want, strings.TrimSpace(string(got)), rest)
		})
	}
}

// freePort returns a port of 127.0.0.1 that nobody uses, below those that
// clients and port 0 get: systemd-socket-activate does not say which it got.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := 10000 + rand.IntN(10000)
		if ln, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			_ = ln.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}
