//go:build linux

package prefork_test

// What can only be tried on Linux: a kernel that refuses an option, PID 1 of
// a namespace, a limit on a group's memory.

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// refuseReuseport makes the kernel answer ENOPROTOOPT to
// setsockopt(SOL_SOCKET, SO_REUSEPORT), and to nothing else, for this process
// and all that it starts.
func refuseReuseport() error {
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	// Go on if equal, else allow: end is the distance to the allowing return.
	check := func(k uint32, end uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jf: end}
	}
	const nr, arg1, arg2 = 0, 16 + 8, 16 + 16 // of struct seccomp_data, low words
	const seccompRetErrno, seccompRetAllow = 0x00050000, 0x7fff0000
	program := []unix.SockFilter{
		load(nr), check(unix.SYS_SETSOCKOPT, 5),
		load(arg1), check(unix.SOL_SOCKET, 3),
		load(arg2), check(unix.SO_REUSEPORT, 1),
		{Code: unix.BPF_RET | unix.BPF_K, K: seccompRetErrno | uint32(unix.ENOPROTOOPT)},
		{Code: unix.BPF_RET | unix.BPF_K, K: seccompRetAllow},
	}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	const setModeFilter, flagTsync = 1, 1
	fprog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, setModeFilter, flagTsync, uintptr(unsafe.Pointer(&fprog))); errno != 0 {
		return errno
	}
	return nil
}

func init() {
	programs["refused"] = func(o *programOptions) {
		if err := refuseReuseport(); err != nil {
			fmt.Fprintln(os.Stderr, "seccomp:", err)
			os.Exit(3)
		}
		programs["app"](o)
	}
}

func TestKernelRefusesReuseport(t *testing.T) {
	t.Parallel()
	s := start(t, "refused", options{"enable_prefork": true, "Children": 2, "Banner": true})
	s.await(`Enabled \(shared\)`)
	assert.Len(t, s.matches(`\[Warn\] \[prefork\] all children share one listener: .*protocol not available`), 1)
	assert.Equal(t, "true true", s.get("/ischild"))
	s.stop()

	for _, opts := range []options{{"disable_reuseport_fallback": true}, {"listener_mode": 1}} {
		opts["enable_prefork"] = true
		s = prepare(t, "refused", opts).launch()
		assert.Equal(t, 1, s.exit())
		s.await("is SO_REUSEPORT is not supported")
		assert.Empty(t, s.matches("EVENT .* fork"))
	}
}

// TestReuseportListener: main opens it in every process, but the copies of
// the children never get a connection.
func TestReuseportListener(t *testing.T) {
	t.Parallel()
	s := start(t, "listener", options{"enable_prefork": true, "Children": 2, "Open": "reuseport", "Addr": freeAddr(), "Banner": true, "recovery_window": 1})
	s.await(`Enabled \(shared\)`)
	master := s.cmd.Process.Pid
	require.Len(t, listening(t, master), 1, "the socket itself is used")
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		client := newClient()
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if body, err := fetch(client, "http://"+s.addr+"/ischild"); err != nil || body != "true true" {
				done <- fmt.Errorf("%q %w", body, err)
				return
			}
		}
	}()
	// While requests come, children that are not serving any are started.
	for n := range 20 {
		pids := s.readyPIDs(n + 2)
		kill(t, pids[n+1], syscall.SIGTERM)
	}
	s.readyPIDs(22)
	close(stop)
	require.NoError(t, <-done)
	s.stop()
}

// TestMPTCPListener: no program can be put on its socket, so that the copies
// could not be kept from connections.
func TestMPTCPListener(t *testing.T) {
	t.Parallel()
	s := start(t, "listener", options{"enable_prefork": true, "Open": "mptcp"})
	if len(s.matches("no prefork for")) == 0 {
		t.Log("the kernel has no MPTCP, or lets programs on it")
		s.stop()
		return
	}
	s.await(`no prefork for the \*net.TCPListener on .*: the copies that main opens`)
	assert.Equal(t, "false false", s.get("/ischild"))
	s.signal(syscall.SIGKILL)
	s.exit()
}

func TestPrivilegedPort(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root to become another user")
	}
	s := prepare(t, "app", options{"enable_prefork": true, "Addr": "127.0.0.1:81"})
	runAs(t, s, 61235)
	s.launch()
	assert.Equal(t, 1, s.exit())
	s.await("is permission denied")
	assert.Empty(t, s.matches("EVENT .* fork"))
}

// inNamespace makes the program PID 1 of a namespace.
func inNamespace(t *testing.T, s *server) *server {
	t.Helper()
	unshare, err := exec.LookPath("unshare")
	if err != nil || os.Getuid() != 0 {
		t.Skip("needs root and unshare")
	}
	s.cmd.Args = []string{unshare, "--pid", "--fork", "--mount-proc", "--kill-child", s.cmd.Path}
	s.cmd.Path = unshare
	return s
}

// master is the program behind unshare, by its pid out here.
func (s *server) master() int {
	s.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", s.cmd.Process.Pid))
	require.NoError(s.t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	require.NoError(s.t, err)
	return pid
}

func TestPID1(t *testing.T) {
	t.Parallel()
	s := inNamespace(t, prepare(t, "stranger", options{"enable_prefork": true, "Children": 2})).launch()
	s.awaitListen()
	s.await("^EVENT 1 listen")
	outside := s.master()

	// A child that dies is recognized and replaced.
	conn := dial(t, "tcp", s.addr, "/exit/3")
	_, _ = conn.Read(make([]byte, 1))
	s.await(`EVENT 1 exit \d \d+ code=3 asked=false status=exit status 3`)
	s.await(`EVENT 1 recover`)

	// What other processes leave behind is reaped, and the application's own
	// processes keep their status.
	stranger := s.get("/stranger")
	eventually(t, func() bool { return zombies(outside) == 0 && len(s.matches(`own 5$`)) > 0 }, "stranger %s is not reaped", stranger)

	conn = dial(t, "tcp", s.addr, "/sleep/300")
	s.await("EVENT .* sleeping")
	kill(t, outside, syscall.SIGTERM)
	_, body := answer(t, conn)
	assert.Equal(t, "slept", body)
	assert.Equal(t, 0, s.exit())
	s.await("EVENT 1 postshutdown <nil>")
	s.await("EVENT 1 returned <nil>")
}

func TestPID1IsKilled(t *testing.T) {
	t.Parallel()
	s := inNamespace(t, prepare(t, "app", options{"enable_prefork": true, "Children": 2})).launch()
	s.awaitListen()
	kill(t, s.master(), syscall.SIGKILL)
	s.exit() // the kernel ends the namespace
}

func init() {
	// stranger leaves processes to PID 1, and PID 1 has one of its own.
	programs["stranger"] = func(o *programOptions) {
		app := newApp(o)
		app.Get("/stranger", func(c fiberCtx) error {
			// The shell in the middle ends first.
			out, err := exec.Command("/bin/sh", "-c", "(sleep 0.1; exit 4) >/dev/null 2>&1 & echo $!").Output()
			if err != nil {
				return err
			}
			return c.SendString(strings.TrimSpace(string(out)))
		})
		app.Hooks().OnListen(func(fiberListenData) error {
			go func() {
				err := exec.Command("/bin/sh", "-c", "sleep 0.2; exit 5").Run()
				var exit *exec.ExitError
				if errors.As(err, &exit) {
					tell("own", "%d", exit.ExitCode())
				} else {
					tell("own", "%v", err)
				}
			}()
			return nil
		})
		finish(o, app.Listen(o.Addr, o.ListenConfig))
	}
}

// TestOutOfMemory: the kernel kills the child that takes too much.
func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	root, limit := "/sys/fs/cgroup/memory", "memory.limit_in_bytes" // version 1
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		root, limit = "/sys/fs/cgroup", "memory.max"
	}
	group := filepath.Join(root, "prefork-test-"+strconv.Itoa(os.Getpid())+"-"+strconv.Itoa(int(time.Now().UnixNano())))
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Skipf("no control group: %v", err)
	}
	t.Cleanup(func() { eventually(t, func() bool { return os.Remove(group) == nil }, "the group stays") })
	limit = filepath.Join(group, limit)
	if _, err := os.Stat(limit); err != nil {
		t.Skipf("no limit on memory: %v", err)
	}
	require.NoError(t, os.WriteFile(limit, []byte("128M"), 0o600))
	s := start(t, "app", options{"enable_prefork": true, "Children": 1})
	pid := s.readyPIDs(1)[0]
	require.NoError(t, os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o600))
	dial(t, "tcp", s.addr, "/alloc")
	s.await(fmt.Sprintf(`EVENT \d+ exit 0 %d code=-1 asked=false status=signal: killed`, pid))
	s.await(fmt.Sprintf("EVENT .* recover %d", pid))
	s.stop()
}

// TestNames: what ps shows, and what descriptors a child and its programs have.
func TestNames(t *testing.T) {
	t.Parallel()
	s := start(t, "stranger", options{"enable_prefork": true, "Children": 1})
	pid := s.readyPIDs(1)[0]
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	require.NoError(t, err)
	want, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", s.cmd.Process.Pid))
	require.NoError(t, err)
	assert.Equal(t, string(want), string(comm))

	require.Len(t, listening(t, pid), 1, "the inherited number is closed")
	grandchild, err := strconv.Atoi(s.get("/stranger"))
	require.NoError(t, err)
	assert.Empty(t, listening(t, grandchild), "a program that a child runs holds no listener")
	s.stop()
}

// TestProgramOfAChildIsNoChild: it has the environment, but not the descriptors.
func TestProgramOfAChildIsNoChild(t *testing.T) {
	t.Parallel()
	s := start(t, "nested", options{"enable_prefork": true, "Children": 1})
	assert.Equal(t, "false false", strings.TrimSpace(s.get("/nested")))
	s.stop()
}

// TestHupIsIgnored: under nohup a hangup does not end the server.
func TestHupIsIgnored(t *testing.T) {
	t.Parallel()
	s := prepare(t, "app", options{"enable_prefork": true, "Children": 1})
	s.cmd.Args = []string{"sh", "-c", `trap '' HUP; exec "$0"`, s.cmd.Path}
	s.cmd.Path = "/bin/sh"
	s.launch().awaitListen()
	s.signal(syscall.SIGHUP)
	kill(t, s.readyPIDs(1)[0], syscall.SIGHUP)
	for range 10 {
		_ = s.get("/")
		time.Sleep(time.Millisecond)
	}
	assert.Empty(t, s.matches("draining"))
	s.stop()
}

// TestJobControl: a server in the background of a terminal, which reads from
// it, is sent SIGTTIN again and again. Nobody wants more children.
func TestJobControl(t *testing.T) {
	t.Parallel()
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no terminals: %v", err)
	}
	defer func() { _ = terminal.Close() }()
	raw, err := terminal.SyscallConn()
	require.NoError(t, err)
	number := 0
	require.NoError(t, raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	}))
	require.NoError(t, err)
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	defer func() { _ = tty.Close() }()
	path := filepath.Join(t.TempDir(), "app")
	install(t, build(t, "A"), path)
	s := prepare(t, "", nil)
	s.cmd.Path, s.cmd.Args = "/bin/sh", []string{"sh", "-c", `set -m; "$0" <"$1" & wait; kill -TERM $! 2>/dev/null; wait`, path, tty.Name()}
	s.cmd.Env = append(s.cmd.Env, "TESTAPP_ADDR=127.0.0.1:0")
	s.cmd.Stdin = tty
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	s.launch().awaitListen()
	for range 50 {
		s.get("/")
	}
	pid, err := strconv.Atoi(s.await(`^EVENT (\d+) listen`)[1])
	require.NoError(t, err)
	kill(t, pid, syscall.SIGTERM)
	s.exit()
	assert.Empty(t, s.matches("scale"))
}
