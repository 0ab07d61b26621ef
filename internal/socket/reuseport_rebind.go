//go:build freebsd || dragonfly || aix

package socket

// The kernels that spread connections too, but take the option only before
// bind: the exclusive socket is closed and bound again with it.

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// EnableReuseport lets [Socket.Sibling] bind more sockets to the port of s,
// and makes the kernel spread connections over them. It is [ErrReuseport]
// where that is impossible; s then goes on listening alone.
func (s *Socket) EnableReuseport() error {
	if s.isUnix() {
		return fmt.Errorf("%w: unix sockets have no port", ErrReuseport)
	}
	if err := probe(); err != nil {
		return err
	}
	_ = s.Close()
	again, err := s.Sibling()
	if err != nil {
		return err
	}
	*s = *again
	return nil
}

// Sibling binds one more socket to the port of s, which has had
// [Socket.EnableReuseport].
func (s *Socket) Sibling() (*Socket, error) {
	return listen(s.network, s.addr.String(), setReuseport)
}

// probe tries the option on a socket that is never bound.
func probe() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(fd) }()
	err = setReuseport(fd)
	if errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w: %w", ErrReuseport, err)
	}
	return err
}

func setReuseport(fd int) error {
	return os.NewSyscallError("setsockopt SO_REUSEPORT", unix.SetsockoptInt(fd, unix.SOL_SOCKET, spreadOption, 1))
}

// Reuseport says whether others may bind to the port of s.
func (s *Socket) Reuseport() bool {
	on, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, spreadOption)
	return err == nil && on != 0 && !s.isUnix()
}

// Pin has no counterpart here.
func (s *Socket) Pin() error {
	return fmt.Errorf("%w: no program can choose the socket", ErrReuseport)
}

// Attach has no counterpart here.
func (s *Socket) Attach([]bpf.RawInstruction) error {
	return fmt.Errorf("%w: no program can choose the socket", ErrReuseport)
}

// Queued is not known here.
func (s *Socket) Queued() (int, error) {
	return 0, fmt.Errorf("length of the accept queue: %w", errors.ErrUnsupported)
}
