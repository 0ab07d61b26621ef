// Package socket binds the listening sockets that a master holds and hands to
// its children. It knows nothing of processes or of HTTP.
//
// A [Socket] is a plain descriptor that is never in this process's network
// poller: a listener that Go polls wakes the process for each connection.
package socket

import (
	"errors"
	"net"
)

// ErrReuseport says that the platform or the kernel does not let several
// sockets share one port in a way that spreads connections over them.
var ErrReuseport = errors.New("SO_REUSEPORT does not spread connections here")

// ErrNoDescriptor says that a listener is not one that the kernel could hand
// to another process.
var ErrNoDescriptor = errors.New("listener has no socket of its own")

// Socket is a listening socket that this process holds and does not serve.
// Its methods are not safe for concurrent use.
type Socket struct {
	fd      int // -1 once closed
	network string
	addr    net.Addr
	path    string // of the file of a unix socket that goes with it; "" for others
	unlink  func() // removes that file; nil for others
}

// Kept is a socket that the program which takes the place of this one, in the
// same process, gets: see [Socket.Keep].
type Kept struct {
	FD      int
	Network string
	Path    string `json:",omitempty"`
}

// Addr returns the address that the socket is bound to, port 0 resolved.
func (s *Socket) Addr() net.Addr { return s.addr }

// Disown leaves the file of a unix socket to others.
func (s *Socket) Disown() { s.path, s.unlink = "", nil }

// isUnix says whether s has a path and not a port.
func (s *Socket) isUnix() bool { return s.addr.Network() == "unix" }
