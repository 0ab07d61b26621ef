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
	theirs, err := Open(uintptr(fd))
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
