//go:build unix

package control

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Pair makes a channel: the master's end, and the child's as a file for
// os/exec's ExtraFiles, which the caller closes after the start.
func Pair() (*Conn, *os.File, error) {
	syscall.ForkLock.RLock()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "control channel of a child")
	mine, err := Open(uintptr(fds[0]))
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return mine, theirs, nil
}

// Open speaks on the socket at descriptor fd, which it closes, as a master: it
// keeps a duplicate that programs started later do not inherit. unread is what
// was received from it before: see [Conn.Unread]. Descriptors that come along
// are dropped by the system.
func Open(fd uintptr, unread ...byte) (*Conn, error) {
	conn, err := open(fd)
	if err != nil {
		return nil, err
	}
	return NewConn(conn, unread), nil
}

// Inherit is Open for a child, which receives descriptors.
func Inherit(fd uintptr) (*Conn, error) {
	conn, err := open(fd)
	if err != nil {
		return nil, err
	}
	c := &Conn{conn: conn}
	c.in = bufio.NewReaderSize(c.receiver(), headerSize+MaxPayload)
	return c, nil
}

func open(fd uintptr) (net.Conn, error) {
	f := os.NewFile(fd, "control channel")
	if f == nil {
		return nil, fmt.Errorf("control channel: descriptor %d is not open", fd)
	}
	conn, err := net.FileConn(f)
	_ = f.Close()
	if err != nil {
		return nil, fmt.Errorf("control channel at descriptor %d: %w", fd, err)
	}
	return conn, nil
}

// SendFD sends m and a copy of descriptor fd. See [Conn.Send].
func (c *Conn) SendFD(m Message, fd int) error {
	conn, ok := c.conn.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("no descriptor can be sent on a %T", c.conn)
	}
	return c.write(func() error {
		_, _, err := conn.WriteMsgUnix(Append(nil, m), unix.UnixRights(fd), nil)
		return err
	})
}

// Keep makes this end survive the replacement of this program by another one
// in the same process, or not, and returns its descriptor.
func (c *Conn) Keep(keep bool) (fd int, err error) {
	conn, ok := c.conn.(*net.UnixConn)
	if !ok {
		return -1, fmt.Errorf("a %T has no descriptor", c.conn)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return -1, err
	}
	flags := unix.FD_CLOEXEC
	if keep {
		flags = 0
	}
	var flagErr error
	err = raw.Control(func(n uintptr) {
		fd = int(n)
		_, flagErr = unix.FcntlInt(n, unix.F_SETFD, flags)
	})
	return fd, errors.Join(err, os.NewSyscallError("fcntl", flagErr))
}

// receiver reads bytes and keeps the descriptors that come along.
func (c *Conn) receiver() io.Reader {
	conn, ok := c.conn.(*net.UnixConn)
	if !ok {
		return c.conn
	}
	rights := make([]byte, unix.CmsgSpace(4*maxFiles))
	return readerFunc(func(b []byte) (int, error) {
		n, oobn, _, _, err := conn.ReadMsgUnix(b, rights)
		if oobn > 0 {
			c.keep(rights[:oobn])
		}
		if n == 0 && err == nil {
			err = io.EOF
		}
		return max(n, 0), err
	})
}

// maxFiles is how many descriptors one read may bring: more than the system
// joins, which is one message's.
const maxFiles = 4

func (c *Conn) keep(rights []byte) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			c.files.add(os.NewFile(uintptr(fd), "received"))
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }
