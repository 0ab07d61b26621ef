// Package control speaks on the channel between a master and one child: one
// end of a socket pair each. A message is a frame of four bytes (version,
// kind, length of the payload as a big-endian uint16) and the payload.
//
// The end of the stream means that the other process is gone.
package control

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Version is the first byte of every frame.
const Version = 1

// MaxPayload is the largest payload that is sent or accepted, in bytes.
const MaxPayload = 1024

const headerSize = 4

// sendTimeout bounds a write to a peer that is stopped: frames are small and
// rare, so that the socket's buffer is never full otherwise.
const sendTimeout = 100 * time.Millisecond

// ErrMalformed is what Read returns for bytes that are not a message.
var ErrMalformed = errors.New("malformed control message")

// Kind says what a message is about.
type Kind byte

// The kinds of messages.
const (
	Ready   Kind = 1 + iota // child → master: it accepts connections
	Status                  // child → master: Text says what it is doing on its own
	Drain                   // master → child: drain and exit within Within
	Overdue                 // child → master: the time is over and requests were cut off
)

func (k Kind) String() string {
	switch k {
	case Ready:
		return "ready"
	case Status:
		return "status"
	case Drain:
		return "drain"
	case Overdue:
		return "overdue"
	default:
		return fmt.Sprintf("kind %d", byte(k))
	}
}

// Message is one message.
type Message struct {
	Kind   Kind
	Text   string        // of Status: at most MaxPayload bytes, the rest is cut off
	Within time.Duration // of Drain: the time that is left, in whole milliseconds, not negative
}

// Append appends the frame of m to b.
func Append(b []byte, m Message) []byte {
	var payload []byte
	switch m.Kind {
	case Status:
		payload = []byte(m.Text)[:min(len(m.Text), MaxPayload)]
	case Drain:
		payload = binary.BigEndian.AppendUint64(nil, uint64(max(0, m.Within.Milliseconds())))
	case Ready, Overdue:
	}
	b = append(b, Version, byte(m.Kind))
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	return append(b, payload...)
}

// Read reads one message. It returns io.EOF at the end of the stream and
// [ErrMalformed], wrapped, for what is not a message.
func Read(r io.Reader) (Message, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return Message{}, err
	}
	if header[0] != Version {
		return Message{}, fmt.Errorf("%w: version %d, want %d", ErrMalformed, header[0], Version)
	}
	size := int(binary.BigEndian.Uint16(header[2:]))
	if size > MaxPayload {
		return Message{}, fmt.Errorf("%w: payload of %d bytes, at most %d", ErrMalformed, size, MaxPayload)
	}
	payload := make([]byte, size)
	if _, err := io.ReadFull(r, payload); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Message{}, err
	}
	m := Message{Kind: Kind(header[1])}
	want := 0
	switch m.Kind {
	case Ready, Overdue:
	case Status:
		m.Text, want = string(payload), size
	case Drain:
		want = 8
		if size == want {
			ms := binary.BigEndian.Uint64(payload)
			if ms > uint64(time.Duration(1<<63-1)/time.Millisecond) {
				return Message{}, fmt.Errorf("%w: drain within %d ms", ErrMalformed, ms)
			}
			m.Within = time.Duration(ms) * time.Millisecond
		}
	default:
		want = size // of a later program: whoever gets it ignores it
	}
	if size != want {
		return Message{}, fmt.Errorf("%w: %v with %d bytes, want %d", ErrMalformed, m.Kind, size, want)
	}
	return m, nil
}

// Conn is one end of the channel. Send may be called by any goroutine,
// Receive by one at a time.
type Conn struct {
	conn net.Conn
	mu   sync.Mutex // orders writes
}

// NewConn speaks on conn.
func NewConn(conn net.Conn) *Conn { return &Conn{conn: conn} }

// Send sends m. It does not wait for a peer that has stopped reading for
// longer than 100 ms.
func (c *Conn) Send(m Message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return err
	}
	_, err := c.conn.Write(Append(nil, m))
	return err
}

// Receive waits for the next message. See [Read] for its errors.
func (c *Conn) Receive() (Message, error) { return Read(c.conn) }

// Close closes this end; a waiting Receive returns.
func (c *Conn) Close() error { return c.conn.Close() }

// ReceiveWithin makes Receive give up after d, for good.
func (c *Conn) ReceiveWithin(d time.Duration) { _ = c.conn.SetReadDeadline(time.Now().Add(d)) }
