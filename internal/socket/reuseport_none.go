//go:build unix && !linux && !freebsd && !dragonfly && !aix

package socket

// macOS, OpenBSD, NetBSD and Solaris accept SO_REUSEPORT without spreading
// connections: the last or the first socket gets them all.

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/net/bpf"
)

// EnableReuseport is always [ErrReuseport] here.
func (s *Socket) EnableReuseport() error {
	return fmt.Errorf("%w: %s gives all connections to one socket", ErrReuseport, runtime.GOOS)
}

// Sibling is always [ErrReuseport] here.
func (s *Socket) Sibling() (*Socket, error) {
	return nil, s.EnableReuseport()
}

// Pin has no counterpart here.
func (s *Socket) Pin() error {
	return s.EnableReuseport()
}

// Attach has no counterpart here.
func (s *Socket) Attach([]bpf.RawInstruction) error {
	return s.EnableReuseport()
}

// Queued is not known here.
func (s *Socket) Queued() (int, error) {
	return 0, fmt.Errorf("length of the accept queue: %w", errors.ErrUnsupported)
}
