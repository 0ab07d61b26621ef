package systemd

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// manager is the service manager's end of NOTIFY_SOCKET.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

func newManager(t *testing.T, name string) *manager {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", name)
	return &manager{t: t, conn: conn}
}

func managerAtPath(t *testing.T) *manager {
	t.Helper()
	dir, err := os.MkdirTemp("", "sd") //nolint:usetesting // t.TempDir is too long for a socket's path
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return newManager(t, filepath.Join(dir, "notify"))
}

// next returns the next datagram, whole.
func (m *manager) next() string {
	m.t.Helper()
	require.NoError(m.t, m.conn.SetReadDeadline(time.Now().Add(patient)))
	b := make([]byte, 8192)
	n, err := m.conn.Read(b)
	require.NoError(m.t, err)
	return string(b[:n])
}

// nothingElse checks that no datagram waits. All that were sent are there by
// now: a datagram is in the receiver's queue when send returns.
func (m *manager) nothingElse() {
	m.t.Helper()
	raw, err := m.conn.SyscallConn()
	require.NoError(m.t, err)
	b := make([]byte, 8192)
	require.NoError(m.t, raw.Control(func(fd uintptr) {
		n, _, err := unix.Recvfrom(int(fd), b, unix.MSG_DONTWAIT)
		assert.ErrorIs(m.t, err, unix.EAGAIN, "%d bytes", n)
	}))
}

func TestMessages(t *testing.T) {
	for where, manage := range map[string]func(t *testing.T) *manager{
		"path":     managerAtPath,
		"abstract": func(t *testing.T) *manager { t.Helper(); return newManager(t, fmt.Sprintf("@prefork-%d", os.Getpid())) },
	} {
		t.Run(where, func(t *testing.T) {
			m := manage(t)
			n := New()
			require.NotNil(t, n)
			for _, c := range []struct {
				send func() error
				want string
			}{
				{func() error { return n.Ready("4 of 4 children ready") }, "READY=1\nSTATUS=4 of 4 children ready"},
				{func() error { return n.Ready("") }, "READY=1"},
				{func() error { return n.Stopping("draining") }, "STOPPING=1\nSTATUS=draining"},
				{func() error { return n.Stopping("") }, "STOPPING=1"},
				{func() error { return n.Status("3 of 4 children ready") }, "STATUS=3 of 4 children ready"},
				{func() error { return n.Status("") }, "STATUS="},
				{n.Watchdog, "WATCHDOG=1"},
			} {
				require.NoError(t, c.send())
				assert.Equal(t, c.want, m.next())
			}
			m.nothingElse()
		})
	}
}

func TestReloadingTellsTheTime(t *testing.T) {
	m := managerAtPath(t)
	now := func() int64 {
		var ts unix.Timespec
		require.NoError(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts))
		return ts.Nano() / 1000
	}
	for status, rest := range map[string]string{"reloading": "\nSTATUS=reloading", "": ""} {
		before := now()
		require.NoError(t, New().Reloading(status))
		after := now()
		got := m.next()
		head, tail := "RELOADING=1\nMONOTONIC_USEC=", rest
		require.Truef(t, strings.HasPrefix(got, head) && strings.HasSuffix(got, tail), "%q", got)
		usec, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(got, head), tail), 10, 64)
		require.NoError(t, err, "%q", got)
		assert.GreaterOrEqual(t, usec, before)
		assert.LessOrEqual(t, usec, after)
	}
	m.nothingElse()
}

func TestStatusIsOneLine(t *testing.T) {
	m := managerAtPath(t)
	require.NoError(t, New().Status("a\nMAINPID=1\r\n\x00b\xffc"))
	assert.Equal(t, "STATUS=a MAINPID=1   bc", m.next())
	require.NoError(t, New().Ready(strings.Repeat("é", 5000)))
	assert.Equal(t, "READY=1\nSTATUS="+strings.Repeat("é", maxStatus/2), m.next())
	require.NoError(t, New().Ready("x"+strings.Repeat("é", 5000)))
	assert.Equal(t, "READY=1\nSTATUS=x"+strings.Repeat("é", maxStatus/2-1), m.next(), "no half letter")
}

func TestNobodyToNotify(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "1000000")
	n := New()
	require.Nil(t, n)
	require.NoError(t, errors.Join(n.Ready("x"), n.Reloading("x"), n.Stopping("x"), n.Status("x"), n.Watchdog()))
	assert.Zero(t, n.WatchdogInterval())
}

func TestNotifySocketIsGone(t *testing.T) {
	m := managerAtPath(t)
	n := New()
	require.NoError(t, m.conn.Close())
	err := n.Ready("x") // the file is still there or not: Go removes it
	require.Error(t, err)
	require.ErrorContains(t, err, "systemd: notify READY=1: ")

	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "missing"))
	require.ErrorIs(t, n.Watchdog(), fs.ErrNotExist)
	assert.False(t, n.hangs)
	assert.Empty(t, n.waiting)
}

// TestServiceManagerHangs: it does not read, and the server goes on.
func TestServiceManagerHangs(t *testing.T) {
	m := managerAtPath(t)
	n := New()
	var want []string
	status := func() error {
		s := strconv.Itoa(len(want))
		want = append(want, "STATUS="+s)
		return n.Status(s)
	}
	var err error
	for err == nil { // until the kernel's queue is full
		err = status()
		require.Less(t, len(want), 100_000)
	}
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.ErrorContains(t, err, "systemd: notify STATUS=")
	start := time.Now()
	for range maxWaiting - 2 {
		require.ErrorIs(t, status(), os.ErrDeadlineExceeded)
	}
	want = append(want, "READY=1")
	require.ErrorIs(t, n.Ready(""), os.ErrDeadlineExceeded)
	require.ErrorContains(t, n.Ready("one too many"), "dropped, 64 messages wait")
	assert.Less(t, time.Since(start), 10*patience, "nobody waits again and again")

	for i, w := range want {
		require.Equal(t, w, m.next(), "message %d", i)
	}
	require.NoError(t, n.Ready("again"))
	assert.Equal(t, "READY=1\nSTATUS=again", m.next())
	m.nothingElse()
}

func TestNotifierIsSafe(t *testing.T) {
	m := managerAtPath(t)
	n := New()
	const senders, each = 8, 20
	result := make(chan error, senders)
	for range senders {
		go func() {
			var err error
			for range each {
				err = errors.Join(err, n.Watchdog())
			}
			result <- err
		}()
	}
	for range senders * each {
		require.Equal(t, "WATCHDOG=1", m.next())
	}
	for range senders {
		require.NoError(t, <-result)
	}
}

func TestWatchdogInterval(t *testing.T) {
	m := managerAtPath(t)
	own := strconv.Itoa(os.Getpid())
	for _, c := range []struct {
		usec, pid string
		want      time.Duration
	}{
		{"", "", 0},
		{"30000000", "", 15 * time.Second},
		{"30000000", own, 15 * time.Second},
		{"30000000", strconv.Itoa(os.Getppid()), 0},
		{"30000000", "me", 0},
		{"1", own, 500 * time.Nanosecond},
		{"0", own, 0},
		{"-5", own, 0},
		{"soon", own, 0},
		{"9223372036854775807", own, 0},
	} {
		t.Setenv("WATCHDOG_USEC", c.usec)
		t.Setenv("WATCHDOG_PID", c.pid)
		assert.Equal(t, c.want, New().WatchdogInterval(), "%+v", c)
	}
	m.nothingElse()
}
