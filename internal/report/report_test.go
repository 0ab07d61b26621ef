//go:build unix

package report

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestPage(t *testing.T) {
	master, err := New()
	require.NoError(t, err)
	assert.Zero(t, master.Read().Beat)
	fd, err := unix.Dup(int(master.File().Fd()))
	require.NoError(t, err)
	child, err := Open(uintptr(fd))
	require.NoError(t, err)
	require.Error(t, child.File().Truncate(1), "a child must not harm the master")
	child.Forget()
	before := time.Now()
	child.SetConns(3)
	child.Write(Report{Requests: 1 << 40, Quiet: true})
	r := master.Read()
	assert.Equal(t, Report{Beat: 1, At: r.At, Conns: 3, Requests: 1 << 40, Quiet: true}, r)
	assert.False(t, child.Arrive(), "nobody has asked")
	assert.False(t, master.Want(3))
	assert.False(t, child.Arrive())
	assert.True(t, child.Arrive())
	assert.False(t, child.Arrive(), "it is told once")
	assert.True(t, master.Want(4), "it has come")
	assert.False(t, master.Want(5))
	assert.False(t, master.Want(0))
	assert.False(t, child.Arrive())
	assert.Equal(t, uint64(5), master.Read().Arrived)
	assert.WithinRange(t, r.At, before.Add(-time.Millisecond), time.Now().Add(time.Millisecond))
	child.Write(Report{})
	assert.Equal(t, uint64(2), master.Read().Beat)
	assert.False(t, master.Read().Quiet)

	// The program that takes the place of the master's.
	kept, err := master.Keep(true)
	require.NoError(t, err)
	flags, err := unix.FcntlInt(uintptr(kept), unix.F_GETFD, 0)
	require.NoError(t, err)
	assert.Zero(t, flags&unix.FD_CLOEXEC)
	fd, err = unix.Dup(kept)
	require.NoError(t, err)
	again, err := Open(uintptr(fd))
	require.NoError(t, err)
	master.Close()
	child.SetConns(4)
	assert.Equal(t, uint32(4), again.Read().Conns)
	again.Close()
}

func TestOpenRefuses(t *testing.T) {
	_, err := Open(1 << 20)
	require.ErrorContains(t, err, "descriptor 1048576")
	f, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	fd, err := unix.Dup(int(f.Fd()))
	require.NoError(t, err)
	require.NoError(t, f.Close())
	_, err = Open(uintptr(fd))
	require.ErrorIs(t, err, errSmall)
}

func TestWriteAllocatesNothing(t *testing.T) {
	p, err := New()
	require.NoError(t, err)
	defer p.Close()
	assert.Zero(t, testing.AllocsPerRun(100, func() { p.Write(Report{Requests: 1}); p.SetConns(1); p.Arrive(); _ = p.Read() }))
}
