package socket

import (
	"context"
	"net"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// keepAliveOf accepts a connection from ln and says whether it has keep-alive,
// after how many seconds, how often, and how many times.
func keepAliveOf(t *testing.T, ln net.Listener) (options [4]int) {
	t.Helper()
	client, err := net.Dial("tcp4", ln.Addr().String())
	require.NoError(t, err)
	defer func() { _ = client.Close() }()
	_, err = client.Write([]byte("x"))
	require.NoError(t, err)
	conn, err := ln.Accept()
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	raw, err := conn.(syscall.Conn).SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		for i, option := range [4][2]int{
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL},
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT},
		} {
			options[i], err = unix.GetsockoptInt(int(fd), option[0], option[1])
			require.NoError(t, err)
		}
	}))
	return options
}

// inherited is a child's listener for s.
func inherited(t *testing.T, s *Socket) *net.TCPListener {
	t.Helper()
	fd, err := unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 0)
	require.NoError(t, err)
	ln, err := Inherit(uintptr(fd))
	require.NoError(t, err)
	t.Cleanup(func() { _ = ln.Close() })
	return ln.(*net.TCPListener)
}

// TestKeepAlive: connections have what package net gives them, wherever it
// comes from.
func TestKeepAlive(t *testing.T) {
	plain, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = plain.Close() }()
	want := keepAliveOf(t, plain)
	require.Equal(t, 1, want[0])

	ours, err := Listen("tcp4", "127.0.0.1:0", 0)
	require.NoError(t, err)
	defer func() { _ = ours.Close() }()
	assert.Equal(t, want, keepAliveOf(t, inherited(t, ours)))

	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	foreign, err := Take(ln)
	require.NoError(t, err)
	defer func() { _ = foreign.Close() }()
	assert.Equal(t, want, keepAliveOf(t, inherited(t, foreign)))
}

// TestKeepAliveOfTheSocket is that of its connections: systemd may have set it.
func TestKeepAliveOfTheSocket(t *testing.T) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 77)
		})
	}}
	ln, err := config.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	s, err := Take(ln)
	require.NoError(t, err)
	defer func() { _ = s.Close() }()
	// Also the proof that package net still has its configuration where it is looked for.
	assert.Equal(t, 77, keepAliveOf(t, inherited(t, s))[1])
}
