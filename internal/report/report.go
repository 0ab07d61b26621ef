// Package report is the page of memory on which a child tells its master that
// it lives and what it does. The child writes to it and the master reads it,
// and neither wakes the other: with messages, sixteen idle children that tell
// so four times a second would cost a master more than serving does.
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
	// Conns are the connections that are open.
	Conns uint32
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
}

var _ [size - unsafe.Sizeof(fields{})]byte // it fits

// Page is a page that this process has mapped. Write is for one goroutine,
// Read for any.
type Page struct {
	mem  []byte
	file file
}

func (p *Page) fields() *fields {
	return (*fields)(unsafe.Pointer(&p.mem[0])) //nolint:gosec // a page is aligned, and large enough
}

// Write makes a report. Its Beat and At are set here.
func (p *Page) Write(r Report) {
	f := p.fields()
	f.requests.Store(r.Requests)
	f.conns.Store(r.Conns)
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
		Beat: f.beat.Load(), At: time.Unix(0, f.at.Load()), Conns: f.conns.Load(),
		Requests: f.requests.Load(), Quiet: f.quiet.Load() != 0,
	}
}
