//go:build unix

package report

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

type file = *os.File

// New makes a page for a child, which gets it as [Page.File].
func New() (*Page, error) {
	f, err := create()
	if err != nil {
		return nil, fmt.Errorf("report page: %w", err)
	}
	return mapped(f)
}

// Open maps the page at descriptor fd, which becomes the page's.
func Open(fd uintptr) (*Page, error) {
	f := os.NewFile(fd, "report page")
	if f == nil {
		return nil, fmt.Errorf("report page: descriptor %d is not open", fd)
	}
	unix.CloseOnExec(int(fd))
	info, err := f.Stat()
	if err == nil && info.Size() < size {
		err = errSmall
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("report page at descriptor %d: %w", fd, err)
	}
	return mapped(f)
}

func mapped(f *os.File) (*Page, error) {
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("report page: %w", os.NewSyscallError("mmap", err))
	}
	return &Page{mem: mem, file: f}, nil
}

// File is the page's file, which stays the page's.
func (p *Page) File() *os.File { return p.file }

// Forget closes the file of a page that is handed to nobody any more. The
// page stays.
func (p *Page) Forget() {
	_ = p.file.Close()
}

// Close gives up the page, after which it must not be used.
func (p *Page) Close() {
	_ = p.file.Close()
	_ = unix.Munmap(p.mem)
	p.mem = nil
}

// Keep makes the page's file survive the replacement of this program by
// another one in the same process, or not, and returns its descriptor.
func (p *Page) Keep(keep bool) (fd int, err error) {
	flags := unix.FD_CLOEXEC
	if keep {
		flags = 0
	}
	_, err = unix.FcntlInt(p.file.Fd(), unix.F_SETFD, flags)
	return int(p.file.Fd()), os.NewSyscallError("fcntl", err)
}

// unlinked makes a file without a name.
func unlinked() (*os.File, error) {
	f, err := os.CreateTemp("", "prefork-report-")
	if err != nil {
		return nil, err
	}
	_ = os.Remove(f.Name())
	if err := f.Truncate(size); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}
