package prefork_test

// What the tests ask Linux.

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const (
	// spreads says whether the kernel spreads connections over reuseport sockets.
	spreads = true
	// procSelfExe says whether this is Linux: a process can start its image when
	// the file is gone, and learn more of others.
	procSelfExe = true

	rlimitNproc = unix.RLIMIT_NPROC
)

func setReuseport(fd int) { _ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }

// stat returns the fields of /proc/<pid>/stat from the state on: state, ppid, …
func stat(pid string) []string {
	b, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if err != nil {
		return []string{"", ""}
	}
	return strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
}

// processorTime is what a process has used, in ns of precision.
func processorTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	require.NoError(t, err)
	sum := time.Duration(0)
	for _, path := range threads {
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		ns, err := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
		require.NoError(t, err)
		sum += time.Duration(ns)
	}
	return sum
}

// zombies counts the children of pid that have ended and were not waited for.
func zombies(pid int) int {
	n := 0
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if f := stat(filepath.Base(dir)); f[0] == "Z" && f[1] == strconv.Itoa(pid) {
			n++
		}
	}
	return n
}

// stopped says whether SIGSTOP has taken hold of pid: its other threads go on
// until the one that gets the signal has run.
func stopped(pid int) bool { return stat(strconv.Itoa(pid))[0] == "T" }

// listeners are the inodes of all listening TCP sockets.
func listeners(t *testing.T) map[string]bool {
	t.Helper()
	inodes := map[string]bool{}
	for _, path := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, line := range strings.Split(string(b), "\n") {
			if f := strings.Fields(line); len(f) > 9 && f[3] == "0A" {
				inodes[f[9]] = true
			}
		}
	}
	return inodes
}

// listening returns the descriptors of pid that are listening sockets.
func listening(t *testing.T, pid int) []string {
	t.Helper()
	all := listeners(t)
	var fds []string
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	require.NoError(t, err)
	for _, link := range links {
		target, _ := os.Readlink(link)
		if inode, ok := strings.CutPrefix(target, "socket:["); ok && all[strings.TrimSuffix(inode, "]")] {
			fds = append(fds, filepath.Base(link))
		}
	}
	return fds
}

var flagsLine = regexp.MustCompile(`(?m)^flags:\s+(\d+)`)

// assertNonblocking checks the flags of every listener of every process.
func assertNonblocking(t *testing.T, s *server) {
	t.Helper()
	for _, pid := range s.processes() {
		for _, fd := range listening(t, pid) {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, fd))
			if err != nil {
				continue // it has just died
			}
			m := flagsLine.FindSubmatch(b)
			require.NotNil(t, m, "%s", b)
			flags, err := strconv.ParseInt(string(m[1]), 8, 64)
			require.NoError(t, err)
			assert.NotZero(t, flags&unix.O_NONBLOCK, "listener %s of pid %d blocks", fd, pid)
		}
	}
}

var epollLine = regexp.MustCompile(`(?m)^tfd:\s+(\d+)`)

// assertMasterDoesNotPoll checks that no listener of the master is in one of
// its epoll sets.
func assertMasterDoesNotPoll(t *testing.T, s *server) {
	t.Helper()
	pid := s.cmd.Process.Pid
	held := listening(t, pid)
	require.NotEmpty(t, held, "the master holds the listeners")
	infos, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	require.NoError(t, err)
	polled := 0
	for _, path := range infos {
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, m := range epollLine.FindAllSubmatch(b, -1) {
			polled++
			assert.NotContains(t, held, string(m[1]), "the master polls a listener")
		}
	}
	assert.NotZero(t, polled, "the master polls its control channels")
}
