//go:build linux

package prefork_test

// What the service manager is told, and the sockets that it passes.

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// manager is the socket on which a service manager listens.
type manager struct {
	t    testing.TB
	conn *net.UnixConn
	path string
}

func newManager(t testing.TB) *manager {
	t.Helper()
	path := filepath.Join(openDir(t), "s")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return &manager{t, conn, path}
}

// hears waits for a message that matches, and returns those before it too.
func (m *manager) hears(pattern string) []string {
	m.t.Helper()
	re := regexp.MustCompile(pattern)
	var heard []string
	require.NoError(m.t, m.conn.SetReadDeadline(time.Now().Add(patience)))
	for b := make([]byte, 4096); ; {
		n, err := m.conn.Read(b)
		require.NoError(m.t, err, "want %s; heard %q", pattern, heard)
		heard = append(heard, string(b[:n]))
		if re.Match(b[:n]) {
			return heard
		}
	}
}

// TestNotify: the master tells what happens, and nobody else does.
func TestNotify(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	path := filepath.Join(t.TempDir(), "app")
	install(t, build(t, "A"), path)
	s := startApp(t, path, "NOTIFY_SOCKET="+m.path)
	heard := m.hears(`^READY=1\nSTATUS=2 of 2 children ready\n?$`)
	assert.Len(t, heard, 1, "nothing before all are ready")

	assert.Equal(t, "<nil>", s.operate("reload"))
	heard = m.hears(`^READY=1`)
	assert.Regexp(t, `^RELOADING=1\nMONOTONIC_USEC=\d+\nSTATUS=reloading\n?$`, heard[0])
	assert.Len(t, heard, 2, "%q", heard)

	pid, err := strconv.Atoi(strings.TrimPrefix(s.get("/"), "A "))
	require.NoError(t, err)
	kill(t, pid, syscall.SIGKILL)
	m.hears(`^STATUS=1 of 2 children ready\n?$`)
	m.hears(`^STATUS=2 of 2 children ready\n?$`)

	install(t, build(t, "B"), path)
	s.upgrade()
	heard = m.hears(`^READY=1`)
	assert.Regexp(t, `^RELOADING=1\nMONOTONIC_USEC=\d+\nSTATUS=upgrading\n?$`, heard[0])
	assert.Len(t, heard, 2, "%q", heard)

	s.signal(syscall.SIGTERM)
	m.hears(`^STOPPING=1\nSTATUS=draining\n?$`)
	assert.Equal(t, 0, s.exit())
}

// TestWatchdog: it is fed as long as the supervise loop runs, also by the
// program that an upgrade brings.
func TestWatchdog(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	path := filepath.Join(t.TempDir(), "app")
	install(t, build(t, "A"), path)
	s := startApp(t, path, "NOTIFY_SOCKET="+m.path, "WATCHDOG_USEC=400000")
	m.hears(`^READY=1`)
	for range 4 {
		m.hears(`^WATCHDOG=1\n?$`)
	}
	s.upgrade()
	m.hears(`^READY=1`)
	for range 4 {
		m.hears(`^WATCHDOG=1\n?$`)
	}
	suspend(t, s.cmd.Process.Pid)
	require.NoError(t, m.conn.SetReadDeadline(time.Now().Add(time.Second)))
	n := 0
	for b := make([]byte, 4096); ; n++ {
		if _, err := m.conn.Read(b); err != nil {
			break
		}
	}
	assert.LessOrEqual(t, n, 1, "a master that is stopped says nothing")
	s.signal(syscall.SIGCONT)
	m.hears(`^WATCHDOG=1\n?$`)
	s.stop()
}

// TestSocketActivation with the tool that plays systemd's part.
func TestSocketActivation(t *testing.T) {
	t.Parallel()
	tool, err := exec.LookPath("systemd-socket-activate")
	if err != nil {
		t.Skip("systemd-socket-activate is not installed")
	}
	path := filepath.Join(t.TempDir(), "app")
	install(t, build(t, "A"), path)
	for _, how := range []struct{ env, want string }{
		{"TESTAPP_LISTENER=", "reuseport"},
		{"TESTAPP_LISTENER=new", "reuseport"},
		{"TESTAPP_MODE=shared", "shared"},
	} {
		addr := freeAddr()
		s := prepare(t, "", nil)
		env := []string{"TESTAPP_ADDR=" + addr, how.env}
		args := []string{"-l", addr}
		for _, kv := range append(s.cmd.Env, env...) {
			args = append(args, "-E", kv)
		}
		s.cmd.Path, s.cmd.Args = tool, slices.Concat([]string{tool}, args, []string{path})
		s.launch()
		s.addr = addr
		var conn net.Conn
		eventually(t, func() bool { conn, err = net.Dial("tcp", addr); return err == nil }, "systemd does not listen") // this starts the program
		_ = conn.Close()
		s.awaitListen()
		for range 20 {
			assert.True(t, strings.HasPrefix(s.get("/"), "A "))
		}
		want := 1
		if how.want == "reuseport" {
			want = 2
		}
		assert.Len(t, listening(t, s.cmd.Process.Pid), want)
		// The port is the one that was passed: an upgrade and a reload keep it.
		s.upgrade()
		assert.Equal(t, "<nil>", s.operate("reload"))
		assert.True(t, strings.HasPrefix(s.get("/"), "A "))
		s.stop()
	}
}

// TestSocketActivationOfAUnixSocket: its file is systemd's and stays.
func TestSocketActivationOfAUnixSocket(t *testing.T) {
	t.Parallel()
	tool, err := exec.LookPath("systemd-socket-activate")
	if err != nil {
		t.Skip("systemd-socket-activate is not installed")
	}
	dir := openDir(t)
	path, at := filepath.Join(dir, "app"), filepath.Join(dir, "s")
	install(t, build(t, "A"), path)
	s := prepare(t, "", nil)
	args := []string{"-l", at}
	for _, kv := range append(s.cmd.Env, "TESTAPP_ADDR="+at, "TESTAPP_MODE=unix") {
		args = append(args, "-E", kv)
	}
	s.cmd.Path, s.cmd.Args = tool, slices.Concat([]string{tool}, args, []string{path})
	s.launch()
	var conn net.Conn
	eventually(t, func() bool { conn, err = net.Dial("unix", at); return err == nil }, "systemd does not listen")
	_, err = fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	require.NoError(t, err)
	_, body := answer(t, conn)
	assert.True(t, strings.HasPrefix(body, "A "))
	require.NoError(t, conn.Close())
	s.stop()
	assert.FileExists(t, at)
}

// TestActivatedSocketOfAnotherUser: no listener may be opened beside it; one
// is shared.
func TestActivatedSocketOfAnotherUser(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := openDir(t)
	path := filepath.Join(dir, "app")
	install(t, build(t, "A"), path)
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = ln.Close() }()
	f, err := ln.(*net.TCPListener).File()
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	addr := ln.Addr().String()
	s := prepare(t, "", nil)
	s.cmd.Path, s.cmd.Args = "/bin/sh", []string{"sh", "-c", `LISTEN_PID=$$ exec "$0"`, path}
	s.cmd.Env = append(s.cmd.Env, "TESTAPP_ADDR="+addr, "LISTEN_FDS=1")
	s.cmd.Dir = dir
	s.cmd.ExtraFiles = append(s.cmd.ExtraFiles, f)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	s.launch().awaitListen()
	s.await(`all children share one listener: listener of slot 1: .*address already in use`)
	assert.True(t, strings.HasPrefix(s.get("/"), "A "))
	s.stop()
}

// TestChildCredential: the master binds as root, the children are nobody.
func TestChildCredential(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	for _, who := range []map[string]string{
		{"user": "nobody"}, {"user": "65534"}, {"user": "nobody", "group": "nogroup"}, {"user": "54321", "group": "54322"},
	} {
		s := start(t, "app", options{"enable_prefork": true, "Children": 2, "child_credential": who, "At": "operate"})
		want := "65534 65534"
		if who["group"] == "54322" {
			want = "54321 54322"
		}
		assert.Equal(t, want+" []", s.get("/id"))
		kill(t, s.readyPIDs(2)[0], syscall.SIGKILL)
		s.readyPIDs(3)
		assert.Equal(t, "<nil>", s.operate("reload"))
		assert.Equal(t, want+" []", s.get("/id"))
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
		require.NoError(t, err)
		assert.Regexp(t, `(?m)^Uid:\s+0\s+0\s+0\s+0$`, string(b), "the master stays root")
		s.stop()
	}
}

// TestChildCredentialWithoutRoot is refused before anything starts.
func TestChildCredentialWithoutRoot(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root to become somebody else")
	}
	dir := openDir(t)
	exe, err := os.Executable()
	require.NoError(t, err)
	install(t, exe, filepath.Join(dir, "test"))
	for user, works := range map[string]bool{"nobody": true, "daemon": false} {
		s := prepare(t, "app", options{"enable_prefork": true, "Children": 1, "child_credential": map[string]string{"user": user}})
		s.cmd.Path, s.cmd.Dir = filepath.Join(dir, "test"), dir
		s.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		s.launch()
		if works {
			s.awaitListen()
			assert.Equal(t, "65534 65534 []", s.get("/id"))
			s.stop()
			continue
		}
		assert.Equal(t, 1, s.exit())
		s.await(`returned prefork: invalid configuration: ChildCredential = {User:daemon Group:}: only root can change the user; this is user 65534`)
		assert.Empty(t, s.matches("EVENT .* fork"))
	}
}
