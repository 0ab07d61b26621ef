//go:build unix && !aix

package socket

import "golang.org/x/sys/unix"

// dup duplicates fd without handing the copy to programs that are started.
func dup(fd uintptr) (int, error) { return unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }
