//go:build darwin || openbsd || netbsd

package socket

import "golang.org/x/sys/unix"

// Reuseport says whether others may bind to the port of s.
func (s *Socket) Reuseport() bool {
	on, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT)
	return err == nil && on != 0 && !s.isUnix()
}
