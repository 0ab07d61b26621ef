package socket

import (
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/fiber-prefork/prefork/internal/steer"
)

// knock opens a connection to s and says something: else the kernel defers it.
func knock(t *testing.T, s *Socket) {
	t.Helper()
	conn, err := net.Dial("tcp4", s.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	_, err = conn.Write([]byte{1})
	require.NoError(t, err)
}

// TestSpread: who is left out gets no connection and keeps those it has.
func TestSpread(t *testing.T) {
	first, err := Listen("tcp4", "127.0.0.1:0", 0)
	require.NoError(t, err)
	require.NoError(t, first.EnableReuseport())
	group := []*Socket{first}
	for range 3 {
		s, err := first.Sibling()
		require.NoError(t, err)
		group = append(group, s)
	}
	defer func() {
		for _, s := range group {
			_ = s.Close()
		}
	}()
	queued := func() []int {
		var all []int
		for _, s := range group {
			n, err := s.Queued()
			require.NoError(t, err)
			all = append(all, n)
		}
		return all
	}
	dial := func(n int) {
		for range n {
			knock(t, first)
		}
	}
	spread := func(indexes ...int) error {
		program, err := steer.Program(indexes, steer.Equal(len(indexes)))
		require.NoError(t, err)
		return first.Attach(program)
	}
	require.NoError(t, spread(1, 2))
	dial(100)
	before := queued()
	assert.Zero(t, before[0])
	assert.Zero(t, before[3])
	assert.Equal(t, 100, before[1]+before[2])
	assert.InDelta(t, 50, before[1], 30, "each gets as many")

	require.NoError(t, spread(3))
	dial(10)
	assert.Equal(t, []int{0, before[1], before[2], 10}, queued())

	require.NoError(t, spread(3, 2, 1, 0))
	dial(100)
	for i, n := range queued() {
		assert.NotZero(t, n, "socket %d", i)
	}
}

// TestSpreadAfterClose: the sockets that were opened first keep their index
// when the last ones go.
func TestSpreadAfterClose(t *testing.T) {
	first, err := Listen("tcp4", "127.0.0.1:0", 0)
	require.NoError(t, err)
	defer func() { _ = first.Close() }()
	require.NoError(t, first.EnableReuseport())
	spread := func(indexes ...int) error {
		program, err := steer.Program(indexes, steer.Equal(len(indexes)))
		require.NoError(t, err)
		return first.Attach(program)
	}
	require.Error(t, spread(0), "it is alone")
	for range 3 { // a group of three, two, one, and again
		second, err := first.Sibling()
		require.NoError(t, err)
		third, err := first.Sibling()
		require.NoError(t, err)
		require.NoError(t, spread(0))
		require.NoError(t, third.Close())
		require.NoError(t, spread(0, 1))
		require.NoError(t, spread(0))
		require.NoError(t, second.Close())
	}
	for range 50 {
		knock(t, first)
	}
	n, err := first.Queued()
	require.NoError(t, err)
	assert.Equal(t, 50, n)
}

// TestKeep: the descriptor stays the same, and so does what is known of it.
func TestKeep(t *testing.T) {
	s, err := Listen("tcp", "[::1]:0", 0)
	require.NoError(t, err)
	kept, err := s.Keep(true)
	require.NoError(t, err)
	flags, err := unix.FcntlInt(uintptr(kept.FD), unix.F_GETFD, 0)
	require.NoError(t, err)
	assert.Zero(t, flags&unix.FD_CLOEXEC)
	again, err := Adopt(kept)
	require.NoError(t, err)
	assert.Equal(t, s.Addr().String(), again.Addr().String())
	flags, err = unix.FcntlInt(uintptr(kept.FD), unix.F_GETFD, 0)
	require.NoError(t, err)
	assert.NotZero(t, flags&unix.FD_CLOEXEC)
	require.NoError(t, again.Close())

	path := t.TempDir() + "/s"
	s, err = Listen("unix", path, 0o600)
	require.NoError(t, err)
	kept, err = s.Keep(true)
	require.NoError(t, err)
	assert.Equal(t, path, kept.Path)
	again, err = Adopt(kept)
	require.NoError(t, err)
	assert.Equal(t, "unix", again.Addr().Network())
	assert.Equal(t, path, again.Addr().String())
	again.Unlink()
	assert.NoFileExists(t, path)
	require.NoError(t, again.Close())

	_, err = Adopt(Kept{FD: 1 << 20})
	require.ErrorContains(t, err, "listener at descriptor 1048576")
}

// TestDefer: a connection on which nothing is asked is not in the queue.
func TestDefer(t *testing.T) {
	s, err := Listen("tcp4", "127.0.0.1:0", 0)
	require.NoError(t, err)
	defer func() { _ = s.Close() }()
	queued := func() int {
		conn, err := net.Dial("tcp4", s.Addr().String())
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		n, err := s.Queued()
		require.NoError(t, err)
		return n
	}
	assert.Zero(t, queued())
	file, err := s.File()
	require.NoError(t, err)
	AcceptAtOnce(file)
	require.NoError(t, file.Close())
	assert.Equal(t, 1, queued())
	s.Defer(true)
	assert.Equal(t, 1, queued())
}
