//go:build unix && !linux

package prefork_test

import (
	"runtime"
	"testing"
	"time"
)

// spreads says whether the kernel spreads connections over reuseport sockets.
const spreads = runtime.GOOS == "freebsd" || runtime.GOOS == "dragonfly" || runtime.GOOS == "aix"

func setReuseport(int) {}

const (
	procSelfExe = false
	rlimitNproc = 7 // of the BSDs
)

func stopped(int) bool { return true }

func processorTime(*testing.T, int) time.Duration { return 0 }

func listening(*testing.T, int) []string { return nil }

func zombies(int) int { return 0 }

func assertNonblocking(*testing.T, *server) {}

func assertMasterDoesNotPoll(*testing.T, *server) {}
