//go:build unix

package socket

import (
	"context"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func mustListen(t *testing.T, network, addr string) *Socket {
	t.Helper()
	s, err := Listen(network, addr, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// serve answers on s with name until the test ends.
func serve(t *testing.T, s *Socket, name string) {
	t.Helper()
	ln, err := s.Listener()
	require.NoError(t, err)
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte(name))
			_ = conn.Close()
		}
	}()
}

func ask(t *testing.T, network, addr string) string {
	t.Helper()
	conn, err := net.DialTimeout(network, addr, 5*time.Second)
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	require.NoError(t, conn.SetDeadline(time.Now().Add(5*time.Second)))
	_, err = conn.Write([]byte{1}) // else the kernel defers it
	require.NoError(t, err)
	b := make([]byte, 16)
	n, err := conn.Read(b)
	require.NoError(t, err)
	return string(b[:n])
}

func TestListenIsExclusive(t *testing.T) {
	s := mustListen(t, "tcp4", "127.0.0.1:0")
	addr := s.Addr().String()
	_, err := Listen("tcp4", addr, 0)
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	require.ErrorContains(t, err, addr)

	if runtime.GOOS != "linux" {
		return
	}
	require.NoError(t, s.EnableReuseport())
	_, err = Listen("tcp4", addr, 0)
	require.ErrorIs(t, err, syscall.EADDRINUSE, "a port that is open for siblings is not for others")
	assert.True(t, s.Reuseport())
}

func TestSiblingsSpread(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp6", "tcp"} {
		t.Run(network, func(t *testing.T) {
			addr := map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0", "tcp": ":0"}[network]
			s, err := Listen(network, addr, 0)
			if err != nil {
				t.Skipf("no %s here: %v", network, err)
			}
			if err := s.EnableReuseport(); err != nil {
				require.ErrorIs(t, err, ErrReuseport)
				t.Skipf("%s: %v", runtime.GOOS, err)
			}
			sibling, err := s.Sibling()
			require.NoError(t, err)
			require.Equal(t, s.Addr().String(), sibling.Addr().String())
			_, port, err := net.SplitHostPort(s.Addr().String())
			require.NoError(t, err)
			serve(t, s, "first")
			serve(t, sibling, "sibling")
			hosts := map[string][]string{"tcp4": {"127.0.0.1"}, "tcp6": {"::1"}, "tcp": {"127.0.0.1", "::1"}}[network]
			for _, host := range hosts {
				seen := map[string]int{}
				for range 100 {
					seen[ask(t, "tcp", net.JoinHostPort(host, port))]++
				}
				assert.Len(t, seen, 2, "%s: %v", host, seen)
			}
		})
	}
}

func TestDescriptorIsNonblockingAndNotInherited(t *testing.T) {
	s := mustListen(t, "tcp4", "127.0.0.1:0")
	check := func() {
		flags, err := unix.FcntlInt(uintptr(s.fd), unix.F_GETFL, 0)
		require.NoError(t, err)
		require.NotZero(t, flags&unix.O_NONBLOCK)
		flags, err = unix.FcntlInt(uintptr(s.fd), unix.F_GETFD, 0)
		require.NoError(t, err)
		require.NotZero(t, flags&unix.FD_CLOEXEC)
	}
	check()
	f, err := s.File()
	require.NoError(t, err)
	_ = f.Fd() // what os/exec does
	check()
	require.NoError(t, f.Close())
	check()
}

func TestTake(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	s, err := Take(ln)
	require.NoError(t, err)
	_, err = ln.Accept()
	require.ErrorIs(t, err, net.ErrClosed)
	addr := s.Addr().String()
	serve(t, s, "taken")
	assert.Equal(t, "taken", ask(t, "tcp", addr))

	_, err = Take(struct{ net.Listener }{ln})
	require.ErrorIs(t, err, ErrNoDescriptor)
}

func TestUnixSocketFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s, err := Listen("unix", path, 0o600)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o600), info.Mode().Perm())
	require.ErrorIs(t, s.EnableReuseport(), ErrReuseport)
	assert.False(t, s.Reuseport())

	_, err = Listen("unix", path, 0)
	require.ErrorIs(t, err, syscall.EADDRINUSE, "a live listener is not taken for stale")
	require.ErrorContains(t, err, path)

	// It dies without cleaning up: the next one takes the path.
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	require.FileExists(t, path)
	next := mustListen(t, "unix", path)
	s.Unlink()
	require.FileExists(t, path, "the file is the next one's")
	next.Unlink()
	require.NoFileExists(t, path)

	require.NoError(t, os.WriteFile(path, []byte("data"), 0o600))
	_, err = Listen("unix", path, 0)
	require.ErrorContains(t, err, "not a socket")
	require.FileExists(t, path)

	_, err = Listen("unix", filepath.Join(t.TempDir(), "missing", "s"), 0)
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestTakeUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	require.NoError(t, err)
	s, err := Take(ln)
	require.NoError(t, err)
	require.FileExists(t, path, "closing the original keeps the file")
	s.Unlink()
	require.NoFileExists(t, path)
	require.NoError(t, s.Close())
}

func TestInherit(t *testing.T) {
	s := mustListen(t, "tcp4", "127.0.0.1:0")
	f, err := s.File()
	require.NoError(t, err)
	fd, err := unix.Dup(int(f.Fd()))
	require.NoError(t, err)
	require.NoError(t, f.Close())
	ln, err := Inherit(uintptr(fd))
	require.NoError(t, err)
	defer func() { require.NoError(t, ln.Close()) }()
	assert.Equal(t, s.Addr().String(), ln.Addr().String())
	_, err = unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	require.ErrorIs(t, err, syscall.EBADF, "the number is closed")

	_, err = Inherit(uintptr(1 << 20))
	require.ErrorContains(t, err, "inherited listener at descriptor 1048576")
}

func TestAcceptNow(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	conn, err := AcceptNow(ln)
	require.NoError(t, err)
	require.Nil(t, conn, "nothing waits")

	var d net.Dialer
	client, err := d.DialContext(context.Background(), "tcp4", ln.Addr().String())
	require.NoError(t, err)
	defer func() { _ = client.Close() }()
	require.NoError(t, ln.(*net.TCPListener).SetDeadline(time.Now().Add(-time.Second)))
	conn, err = AcceptNow(ln)
	require.NoError(t, err)
	require.NotNil(t, conn)
	assert.Equal(t, client.LocalAddr().String(), conn.RemoteAddr().String())
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Second)), "it is polled like any other")
	require.NoError(t, conn.Close())

	require.NoError(t, ln.Close())
	_, err = AcceptNow(ln)
	require.ErrorIs(t, err, net.ErrClosed)
	_, err = AcceptNow(struct{ net.Listener }{ln})
	require.ErrorIs(t, err, ErrNoDescriptor)
}
