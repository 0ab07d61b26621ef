package report

import (
	"os"

	"golang.org/x/sys/unix"
)

// create makes a file that lives in memory.
func create() (*os.File, error) {
	fd, err := unix.MemfdCreate("prefork report", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return unlinked() // a kernel without it
	}
	f := os.NewFile(uintptr(fd), "report page")
	if err := f.Truncate(size); err != nil {
		_ = f.Close()
		return nil, err
	}
	// A child that made it smaller would end the master with SIGBUS.
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		_ = f.Close()
		return nil, os.NewSyscallError("fcntl", err)
	}
	return f, nil
}
