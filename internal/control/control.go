// Package control speaks on the channel between a master and one child: one
// end of a socket pair each. A message is a frame of four bytes (version,
// kind, length of the payload as a big-endian uint16) and the payload; a
// descriptor may go along with it.
//
// The end of the stream means that the other process is gone.
//
// The two ends may be of different versions of a program during a reload, and
// of this package: a kind that is not known is passed on, a payload that is
// longer than it has to be is read as far as it is known.
package control

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Version is the first byte of every frame.
const Version = 1

// MaxPayload is the largest payload that is sent or accepted, in bytes.
const MaxPayload = 1024

const headerSize = 4

const keySize = 32

// sendTimeout bounds a write to a peer that is stopped: frames are small and
// rare, so that the socket's buffer is never full otherwise.
const sendTimeout = 100 * time.Millisecond

// ErrMalformed is what Read returns for bytes that are not a message.
var ErrMalformed = errors.New("malformed control message")

// Kind says what a message is about.
type Kind byte

// The kinds of messages.
const (
	Ready   Kind = 1 + iota // child → master: it accepts connections; State, Interval
	Status                  // child → master: Text says what it is doing on its own
	Drain                   // master → child: drain and exit within Within; Last
	Overdue                 // child → master: the time is over and requests were cut off
	Replace                 // child → master: Text says why it wants to be replaced
	Cover                   // master → child: accept from the listener of Slot too, which goes along
	Uncover                 // master → child: no longer
	Poke                    // master → child: it is to report, if it is quiet
	Arrival                 // child → master: a connection came, and the master wanted to know
	Tickets                 // master → child: the Keys of TLS session tickets, from now on
	kinds
)

var names = [kinds]string{
	Ready: "ready", Status: "status", Drain: "drain", Overdue: "overdue",
	Replace: "replace", Cover: "cover", Uncover: "uncover",
	Poke: "poke", Arrival: "arrival", Tickets: "tickets",
}

func (k Kind) String() string {
	if k == 0 || k >= kinds {
		return fmt.Sprintf("kind %d", byte(k))
	}
	return names[k]
}

// Message is one message.
type Message struct {
	Kind     Kind
	Text     string          // of Status and Replace: at most MaxPayload bytes, the rest is cut off
	Within   time.Duration   // of Drain: the time that is left, in whole milliseconds, not negative
	Last     bool            // of Drain: nobody else accepts what is queued
	State    uint32          // of Ready: the version of an upgrade's state that the program can take over
	Interval time.Duration   // of Ready: how often it reports, in whole milliseconds, not negative
	Slot     uint32          // of Cover and Uncover
	Keys     [][keySize]byte // of Tickets: at least one, the rest above MaxPayload is cut off

	File *os.File // of a Cover that was received: the caller closes it; nil if none came along
}

// Append appends the frame of m to b.
func Append(b []byte, m Message) []byte {
	var payload []byte
	switch m.Kind {
	case Status, Replace:
		payload = []byte(m.Text)[:min(len(m.Text), MaxPayload)]
	case Drain:
		payload = binary.BigEndian.AppendUint64(nil, milliseconds(m.Within))
		if m.Last {
			payload = append(payload, 1)
		} else {
			payload = append(payload, 0)
		}
	case Ready:
		payload = binary.BigEndian.AppendUint32(nil, m.State)
		payload = binary.BigEndian.AppendUint64(payload, milliseconds(m.Interval))
	case Cover, Uncover:
		payload = binary.BigEndian.AppendUint32(nil, m.Slot)
	case Tickets:
		for _, key := range m.Keys[:min(len(m.Keys), MaxPayload/keySize)] {
			payload = append(payload, key[:]...)
		}
	default:
	}
	b = append(b, Version, byte(m.Kind))
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	return append(b, payload...)
}

func milliseconds(d time.Duration) uint64 { return uint64(max(0, d.Milliseconds())) }

// payload reads a payload from its start.
type payload struct {
	left []byte
	err  error
}

func (p *payload) take(n int) []byte {
	if len(p.left) < n {
		p.err = fmt.Errorf("%d bytes are missing", n-len(p.left))
		return make([]byte, n)
	}
	b := p.left[:n]
	p.left = p.left[n:]
	return b
}

func (p *payload) uint32() uint32 { return binary.BigEndian.Uint32(p.take(4)) }
func (p *payload) uint64() uint64 { return binary.BigEndian.Uint64(p.take(8)) }

func (p *payload) duration() time.Duration {
	ms := p.uint64()
	if ms > uint64(time.Duration(1<<63-1)/time.Millisecond) {
		p.err = fmt.Errorf("duration of %d ms", ms)
		return 0
	}
	return time.Duration(ms) * time.Millisecond
}

// keys takes all that is left.
func (p *payload) keys() (keys [][keySize]byte) {
	for ok := true; ok; ok = len(p.left) > 0 && p.err == nil {
		keys = append(keys, [keySize]byte(p.take(keySize)))
	}
	return keys
}

// Read reads one message. It takes nothing out of r unless all of the message
// is there. It returns io.EOF at the end of the stream and [ErrMalformed],
// wrapped, for what is not a message.
func Read(r *bufio.Reader) (Message, error) {
	header, err := r.Peek(headerSize)
	if err != nil {
		if errors.Is(err, io.EOF) && len(header) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return Message{}, err
	}
	if header[0] != Version {
		return Message{}, fmt.Errorf("%w: version %d, want %d", ErrMalformed, header[0], Version)
	}
	kind := Kind(header[1])
	size := int(binary.BigEndian.Uint16(header[2:]))
	if size > MaxPayload {
		return Message{}, fmt.Errorf("%w: payload of %d bytes, at most %d", ErrMalformed, size, MaxPayload)
	}
	frame, err := r.Peek(headerSize + size)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Message{}, err
	}
	p := payload{left: bytes.Clone(frame[headerSize:])}
	_, _ = r.Discard(headerSize + size)
	m := Message{Kind: kind}
	switch kind {
	case Status, Replace:
		m.Text = string(p.left)
	case Drain:
		m.Within, m.Last = p.duration(), p.take(1)[0] != 0
	case Ready:
		m.State, m.Interval = p.uint32(), p.duration()
	case Cover, Uncover:
		m.Slot = p.uint32()
	case Tickets:
		m.Keys = p.keys()
	default: // Overdue has nothing; what a later program's has is for others to read
	}
	if p.err != nil {
		return Message{}, fmt.Errorf("%w: %v with %d bytes: %w", ErrMalformed, kind, size, p.err)
	}
	return m, nil
}

// Conn is one end of the channel. Send may be called by any goroutine,
// Receive by one at a time.
type Conn struct {
	conn  net.Conn
	in    *bufio.Reader
	files fileQueue
	mu    sync.Mutex // orders writes
}

// NewConn speaks on conn. unread is what was received from it before and not
// taken in yet: see [Conn.Unread].
func NewConn(conn net.Conn, unread []byte) *Conn {
	c := &Conn{conn: conn}
	c.in = bufio.NewReaderSize(io.MultiReader(bytes.NewReader(unread), conn), headerSize+MaxPayload)
	return c
}

// Send sends m. It does not wait for a peer that has stopped reading for
// longer than 100 ms.
func (c *Conn) Send(m Message) error {
	return c.write(func() error {
		_, err := c.conn.Write(Append(nil, m))
		return err
	})
}

func (c *Conn) write(f func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return err
	}
	return f()
}

// Receive waits for the next message. See [Read] for its errors.
func (c *Conn) Receive() (Message, error) {
	m, err := Read(c.in)
	if err == nil && m.Kind == Cover {
		m.File = c.files.next()
	}
	return m, err
}

// Unread returns what has been received and not been taken in, for the end
// of the channel's use by this program.
func (c *Conn) Unread() []byte {
	b, _ := c.in.Peek(c.in.Buffered())
	return bytes.Clone(b)
}

// Close closes this end; a waiting Receive returns.
func (c *Conn) Close() error {
	for f := c.files.next(); f != nil; f = c.files.next() {
		_ = f.Close()
	}
	return c.conn.Close()
}

// ReceiveWithin makes Receive give up after d, until [Conn.ReceiveAgain].
func (c *Conn) ReceiveWithin(d time.Duration) { _ = c.conn.SetReadDeadline(time.Now().Add(d)) }

// ReceiveAgain makes Receive wait as long as it takes.
func (c *Conn) ReceiveAgain() { _ = c.conn.SetReadDeadline(time.Time{}) }

// fileQueue holds descriptors until their messages are read: the system keeps
// the order.
type fileQueue struct {
	mu    sync.Mutex
	files []*os.File
}

func (q *fileQueue) add(f *os.File) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.files = append(q.files, f)
}

func (q *fileQueue) next() *os.File {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.files) == 0 {
		return nil
	}
	f := q.files[0]
	q.files = q.files[1:]
	return f
}
