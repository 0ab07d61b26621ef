//go:build unix

package control

import (
	"io"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func pair(t *testing.T) (*Conn, *Conn) {
	t.Helper()
	mine, file, err := Pair()
	require.NoError(t, err)
	fd, err := unix.Dup(int(file.Fd()))
	require.NoError(t, err)
	require.NoError(t, file.Close())
	theirs, err := Inherit(uintptr(fd))
	require.NoError(t, err)
	t.Cleanup(func() { _, _ = mine.Close(), theirs.Close() })
	return mine, theirs
}

func TestPair(t *testing.T) {
	mine, theirs := pair(t)
	require.NoError(t, theirs.Send(Message{Kind: Ready}))
	require.NoError(t, theirs.Send(Message{Kind: Status, Text: "x"}))
	m, err := mine.Receive()
	require.NoError(t, err)
	assert.Equal(t, Ready, m.Kind)
	m, err = mine.Receive()
	require.NoError(t, err)
	assert.Equal(t, "x", m.Text)

	require.NoError(t, theirs.Close())
	_, err = mine.Receive()
	require.ErrorIs(t, err, io.EOF, "the other side is gone")
}

// TestSendFD: each descriptor comes with its own message, in order.
func TestSendFD(t *testing.T) {
	mine, theirs := pair(t)
	var readers []*os.File
	for i := range 3 {
		r, w, err := os.Pipe()
		require.NoError(t, err)
		readers = append(readers, r)
		require.NoError(t, mine.Send(Message{Kind: Uncover, Slot: uint32(i)}))
		require.NoError(t, mine.SendFD(Message{Kind: Cover, Slot: uint32(i)}, int(w.Fd())))
		require.NoError(t, w.Close())
	}
	for i, r := range readers {
		m, err := theirs.Receive()
		require.NoError(t, err)
		assert.Equal(t, Message{Kind: Uncover, Slot: uint32(i)}, m)
		m, err = theirs.Receive()
		require.NoError(t, err)
		require.NotNil(t, m.File)
		flags, err := unix.FcntlInt(m.File.Fd(), unix.F_GETFD, 0)
		require.NoError(t, err)
		assert.NotZero(t, flags&unix.FD_CLOEXEC, "no program that is started later gets it")
		_, err = m.File.WriteString("x")
		require.NoError(t, err)
		require.NoError(t, m.File.Close())
		b, err := io.ReadAll(r)
		require.NoError(t, err)
		assert.Equal(t, "x", string(b), "message %d has its own descriptor", i)
		require.NoError(t, r.Close())
	}
}

// TestMasterTakesNoDescriptor: a child cannot fill the master's table.
func TestMasterTakesNoDescriptor(t *testing.T) {
	mine, theirs := pair(t)
	r, w, err := os.Pipe()
	require.NoError(t, err)
	require.NoError(t, theirs.SendFD(Message{Kind: Cover}, int(w.Fd())))
	require.NoError(t, w.Close())
	m, err := mine.Receive()
	require.NoError(t, err)
	assert.Nil(t, m.File)
	_, err = r.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF, "nobody has it")
	require.NoError(t, r.Close())
}

// TestHandOver: another program goes on where this one stopped reading.
func TestHandOver(t *testing.T) {
	mine, theirs := pair(t)
	for i := range 3 {
		require.NoError(t, theirs.Send(Message{Kind: Uncover, Slot: uint32(i)}))
	}
	m, err := mine.Receive()
	require.NoError(t, err)
	assert.Zero(t, m.Slot)
	mine.ReceiveWithin(0)
	n := uint32(1)
	for { // what was received already is still given out
		m, err = mine.Receive()
		if err != nil {
			break
		}
		assert.Equal(t, n, m.Slot)
		n++
	}
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	kept, err := mine.Keep(true)
	require.NoError(t, err)
	flags, err := unix.FcntlInt(uintptr(kept), unix.F_GETFD, 0)
	require.NoError(t, err)
	assert.Zero(t, flags&unix.FD_CLOEXEC)
	fd, err := unix.Dup(kept)
	require.NoError(t, err)
	again, err := Open(uintptr(fd), Append(mine.Unread(), Message{Kind: Status, Text: "kept"})...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = again.Close() })
	m, err = again.Receive()
	require.NoError(t, err)
	assert.Equal(t, "kept", m.Text)
	require.NoError(t, theirs.Send(Message{Kind: Uncover, Slot: 9}))
	for n <= 9 {
		m, err = again.Receive()
		require.NoError(t, err)
		if n < 3 {
			assert.Equal(t, n, m.Slot)
		} else {
			assert.Equal(t, uint32(9), m.Slot)
			break
		}
		n++
	}
}

func TestPeerThatDoesNotRead(t *testing.T) {
	mine, _ := pair(t)
	start := time.Now()
	var err error
	for i := 0; err == nil && i < 1e5; i++ {
		err = mine.Send(Message{Kind: Status, Text: string(make([]byte, MaxPayload))})
	}
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	assert.Less(t, time.Since(start), 10*time.Second)
}

func TestReceiveWithin(t *testing.T) {
	mine, _ := pair(t)
	mine.ReceiveWithin(time.Millisecond)
	_, err := mine.Receive()
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

func TestOpenWithoutDescriptor(t *testing.T) {
	_, err := Open(uintptr(1 << 20))
	require.ErrorContains(t, err, "control channel at descriptor 1048576")
}
