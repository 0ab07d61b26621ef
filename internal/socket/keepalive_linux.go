package socket

import (
	"net"
	"reflect"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What package net sets on each connection, in seconds and probes.
const (
	keepAliveTime  = 15
	keepAliveCount = 9
)

// keepAlive turns keep-alive on for s, as package net does for a connection:
// connections inherit it, and [Inherit] then spares them the calls. What cannot
// be set is what package net sets.
func (s *Socket) keepAlive() {
	if s.isUnix() {
		return
	}
	for option, value := range map[int]int{
		unix.TCP_KEEPIDLE: keepAliveTime, unix.TCP_KEEPINTVL: keepAliveTime, unix.TCP_KEEPCNT: keepAliveCount,
	} {
		if unix.SetsockoptInt(s.fd, unix.IPPROTO_TCP, option, value) != nil {
			return
		}
	}
	_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
}

// leaveKeepAlive makes ln leave the keep-alive of its connections as they
// inherit it, if its socket has it on: four system calls fewer for each. The
// configuration that says so is private to package net, and is not set by
// [net.FileListener]; with a Go that keeps it elsewhere, nothing changes.
func leaveKeepAlive(ln net.Listener) {
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil || !keepsAlive(raw) {
		return
	}
	field := reflect.ValueOf(tcp).Elem().FieldByName("lc")
	if !field.IsValid() || field.Type() != reflect.TypeFor[net.ListenConfig]() {
		return
	}
	config := (*net.ListenConfig)(unsafe.Pointer(field.UnsafeAddr())) //nolint:gosec // its type is checked
	config.KeepAlive = -1
}

// keepsAlive says whether the socket has keep-alive on.
func keepsAlive(raw syscall.RawConn) bool {
	on := 0
	_ = raw.Control(func(fd uintptr) { on, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE) })
	return on != 0
}
