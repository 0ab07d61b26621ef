package socket

// Linux: the option may be turned on after listen, so that the very socket
// that proved to be alone on the port becomes the first of its group.

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

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
	if err := setReuseport(s.fd); err != nil {
		return reuseportError(err)
	}
	return nil
}

// Sibling binds one more socket to the port of s, which has had
// [Socket.EnableReuseport].
func (s *Socket) Sibling() (*Socket, error) {
	return listen(s.network, s.addr.String(), setReuseport)
}

func setReuseport(fd int) error {
	return os.NewSyscallError("setsockopt SO_REUSEPORT", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
}

// reuseportError tells "not here" from a real failure, by errno.
func reuseportError(err error) error {
	if errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w: %w", ErrReuseport, err)
	}
	return err
}

// Reuseport says whether others may bind to the port of s.
func (s *Socket) Reuseport() bool {
	on, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT)
	return err == nil && on != 0 && !s.isUnix()
}

// Pin makes the kernel give every connection on the port of s to s, the
// first socket of its group, and none to sockets that are bound there later:
// a reuseport program that always answers 0.
func (s *Socket) Pin() error {
	return s.Attach([]bpf.RawInstruction{{Op: unix.BPF_RET | unix.BPF_K, K: 0}})
}

// Attach makes program choose which socket of the group of s gets a new
// connection on its port. A socket's index is its place in the order in which
// the group's sockets began to listen; when one closes, the last one takes its
// index. Connections that a socket has in its queue stay there.
//
// s must have siblings: one that is alone cannot be given a program.
func (s *Socket) Attach(program []bpf.RawInstruction) error {
	filter := make([]unix.SockFilter, len(program))
	for i, in := range program {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	// Raw, as in Queued: neither waits, and the scheduler would wake a thread
	// of its own for each call that it is told of.
	value := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(s.fd), unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF,
		uintptr(unsafe.Pointer(&value)), unsafe.Sizeof(value), 0) //nolint:gosec // as x/sys does, but raw
	if errno != 0 {
		return os.NewSyscallError("setsockopt SO_ATTACH_REUSEPORT_CBPF", errno)
	}
	return nil
}

// Queued says how many connections wait in the accept queue of s.
func (s *Socket) Queued() (int, error) {
	var info unix.TCPInfo
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), unix.IPPROTO_TCP, unix.TCP_INFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0) //nolint:gosec // as above
	if errno != 0 {
		return 0, os.NewSyscallError("getsockopt TCP_INFO", errno)
	}
	return int(info.Unacked), nil // of a listening socket
}
