// Package report is the page of memory on which a child tells its master that
// it lives, what it does and how many connections it has. The child writes to
// it and the master reads it, and neither wakes the other: with messages,
// sixteen idle children that tell so four times a second would cost a master
// more than serving does. A master that wants to know of a connection to come
// says which on the page, and is told once.
package report

import (
	"errors"
	"sync/atomic"
	"time"
	"unsafe"
)

// size of a page's file, in bytes: what every system maps at least.
const size = 4096

// errSmall says that a file is not a page.
var errSmall = errors.New("report page is too small")

// Report is what a child says of itself.
type Report struct {
	// Beat grows with each report; 0 means that there was none.
	Beat uint64
	// At is when the report was made, by the wall clock.
	At time.Time
	// Conns are the connections that are open now, see [Page.SetConns].
	Conns uint32
	// Arrived are those that came so far, see [Page.Arrive].
	Arrived uint64
	// Requests are those that were answered so far.
	Requests uint64
	// Quiet is true when nothing happens, and the next report comes when
	// something does, or after a long time.
	Quiet bool
}

// fields is how a page is laid out. Each is read and written by itself, beat
// is written last.
type fields struct {
	beat     atomic.Uint64
	at       atomic.Int64 // in ns since 1970
	requests atomic.Uint64
	conns    atomic.Uint32
	quiet    atomic.Uint32
	arrived  atomic.Uint64
	wanted   atomic.Uint64 // the master's: of which of them it wants to be told; 0: of none
}

var _ [size - unsafe.Sizeof(fields{})]byte // it fits

// Page is a page that this process has mapped. Write is for one goroutine, as
// SetConns and Arrive are, the others for any.
type Page struct {
	mem  []byte
	file file
}

func (p *Page) fields() *fields {
	return (*fields)(unsafe.Pointer(&p.mem[0])) //nolint:gosec // a page is aligned, and large enough
}

// SetConns says how many connections are open.
func (p *Page) SetConns(n int) { p.fields().conns.Store(uint32(n)) }

// Arrive says that one more has come, and returns whether the master is to be
// told.
func (p *Page) Arrive() (tell bool) {
	f := p.fields()
	return f.arrived.Add(1) == f.wanted.Load()
}

// Want says of which connection, counting all that came since the child began,
// the master wants to be told; 0 is of none. It returns whether that one has
// come already: then the child does not tell.
func (p *Page) Want(nth uint64) (came bool) {
	f := p.fields()
	f.wanted.Store(nth)
	return nth > 0 && f.arrived.Load() >= nth
}

// Write makes a report. Its Beat and At are set here, Conns and Arrived are
// what was said of them.
func (p *Page) Write(r Report) {
	f := p.fields()
	f.requests.Store(r.Requests)
	quiet := uint32(0)
	if r.Quiet {
		quiet = 1
	}
	f.quiet.Store(quiet)
	f.at.Store(time.Now().UnixNano())
	f.beat.Add(1)
}

// Read returns the last report.
func (p *Page) Read() Report {
	f := p.fields()
	return Report{
		Beat: f.beat.Load(), At: time.Unix(0, f.at.Load()), Conns: f.conns.Load(), Arrived: f.arrived.Load(),
		Requests: f.requests.Load(), Quiet: f.quiet.Load() != 0,
	}
}
