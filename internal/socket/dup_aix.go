package socket

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// dup duplicates fd without handing the copy to programs that are started.
// AIX has no F_DUPFD_CLOEXEC.
func dup(fd uintptr) (int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	n, err := unix.FcntlInt(fd, unix.F_DUPFD, 0)
	if err == nil {
		unix.CloseOnExec(n)
	}
	return n, err
}
