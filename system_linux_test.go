package prefork_test

import "golang.org/x/sys/unix"

// spreads says whether the kernel spreads connections over reuseport sockets.
const spreads = true

func setReuseport(fd int) { _ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }
