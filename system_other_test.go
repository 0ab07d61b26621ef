//go:build unix && !linux

package prefork_test

import "runtime"

// spreads says whether the kernel spreads connections over reuseport sockets.
const spreads = runtime.GOOS == "freebsd" || runtime.GOOS == "dragonfly" || runtime.GOOS == "aix"

func setReuseport(int) {}
