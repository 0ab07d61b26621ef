package prefork

// What only Linux has: the peer's pid of a socket, the name of a process, and
// reaping as PID 1 of a container.

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// canBeQuiet says whether the master can see that connections wait for a child
// that reports nothing.
const canBeQuiet = true

// canSteer says whether the kernel can be told where new connections go.
const canSteer = true

// peerPID returns the process that made the socket pair of which fd is an
// end, dead or alive; 0 if the system does not say.
func peerPID(fd int) int {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0
	}
	return int(cred.Pid)
}

// rename makes ps and top show the program's name and not "exe". It is for
// package initialization, which the main thread does.
func rename() {
	if name, err := unix.BytePtrFromString(filepath.Base(os.Args[0])); err == nil {
		_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(name)), 0, 0, 0)
	}
}

// strangerGrace is how long an ended process of which we are the parent may
// wait for somebody to ask for its status before it counts as a stranger. Our
// own children have somebody who waits; so have the application's, as a rule,
// and nothing tells its processes from strangers.
const strangerGrace = 3 * time.Second

// reapStrangers reaps processes that were re-parented to this one, if it is
// PID 1, until stop is called.
func reapStrangers() (stop func()) {
	if os.Getpid() != 1 {
		return func() {}
	}
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGCHLD)
	done := make(chan struct{})
	go func() {
		seen, since := 0, time.Time{}
		again := time.NewTimer(0) // there may be some already
		defer again.Stop()
		for {
			select {
			case <-c:
			case <-again.C:
			case <-done:
				return
			}
			for {
				pid := zombie()
				if pid == 0 {
					seen = 0
					break
				}
				if pid != seen {
					seen, since = pid, time.Now()
				}
				if time.Since(since) < strangerGrace {
					again.Reset(strangerGrace)
					break
				}
				_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
			}
		}
	}()
	return func() {
		signal.Stop(c)
		close(done)
	}
}

// zombie returns a child of this process that has ended and that nobody has
// waited for, without taking its status; 0 if there is none.
func zombie() int {
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
		return 0
	}
	// si_pid is the first field of the union behind the three ints, which is
	// aligned to a pointer.
	offset := max(3*unsafe.Sizeof(int32(0)), 2*unsafe.Sizeof(uintptr(0)))
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), offset)))
}

// lastUsed says for how long neither side has sent anything; 0 if the system
// does not know, as of a unix socket.
func lastUsed(conn syscall.RawConn) time.Duration {
	var info *unix.TCPInfo
	var infoErr error
	err := conn.Control(func(fd uintptr) {
		info, infoErr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	if err != nil || infoErr != nil {
		return 0
	}
	return time.Duration(min(info.Last_data_sent, info.Last_data_recv)) * time.Millisecond
}

// residentMemory of a process, in bytes; 0 if it is gone.
func residentMemory(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		return 0
	}
	return resident * int64(os.Getpagesize())
}

// openForExec opens a program so that it can be started when its file has
// been replaced. The descriptor is above the numbers that a child gets.
func openForExec(name string) (*os.File, error) {
	f, err := os.Open(name) //nolint:gosec // our own executable
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 16)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// sealedFile returns a file in memory that holds b and cannot be changed. A
// kernel may not have such files: errors.ErrUnsupported.
func sealedFile(b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("prefork state", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("%w: memfd_create: %w", errors.ErrUnsupported, err)
	}
	f := os.NewFile(uintptr(fd), "state")
	if _, err := f.Write(b); err != nil {
		_ = f.Close()
		return nil, err
	}
	const seals = unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		_ = f.Close()
		return nil, os.NewSyscallError("fcntl", err)
	}
	return f, nil
}
