//go:build dragonfly || aix

package socket

import "golang.org/x/sys/unix"

const spreadOption = unix.SO_REUSEPORT
