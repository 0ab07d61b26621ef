package socket

// Linux: the option may be turned on after listen, so that the very socket
// that proved to be alone on the port becomes the first of its group.

import (
	"errors"
	"fmt"
	"os"

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
	return s.attach([]unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}})
}

// Spread makes the kernel give new connections on the port of s to the
// sockets of its group that are named, each as many, and to no other. A
// socket's index is its place in the order in which the group's sockets began
// to listen; when one closes, the last one takes its index. Connections that a
// socket has in its queue stay there.
//
// s must have siblings: one that is alone cannot be given a program.
func (s *Socket) Spread(indexes ...int) error {
	const random = 0xffff_f000 + 56 // SKF_AD_OFF + SKF_AD_RANDOM of linux/filter.h
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: random},
		{Code: unix.BPF_ALU | unix.BPF_MOD | unix.BPF_K, K: uint32(len(indexes))},
	}
	for place, index := range indexes {
		program = append(program,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(place), Jf: 1},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: uint32(index)})
	}
	// It is never reached; the kernel wants a return at the end.
	program = append(program, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: uint32(indexes[0])})
	return s.attach(program)
}

func (s *Socket) attach(program []unix.SockFilter) error {
	err := unix.SetsockoptSockFprog(s.fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	return os.NewSyscallError("setsockopt SO_ATTACH_REUSEPORT_CBPF", err)
}

// Queued says how many connections wait in the accept queue of s.
func (s *Socket) Queued() (int, error) {
	info, err := unix.GetsockoptTCPInfo(s.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, os.NewSyscallError("getsockopt TCP_INFO", err)
	}
	return int(info.Unacked), nil // of a listening socket
}
