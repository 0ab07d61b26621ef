package control

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestRoundTrip(t *testing.T) {
	for _, m := range []Message{
		{Kind: Ready},
		{Kind: Ready, State: 7, Interval: 250 * time.Millisecond},
		{Kind: Overdue},
		{Kind: Replace, Text: "hangup"},
		{Kind: Cover, Slot: 3},
		{Kind: Uncover, Slot: 1023},
		{Kind: Tickets, Keys: [][keySize]byte{{1}, {2: 2}, {31: 3}}},
		{Kind: Status, Text: "draining: terminated"},
		{Kind: Status},
		{Kind: Drain},
		{Kind: Drain, Within: 9500 * time.Millisecond, Last: true},
	} {
		got, err := read(Append(nil, m))
		require.NoError(t, err)
		assert.Equal(t, m, got)
	}
}

func read(b []byte) (Message, error) { return Read(bufio.NewReader(bytes.NewReader(b))) }

func TestAppendBounds(t *testing.T) {
	m, err := read(Append(nil, Message{Kind: Status, Text: strings.Repeat("x", 2*MaxPayload)}))
	require.NoError(t, err)
	assert.Len(t, m.Text, MaxPayload)

	m, err = read(Append(nil, Message{Kind: Tickets, Keys: make([][keySize]byte, 1000)}))
	require.NoError(t, err)
	assert.Len(t, m.Keys, MaxPayload/keySize)

	m, err = read(Append(nil, Message{Kind: Drain, Within: -time.Second}))
	require.NoError(t, err)
	assert.Zero(t, m.Within)
}

func TestReadOfALaterKind(t *testing.T) {
	m, err := read(append([]byte{Version, byte(Ready), 0, 13, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2}, 99))
	require.NoError(t, err, "a later program may say more")
	assert.Equal(t, Message{Kind: Ready, State: 1, Interval: 2 * time.Millisecond}, m)

	m, err = read(([]byte{Version, 99, 0, 2, 1, 2}))
	require.NoError(t, err)
	assert.Equal(t, Message{Kind: 99}, m)
}

func TestReadRefuses(t *testing.T) {
	for name, frame := range map[string][]byte{
		"version":       {2, byte(Ready), 0, 0},
		"ready payload": {Version, byte(Ready), 0, 1, 0},
		"cover payload": {Version, byte(Cover), 0, 3, 0, 0, 0},
		"drain payload": {Version, byte(Drain), 0, 1, 0},
		"no keys":       {Version, byte(Tickets), 0, 0},
		"half a key":    append([]byte{Version, byte(Tickets), 0, keySize / 2}, make([]byte, keySize/2)...),
		"a key too few": append([]byte{Version, byte(Tickets), 0, keySize + 1}, make([]byte, keySize+1)...),
		"long payload":  {Version, byte(Status), 0xff, 0xff},
		"drain forever": append([]byte{Version, byte(Drain), 0, 8}, bytes.Repeat([]byte{0xff}, 8)...),
	} {
		_, err := read(frame)
		require.ErrorIs(t, err, ErrMalformed, name)
	}
	_, err := read(nil)
	require.ErrorIs(t, err, io.EOF)
	for cut := 1; cut < 12; cut++ {
		_, err = read(Append(nil, Message{Kind: Drain})[:cut])
		require.ErrorIs(t, err, io.ErrUnexpectedEOF, "cut after %d bytes", cut)
	}
	assert.Equal(t, []string{"ready", "status", "drain", "overdue", "replace", "cover", "uncover", "poke", "tickets", "kind 99", "kind 0"},
		[]string{
			Ready.String(), Status.String(), Drain.String(), Overdue.String(),
			Replace.String(), Cover.String(), Uncover.String(), Poke.String(), Tickets.String(), Kind(99).String(), Kind(0).String(),
		})
}

func FuzzRead(f *testing.F) {
	f.Add(Append(nil, Message{Kind: Ready}))
	f.Add(Append(nil, Message{Kind: Status, Text: "text"}))
	f.Add(Append(nil, Message{Kind: Drain, Within: time.Second}))
	f.Add(Append(nil, Message{Kind: Tickets, Keys: make([][keySize]byte, 2)}))
	f.Add([]byte{Version, byte(Tickets), 0, 1, 0})
	f.Add([]byte{Version, byte(Status), 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := read(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("unexpected error %v", err)
			}
			return
		}
		// What is a message says the same when it is written again.
		if again, err := read(Append(nil, m)); err != nil || !reflect.DeepEqual(again, m) {
			t.Fatalf("%x became %+v, %+v, %v", b, m, again, err)
		}
	})
}
