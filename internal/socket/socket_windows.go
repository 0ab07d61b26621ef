package socket

// Windows: a duplicated socket cannot be polled by two processes, and
// SO_REUSEADDR there is port hijacking. The names exist so that the library
// compiles; prefork is refused before any of them is called.

import (
	"errors"
	"io/fs"
	"net"
	"os"

	"golang.org/x/net/bpf"
)

var errWindows = errors.New("sockets cannot be shared by processes on windows")

// Listen always fails here.
func Listen(string, string, fs.FileMode) (*Socket, error) { return nil, errWindows }

// Take always fails here.
func Take(net.Listener) (*Socket, error) { return nil, errWindows }

// Inherit always fails here.
func Inherit(uintptr) (net.Listener, error) { return nil, errWindows }

// AcceptNow always fails here.
func AcceptNow(any) (net.Conn, error) { return nil, errWindows }

// EnableReuseport always fails here.
func (s *Socket) EnableReuseport() error { return ErrReuseport }

// Sibling always fails here.
func (s *Socket) Sibling() (*Socket, error) { return nil, ErrReuseport }

// Reuseport is always false here.
func (s *Socket) Reuseport() bool { return false }

// Pin always fails here.
func (s *Socket) Pin() error { return ErrReuseport }

// File always fails here.
func (s *Socket) File() (*os.File, error) { return nil, errWindows }

// Listener always fails here.
func (s *Socket) Listener() (net.Listener, error) { return nil, errWindows }

// Close does nothing here.
func (s *Socket) Close() error { return nil }

// Unlink does nothing here.
func (s *Socket) Unlink() {}

// Attach always fails here.
func (s *Socket) Attach([]bpf.RawInstruction) error { return ErrReuseport }

// Queued always fails here.
func (s *Socket) Queued() (int, error) { return 0, errWindows }

// Keep always fails here.
func (s *Socket) Keep(bool) (Kept, error) { return Kept{}, errWindows }

// Adopt always fails here.
func Adopt(Kept) (*Socket, error) { return nil, errWindows }

// FD is always -1 here.
func (s *Socket) FD() int { return -1 }

// Readable is always false here.
func Readable(uintptr) bool { return false }
