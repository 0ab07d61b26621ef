//go:build unix

package control

import (
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Pair makes a channel: the master's end, and the child's as a file for
// os/exec's ExtraFiles, which the caller closes after the start.
func Pair() (*Conn, *os.File, error) {
	syscall.ForkLock.RLock()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "control channel of a child")
	mine, err := Open(uintptr(fds[0]))
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return mine, theirs, nil
}

// Open speaks on the socket at descriptor fd, which it closes: it keeps a
// duplicate that programs started later do not inherit.
func Open(fd uintptr) (*Conn, error) {
	f := os.NewFile(fd, "control channel")
	if f == nil {
		return nil, fmt.Errorf("control channel: descriptor %d is not open", fd)
	}
	conn, err := net.FileConn(f)
	_ = f.Close()
	if err != nil {
		return nil, fmt.Errorf("control channel at descriptor %d: %w", fd, err)
	}
	return NewConn(conn), nil
}
