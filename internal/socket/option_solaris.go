//go:build solaris

package socket

// Reuseport is always false here: golang.org/x/sys/unix does not know the option.
func (s *Socket) Reuseport() bool { return false }
