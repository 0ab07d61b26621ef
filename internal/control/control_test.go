package control

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestRoundTrip(t *testing.T) {
	for _, m := range []Message{
		{Kind: Ready},
		{Kind: Overdue},
		{Kind: Status, Text: "draining: terminated"},
		{Kind: Status},
		{Kind: Drain},
		{Kind: Drain, Within: 9500 * time.Millisecond},
	} {
		got, err := Read(bytes.NewReader(Append(nil, m)))
		require.NoError(t, err)
		assert.Equal(t, m, got)
	}
}

func TestAppendBounds(t *testing.T) {
	m, err := Read(bytes.NewReader(Append(nil, Message{Kind: Status, Text: strings.Repeat("x", 2*MaxPayload)})))
	require.NoError(t, err)
	assert.Len(t, m.Text, MaxPayload)

	m, err = Read(bytes.NewReader(Append(nil, Message{Kind: Drain, Within: -time.Second})))
	require.NoError(t, err)
	assert.Zero(t, m.Within)
}

func TestReadOfALaterKind(t *testing.T) {
	m, err := Read(bytes.NewReader([]byte{Version, 99, 0, 2, 1, 2}))
	require.NoError(t, err)
	assert.Equal(t, Message{Kind: 99}, m)
}

func TestReadRefuses(t *testing.T) {
	for name, frame := range map[string][]byte{
		"version":       {2, byte(Ready), 0, 0},
		"ready payload": {Version, byte(Ready), 0, 1, 0},
		"drain payload": {Version, byte(Drain), 0, 1, 0},
		"long payload":  {Version, byte(Status), 0xff, 0xff},
		"drain forever": append([]byte{Version, byte(Drain), 0, 8}, bytes.Repeat([]byte{0xff}, 8)...),
	} {
		_, err := Read(bytes.NewReader(frame))
		require.ErrorIs(t, err, ErrMalformed, name)
	}
	_, err := Read(bytes.NewReader(nil))
	require.ErrorIs(t, err, io.EOF)
	for cut := 1; cut < 12; cut++ {
		_, err = Read(bytes.NewReader(Append(nil, Message{Kind: Drain})[:cut]))
		require.ErrorIs(t, err, io.ErrUnexpectedEOF, "cut after %d bytes", cut)
	}
	assert.Equal(t, []string{"ready", "status", "drain", "overdue", "kind 99"},
		[]string{Ready.String(), Status.String(), Drain.String(), Overdue.String(), Kind(99).String()})
}

func FuzzRead(f *testing.F) {
	f.Add(Append(nil, Message{Kind: Ready}))
	f.Add(Append(nil, Message{Kind: Status, Text: "text"}))
	f.Add(Append(nil, Message{Kind: Drain, Within: time.Second}))
	f.Add([]byte{Version, byte(Status), 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		m, err := Read(r)
		if err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("unexpected error %v", err)
			}
			return
		}
		if m.Kind < Ready || m.Kind > Overdue {
			return // known to a later program only
		}
		// What is a message says the same when it is written again.
		if again := Append(nil, m); !bytes.Equal(again, b[:len(b)-r.Len()]) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}
