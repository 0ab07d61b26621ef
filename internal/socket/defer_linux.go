package socket

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// deferTime is how long, in seconds, a connection is deferred at most.
const deferTime = 1

// Defer makes the kernel give a connection to s when something is asked on it,
// or after a second, or not: nobody is woken for one with which nothing can be
// done yet, and a process that is killed has not accepted it. TCP only.
func (s *Socket) Defer(on bool) {
	if !s.isUnix() {
		setDefer(s.fd, on)
	}
}

// AcceptAtOnce undoes Defer for whoever has ln, a [syscall.Conn], too.
// Connections that are deferred come when something is asked on them.
func AcceptAtOnce(ln any) {
	sc, ok := ln.(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := sc.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { setDefer(int(fd), false) })
	}
}

// setDefer is about speed: that it cannot be set does not matter.
func setDefer(fd int, on bool) {
	seconds := 0
	if on {
		seconds = deferTime
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, seconds)
}
