package socket

import "golang.org/x/sys/unix"

// SO_REUSEPORT alone does not spread on FreeBSD.
const spreadOption = unix.SO_REUSEPORT_LB
