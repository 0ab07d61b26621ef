//go:build unix

package prefork_test

// The harness: the test binary runs itself again as the program under test,
// so that every master and every child is a real process on real sockets.
// What those programs are is in programs_test.go.

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/fiber-prefork/prefork"
)

const (
	envProgram = "PREFORK_TEST_PROGRAM" // which program this process is
	envConfig  = "PREFORK_TEST_CONFIG"  // its options, as JSON
	envID      = "PREFORK_TEST_ID"      // marks every process of one test

	// patience is how long a test waits for a condition that should come true
	// at once: long, because CI machines are slow under -race and load.
	patience = 30 * time.Second
)

func TestMain(m *testing.M) {
	if name := os.Getenv(envProgram); name != "" {
		runProgram(name)
		os.Exit(0)
	}
	if prefork.IsChild() {
		ExampleApp_Listen()
		os.Exit(0)
	}
	_ = os.Setenv("ADDR", freeAddr())   // of the example
	if signal.Ignored(syscall.SIGHUP) { // nohup: programs under test would inherit it
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	}
	goleak.VerifyTestMain(runner{m},
		// fasthttp's pool sleeps for 10 s between looks at whether it has ended.
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		// One that a program without prefork starts and never ends.
		goleak.IgnoreAnyFunction("os/signal.loop"),
	)
}

// runner cleans up after the tests.
type runner struct{ m *testing.M }

func (r runner) Run() int {
	defer func() { _ = os.RemoveAll(builds.dir) }()
	return r.m.Run()
}

// long says that measurements are wanted: they take their time, and need a
// machine that does nothing else and a binary without -race.
func long() bool { return os.Getenv("PREFORK_TEST_LONG") != "" }

func needsLong(t *testing.T) {
	t.Helper()
	if !long() {
		t.Skip("measures: set PREFORK_TEST_LONG=1")
	}
}

// options are what a test sets in the program's options.
type options map[string]any

// server is a master and its children.
type server struct {
	t    testing.TB
	id   string
	cmd  *exec.Cmd
	addr string // that OnListen told, "host:port"

	in *os.File // its standard input

	mu    sync.Mutex
	lines []string
	grown chan struct{} // closed and renewed when a line comes
	ended chan struct{} // closed when every process has closed its output
	wait  func() error
}

// prepare makes the command for a program, for tests that run it in a special
// way. Its output is read once launch has started it.
func prepare(t testing.TB, program string, opts options) *server {
	t.Helper()
	// Many tests leave a connection open. Those in which clients go on asking
	// on theirs want the default.
	all := options{"drain_idle": 200 * time.Millisecond}
	for name, value := range opts {
		all[name] = value
	}
	config, err := json.Marshal(all)
	require.NoError(t, err)
	s := &server{t: t, id: fmt.Sprintf("%s-%d", t.Name(), time.Now().UnixNano()), grown: make(chan struct{}), ended: make(chan struct{})}
	exe, err := os.Executable()
	require.NoError(t, err)
	s.cmd = exec.Command(exe)
	s.cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", envProgram+"="+program, envConfig+"="+string(config), envID+"="+s.id)
	return s
}

// launch starts the program and sees to it that nothing is left of it.
func (s *server) launch() *server {
	s.t.Helper()
	r, w, err := os.Pipe()
	require.NoError(s.t, err)
	if s.cmd.Stdout == nil {
		s.cmd.Stdout = w
	}
	if s.cmd.Stderr == nil {
		s.cmd.Stderr = w
	}
	in, feed, err := os.Pipe()
	require.NoError(s.t, err)
	if s.in = feed; s.cmd.Stdin == nil {
		s.cmd.Stdin = in
	}
	require.NoError(s.t, s.cmd.Start())
	require.NoError(s.t, in.Close())
	require.NoError(s.t, w.Close())
	go s.read(r)
	s.wait = sync.OnceValue(s.cmd.Wait)
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.t.Logf("output of %s:\n%s", s.id, s.output())
		}
		for _, pid := range s.processes() { // only after a failure is anyone left
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		_ = s.cmd.Process.Kill()
		_ = s.wait()
		_ = feed.Close()
	})
	return s
}

// start runs a program and waits until OnListen has told its address.
func start(t testing.TB, program string, opts options) *server {
	t.Helper()
	s := prepare(t, program, opts).launch()
	s.awaitListen()
	return s
}

func (s *server) awaitListen() {
	s.t.Helper()
	s.addr = s.await(`^EVENT \d+ listen (\S+)`)[1]
}

func (s *server) read(r *os.File) {
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		s.mu.Lock()
		s.lines = append(s.lines, scanner.Text())
		close(s.grown)
		s.grown = make(chan struct{})
		s.mu.Unlock()
	}
	_ = r.Close()
	close(s.ended)
}

func (s *server) output() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines, "\n")
}

// reply has the program told something on its standard input, and returns the
// submatches of the first line that it says then which matches.
func (s *server) reply(to, pattern string) []string {
	s.t.Helper()
	s.mu.Lock()
	from := len(s.lines)
	s.mu.Unlock()
	_, err := s.in.WriteString(to + "\n")
	require.NoError(s.t, err)
	var found [][]string
	eventually(s.t, func() bool { found = s.matchesFrom(from, pattern); return len(found) > 0 }, "no reply to %q", to)
	return found[0]
}

// matches returns the submatches of every line that matches.
func (s *server) matches(pattern string) [][]string { return s.matchesFrom(0, pattern) }

// matchesFrom is matches without the first lines.
func (s *server) matchesFrom(from int, pattern string) [][]string {
	re := regexp.MustCompile(pattern)
	s.mu.Lock()
	defer s.mu.Unlock()
	var found [][]string
	for _, line := range s.lines[from:] {
		if m := re.FindStringSubmatch(line); m != nil {
			found = append(found, m)
		}
	}
	return found
}

// await waits for a line that matches and returns its submatches.
func (s *server) await(pattern string) []string {
	s.t.Helper()
	return s.awaitN(pattern, 1)[0]
}

// awaitN waits for n lines that match.
func (s *server) awaitN(pattern string, n int) [][]string {
	s.t.Helper()
	timeout := time.After(patience)
	for {
		s.mu.Lock()
		grown := s.grown
		s.mu.Unlock()
		found := s.matches(pattern)
		if len(found) >= n {
			return found
		}
		select {
		case <-grown:
		case <-s.ended:
			if found := s.matches(pattern); len(found) >= n {
				return found
			}
			require.FailNow(s.t, "program ended", "want %d lines like %s, got %d", n, pattern, len(found))
		case <-timeout:
			require.FailNow(s.t, "timeout", "want %d lines like %s, got %d", n, pattern, len(found))
		}
	}
}

func (s *server) signal(sig syscall.Signal) {
	s.t.Helper()
	require.NoError(s.t, s.cmd.Process.Signal(sig))
}

// exit waits for the master's end and proves that nothing is left: no process
// holds its output, and none carries its mark.
func (s *server) exit() int {
	s.t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.wait()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		require.FailNow(s.t, "the master does not end")
	}
	s.gone()
	return s.cmd.ProcessState.ExitCode()
}

func (s *server) gone() {
	s.t.Helper()
	select {
	case <-s.ended:
	case <-time.After(patience):
		require.FailNow(s.t, "processes are left", "%v", s.processes())
	}
	eventually(s.t, func() bool { return len(s.processes()) == 0 }, "processes are left")
}

// stop ends the program with SIGTERM and expects it to end well.
func (s *server) stop() {
	s.t.Helper()
	s.signal(syscall.SIGTERM)
	assert.Equal(s.t, 0, s.exit(), "exit status of the master")
}

// processes are the living processes of the program, the master included.
func (s *server) processes() []int {
	if runtime.GOOS != "linux" {
		return nil
	}
	mark := []byte(envID + "=" + s.id + "\x00")
	var pids []int
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range environs {
		if env, err := os.ReadFile(path); err == nil && bytes.Contains(env, mark) {
			pid, _ := strconv.Atoi(strings.Split(path, "/")[2])
			pids = append(pids, pid)
		}
	}
	return pids
}

// readyPIDs waits until n children have become ready since the start, and
// returns them in that order.
func (s *server) readyPIDs(n int) []int {
	s.t.Helper()
	var pids []int
	for _, m := range s.awaitN(`^EVENT \d+ ready \d+ (\d+)`, n) {
		pid, _ := strconv.Atoi(m[1])
		pids = append(pids, pid)
	}
	return pids
}

// eventually waits until cond holds.
func eventually(t testing.TB, cond func() bool, msg string, args ...any) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			require.FailNow(t, "timeout: "+fmt.Sprintf(msg, args...))
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// openDir returns a folder with a short path, which any user can enter.
func openDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "prefork") //nolint:usetesting // t.TempDir is long, and ours alone
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	return dir
}

// newClient returns a client that opens a connection for each request.
func newClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
}

// get asks for a path on a connection of its own.
func (s *server) get(path string) string {
	s.t.Helper()
	body, err := fetch(newClient(), "http://"+s.addr+path)
	require.NoError(s.t, err)
	return body
}

func fetch(client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return string(body), fmt.Errorf("status %s: %s", resp.Status, body)
	}
	return string(body), nil
}

// dial opens a connection and sends a request for path on it.
func dial(t testing.TB, network, addr, path string) net.Conn {
	t.Helper()
	conn, err := net.Dial(network, addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
	require.NoError(t, err)
	return conn
}

// answer reads one response from conn.
func answer(t testing.TB, conn net.Conn) (*http.Response, string) {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp, string(body)
}

// kill ends a child by a signal.
func kill(t testing.TB, pid int, sig syscall.Signal) {
	t.Helper()
	require.NoError(t, syscall.Kill(pid, sig))
}

// suspend stops a child and waits until it is.
func suspend(t testing.TB, pid int) {
	t.Helper()
	kill(t, pid, syscall.SIGSTOP)
	eventually(t, func() bool { return stopped(pid) }, "pid %d does not stop", pid)
}

// freeAddr returns a loopback address that nobody uses, for programs that
// cannot ask for port 0. It is below the ports that clients and port 0 get, so
// that none of those takes it before the program does.
func freeAddr() string {
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(10000))
		if ln, err := net.Listen("tcp4", addr); err == nil {
			_ = ln.Close()
			return addr
		}
	}
	panic("no port is free")
}

// pidAt asks at addr who answers there: "" while nobody does.
func pidAt(addr string) string {
	body, err := fetch(newClient(), "http://"+addr+"/")
	if err != nil {
		return ""
	}
	return body
}
