//go:build unix

package socket

// What every Unix has: bind, hold, hand over, inherit. How SO_REUSEPORT is
// turned on differs: see the reuseport_*.go files.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Listen binds network ("tcp", "tcp4", "tcp6" or "unix") and addr for this
// process alone and listens: it fails with EADDRINUSE if anybody else listens
// there, whether with SO_REUSEPORT or without. Errors are those of
// [net.Listen], with the address in them.
//
// For "unix" a socket file that nobody listens on any more is removed first,
// and mode, when it is not 0, is set on the new one.
func Listen(network, addr string, mode fs.FileMode) (*Socket, error) {
	if network != "unix" {
		return listen(network, addr, nil)
	}
	named := addr != "" && !strings.HasPrefix(addr, "@") && !strings.HasPrefix(addr, "\x00")
	if named {
		if err := removeStale(addr); err != nil {
			return nil, err
		}
	}
	s, err := listen(network, addr, nil)
	if err != nil || !named {
		return s, err
	}
	if mode != 0 {
		if err := os.Chmod(addr, mode); err != nil {
			_ = os.Remove(addr)
			_ = s.Close()
			return nil, fmt.Errorf("chmod %#o of unix socket %q: %w", mode, addr, err)
		}
	}
	s.ownFile(addr)
	return s, nil
}

// ownFile makes [Socket.Unlink] remove the socket file at path.
func (s *Socket) ownFile(path string) {
	if s.unlink = unlinker(path); s.unlink != nil {
		s.path, _ = filepath.Abs(path)
	}
}

// unlinker returns a function that removes the socket file at path, unless a
// later instance has put its own there.
func unlinker(path string) func() {
	path, err := filepath.Abs(path) // the process may change its directory
	if err != nil {
		return nil
	}
	bound, err := os.Stat(path)
	if err != nil {
		return nil
	}
	return func() {
		// The time too: an inode's number is soon used again.
		if now, err := os.Stat(path); err == nil && os.SameFile(bound, now) && now.ModTime().Equal(bound.ModTime()) {
			_ = os.Remove(path)
		}
	}
}

// listen is Listen with a say in the options that are set before bind.
func listen(network, addr string, option func(fd int) error) (*Socket, error) {
	lc := net.ListenConfig{}
	// Go's default is an MPTCP socket: slower to accept on, and reuseport BPF
	// programs are refused on it.
	lc.SetMultipathTCP(false)
	if option != nil {
		lc.Control = func(_, _ string, c syscall.RawConn) error {
			var optErr error
			if err := c.Control(func(fd uintptr) { optErr = option(int(fd)) }); err != nil {
				return err
			}
			return optErr
		}
	}
	ln, err := lc.Listen(context.Background(), network, addr)
	if err != nil {
		return nil, err
	}
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	s, err := hold(network, ln)
	if err != nil {
		_ = ln.Close()
		return nil, err
	}
	s.Defer(true)
	s.keepAlive()
	return s, nil
}

// Take moves the socket of ln, which must be a *[net.TCPListener] or a
// *[net.UnixListener], out of this process's poller: ln is closed, its socket
// goes on listening with all its options. Any other listener is
// [ErrNoDescriptor] and left as it is.
func Take(ln net.Listener) (*Socket, error) {
	switch ln := ln.(type) {
	case *net.TCPListener:
		return hold("tcp", ln)
	case *net.UnixListener:
		path := ln.Addr().String()
		ln.SetUnlinkOnClose(false)
		s, err := hold("unix", ln)
		if err != nil {
			ln.SetUnlinkOnClose(true)
			return nil, err
		}
		s.ownFile(path)
		return s, nil
	default:
		return nil, ErrNoDescriptor
	}
}

// hold duplicates ln's descriptor and closes ln, which takes the socket out
// of the poller. Not ln.File: its Fd method clears O_NONBLOCK, which lives on
// the description that all holders share.
func hold(network string, ln net.Listener) (*Socket, error) {
	sc, ok := ln.(syscall.Conn)
	if !ok {
		return nil, ErrNoDescriptor
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var dupErr error
	if err := raw.Control(func(old uintptr) {
		fd, dupErr = dup(old)
	}); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, fmt.Errorf("duplicate the listener on %v: %w", ln.Addr(), os.NewSyscallError("fcntl", dupErr))
	}
	s := &Socket{fd: fd, network: network, addr: ln.Addr()}
	_ = ln.Close()
	return s, nil
}

// removeStale removes the file of a unix socket that nobody listens on. A
// path that is taken by a live listener, or by something that is not a
// socket, is an error.
func removeStale(path string) error {
	inUse := func(err error) error {
		return &net.OpError{Op: "listen", Net: "unix", Addr: &net.UnixAddr{Name: path, Net: "unix"}, Err: err}
	}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return inUse(err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return inUse(fmt.Errorf("%w: the file is not a socket", syscall.EADDRINUSE))
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = conn.Close()
		return inUse(syscall.EADDRINUSE)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return inUse(fmt.Errorf("%w: %w", syscall.EADDRINUSE, err))
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove stale unix socket %q: %w", path, err)
	}
	return nil
}

// File returns a new descriptor of s for os/exec's ExtraFiles. The caller
// closes it as soon as the process has started: while it is open the socket
// is in this process's poller.
func (s *Socket) File() (*os.File, error) {
	fd, err := dup(uintptr(s.fd))
	if err != nil {
		return nil, fmt.Errorf("duplicate the listener on %v: %w", s.addr, os.NewSyscallError("fcntl", err))
	}
	// The description is non-blocking already, so that NewFile leaves its
	// flags alone and Fd, which os/exec calls, does too.
	return os.NewFile(uintptr(fd), "listener "+s.addr.String()), nil
}

// FD returns the descriptor of s, -1 if it is closed. It stays s's.
func (s *Socket) FD() int { return s.fd }

// Listener turns s into a listener that this process serves itself. s is
// closed, unless there is an error.
func (s *Socket) Listener() (net.Listener, error) {
	f, err := s.File()
	if err != nil {
		return nil, err
	}
	ln, err := net.FileListener(f)
	_ = f.Close()
	if err != nil {
		return nil, err
	}
	_ = s.Close()
	return ln, nil
}

// Close gives up this process's hold on s. Its file, for a unix socket, stays:
// see [Socket.Unlink].
func (s *Socket) Close() error {
	if s.fd < 0 {
		return nil
	}
	fd := s.fd
	s.fd = -1
	return os.NewSyscallError("close", unix.Close(fd))
}

// Unlink removes the file of a unix socket, if it is still the one that was
// bound. It does nothing for other sockets.
func (s *Socket) Unlink() {
	if s.unlink != nil {
		s.unlink()
	}
}

// Inherit returns the listener that the parent process left at descriptor fd
// and closes fd itself: it would keep the port alive in any program that this
// process starts. Connections inherit the socket's keep-alive where it has it
// on (Linux), and get that of package net else.
func Inherit(fd uintptr) (net.Listener, error) {
	f := os.NewFile(fd, "inherited listener")
	if f == nil {
		return nil, fmt.Errorf("inherited listener: descriptor %d is not open", fd)
	}
	ln, err := net.FileListener(f)
	_ = f.Close()
	if err != nil {
		return nil, fmt.Errorf("inherited listener at descriptor %d: %w", fd, err)
	}
	leaveKeepAlive(ln)
	return ln, nil
}

// Readable says whether connections wait on the listener fd: for the Read of
// its [syscall.RawConn], which waits until there are some.
func Readable(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

// AcceptNow takes a connection out of ln's accept queue and returns nil if
// the queue is empty. Unlike Accept it never waits, and it works after ln's
// deadline has passed. ln is a [syscall.Conn]: a listener or its file.
func AcceptNow(ln any) (net.Conn, error) {
	sc, ok := ln.(syscall.Conn)
	if !ok {
		return nil, ErrNoDescriptor
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	nfd := -1
	var acceptErr error
	if err := raw.Control(func(fd uintptr) {
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
		for {
			nfd, _, acceptErr = unix.Accept(int(fd))
			if !errors.Is(acceptErr, unix.EINTR) && !errors.Is(acceptErr, unix.ECONNABORTED) {
				break
			}
		}
		if acceptErr == nil {
			unix.CloseOnExec(nfd)
		}
	}); err != nil {
		return nil, err
	}
	if errors.Is(acceptErr, unix.EAGAIN) {
		return nil, nil //nolint:nilnil // an empty queue is neither a connection nor a failure
	}
	if acceptErr != nil {
		return nil, os.NewSyscallError("accept", acceptErr)
	}
	f := os.NewFile(uintptr(nfd), "accepted connection")
	defer func() { _ = f.Close() }()
	return net.FileConn(f)
}

// Keep makes s survive the replacement of this program by another one in the
// same process, or not.
func (s *Socket) Keep(keep bool) (Kept, error) {
	flags := unix.FD_CLOEXEC
	if keep {
		flags = 0
	}
	_, err := unix.FcntlInt(uintptr(s.fd), unix.F_SETFD, flags)
	return Kept{FD: s.fd, Network: s.network, Path: s.path}, os.NewSyscallError("fcntl", err)
}

// Adopt returns the socket that was kept by the program that was here before.
func Adopt(k Kept) (*Socket, error) {
	unix.CloseOnExec(k.FD)
	sa, err := unix.Getsockname(k.FD)
	if err != nil {
		return nil, fmt.Errorf("listener at descriptor %d: %w", k.FD, os.NewSyscallError("getsockname", err))
	}
	s := &Socket{fd: k.FD, network: k.Network}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		s.addr = &net.TCPAddr{IP: sa.Addr[:], Port: sa.Port}
	case *unix.SockaddrInet6:
		s.addr = &net.TCPAddr{IP: sa.Addr[:], Port: sa.Port, Zone: zone(sa.ZoneId)}
	case *unix.SockaddrUnix:
		s.addr = &net.UnixAddr{Name: sa.Name, Net: "unix"}
	default:
		return nil, fmt.Errorf("listener at descriptor %d: address of type %T", k.FD, sa)
	}
	if k.Path != "" {
		s.ownFile(k.Path)
	}
	return s, nil
}

func zone(id uint32) string {
	if i, err := net.InterfaceByIndex(int(id)); id != 0 && err == nil {
		return i.Name
	}
	return ""
}
