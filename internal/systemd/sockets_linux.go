package systemd

// The sockets that the service manager has passed: which there are, which of
// them an address asks for, and taking one. What nobody asks for stays as it
// is, for the application.
//
// go-systemd's activation package is not used for that: it marks every
// descriptor close-on-exec, puts those that do not block into Go's poller, and
// closes what is garbage to it.

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// firstFD is the number of the first descriptor that is passed.
	firstFD = 3

	// maxPassed is above any number of sockets that are meant: each costs a
	// system call.
	maxPassed = 1 << 16
)

// Sockets are the listening stream sockets that the service manager has
// passed to this process and that are not taken yet. Its methods do nothing
// on a nil Sockets, and may be called by any goroutine.
type Sockets struct {
	mu   sync.Mutex
	left []passed
}

// passed is one of them, as it was found.
type passed struct {
	fd     int
	file   unix.Stat_t // tells it from whatever gets its number later
	name   string      // in LISTEN_FDNAMES
	path   string      // of a unix socket, "@…" when it is abstract; else ""
	addr   netip.AddrPort
	v6only bool // takes no IPv4 on [::]
}

// Inherited returns the sockets that the service manager has passed to this
// process, nil if there are none. Call it early: what the application has put
// at these numbers by then would be taken for them.
func Inherited() *Sockets {
	pid, err := strconv.Atoi(os.Getenv("LISTEN_PID"))
	if err != nil || pid != os.Getpid() {
		return nil // meant for the process that has started this one
	}
	count, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || count < 1 || count > maxPassed {
		return nil
	}
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	s := new(Sockets)
	for i := range count {
		p, ok := inspect(firstFD + i)
		if !ok {
			continue
		}
		if i < len(names) {
			p.name = names[i]
		}
		s.left = append(s.left, p)
	}
	if len(s.left) == 0 {
		return nil
	}
	return s
}

// inspect says what descriptor fd is, and whether it is a stream socket that
// listens. It changes nothing about it.
func inspect(fd int) (passed, bool) {
	p := passed{fd: fd}
	if err := unix.Fstat(fd, &p.file); err != nil || p.file.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return p, false
	}
	option := func(level, name int) int {
		n, err := unix.GetsockoptInt(fd, level, name)
		if err != nil {
			return -1
		}
		return n
	}
	if option(unix.SOL_SOCKET, unix.SO_TYPE) != unix.SOCK_STREAM || option(unix.SOL_SOCKET, unix.SO_ACCEPTCONN) != 1 {
		return p, false
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		return p, false
	}
	switch bound := bound.(type) {
	case *unix.SockaddrUnix:
		p.path = bound.Name
		return p, true
	case *unix.SockaddrInet4:
		p.addr = netip.AddrPortFrom(netip.AddrFrom4(bound.Addr), uint16(bound.Port))
	case *unix.SockaddrInet6:
		ip := netip.AddrFrom16(bound.Addr)
		if bound.ZoneId != 0 {
			ip = ip.WithZone(strconv.FormatUint(uint64(bound.ZoneId), 10))
		}
		p.addr = netip.AddrPortFrom(ip, uint16(bound.Port))
		p.v6only = option(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY) == 1
	default:
		return p, false
	}
	protocol := option(unix.SOL_SOCKET, unix.SO_PROTOCOL)
	return p, protocol == unix.IPPROTO_TCP || protocol == unix.IPPROTO_MPTCP // SCTP has streams too
}

// Listener takes the socket for network ("tcp", "tcp4", "tcp6" or "unix") and
// addr out of s. It returns nil and no error when there is none, or when it is
// taken already.
//
// That is the first socket whose name (FileDescriptorName=) is addr, or else
// the first that is bound to what network and addr ask for: the same port,
// the same IP or all of them in both, and a family that network includes.
// "tcp4" includes a socket on [::] that takes IPv4 as well, "tcp6" any of IPv6.
// Port 0 asks for none. A unix socket has to have the same path.
//
// The listener has a descriptor of its own. The inherited number stays taken,
// by [os.DevNull]: the environment still names it, and so neither the
// application nor a program that this process becomes by exec may find there
// what is not meant for it.
func (s *Sockets) Listener(network, addr string) (net.Listener, error) {
	if s == nil || addr == "" {
		return nil, nil
	}
	switch network {
	case "tcp", "tcp4", "tcp6", "unix":
	default:
		return nil, nil
	}
	ln, err := s.takeFirst(func(p *passed) bool { return p.name == addr })
	if ln != nil || err != nil {
		return ln, err
	}
	if network == "unix" {
		return s.takeFirst(func(p *passed) bool { return p.isAt(addr) })
	}
	// As net.Listen will, so that a host or port that is a name means the same.
	want, err := net.ResolveTCPAddr(network, addr)
	if err != nil || want.Port == 0 {
		return nil, nil //nolint:nilerr // whoever binds addr then says what is wrong with it
	}
	return s.takeFirst(func(p *passed) bool { return p.serves(network, want.AddrPort()) })
}

// Unused describes the sockets that are not taken, such as "http [::]:80": for
// the one who wonders why his was not.
func (s *Sockets) Unused() []string {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for i := range s.left {
		if p := &s.left[i]; p.isThere() {
			all = append(all, p.String())
		}
	}
	return all
}

// Private keeps the sockets that are not taken from programs that this process
// starts, or, for the one that takes its place by exec, does not.
func (s *Sockets) Private(private bool) {
	if s == nil {
		return
	}
	flags := 0
	if private {
		flags = unix.FD_CLOEXEC
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.left {
		if p := &s.left[i]; p.isThere() {
			_, _ = unix.FcntlInt(uintptr(p.fd), unix.F_SETFD, flags)
		}
	}
}

// takeFirst takes the first socket that match accepts.
func (s *Sockets) takeFirst(match func(*passed) bool) (net.Listener, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.left {
		p := &s.left[i]
		if !match(p) || !p.isThere() {
			continue
		}
		ln, err := p.take()
		if err != nil {
			return nil, fmt.Errorf("systemd: take socket %v at descriptor %d: %w", p, p.fd, err)
		}
		s.left = slices.Delete(s.left, i, i+1)
		return ln, nil
	}
	return nil, nil
}

// isThere says whether p's number is still p's: the application may have used
// and closed it.
func (p *passed) isThere() bool {
	var now unix.Stat_t
	return unix.Fstat(p.fd, &now) == nil && now.Dev == p.file.Dev && now.Ino == p.file.Ino
}

// isAt says whether p is the unix socket at path.
func (p *passed) isAt(path string) bool {
	if strings.HasPrefix(path, "\x00") {
		path = "@" + path[1:]
	}
	if p.path == "" || p.path == path {
		return p.path != ""
	}
	if p.path[0] == '@' || path[0] == '@' {
		return false
	}
	if filepath.Clean(path) == filepath.Clean(p.path) {
		return true
	}
	// The same file by another name: relative, or through a link.
	asked, err := os.Stat(path)
	if err != nil {
		return false
	}
	own, err := os.Stat(p.path)
	return err == nil && os.SameFile(asked, own)
}

// serves says whether p is a TCP socket that network and want ask for.
func (p *passed) serves(network string, want netip.AddrPort) bool {
	if !p.addr.IsValid() || p.addr.Port() != want.Port() {
		return false
	}
	has, ip := p.addr.Addr(), want.Addr().Unmap()
	all := !ip.IsValid() || ip.IsUnspecified()
	switch {
	case network == "tcp4" && has.Is6() && !has.Is4In6() && (p.v6only || !has.IsUnspecified()):
		return false
	case network == "tcp6" && (has.Is4() || has.Is4In6()):
		return false
	case all:
		return has.Unmap().IsUnspecified()
	}
	return has.Unmap() == withIndex(ip)
}

// withIndex returns ip with the zone as a number, as the kernel tells it.
func withIndex(ip netip.Addr) netip.Addr {
	if ifi, err := net.InterfaceByName(ip.Zone()); err == nil {
		return ip.WithZone(strconv.Itoa(ifi.Index))
	}
	return ip
}

// take moves p to a descriptor of its own.
func (p *passed) take() (net.Listener, error) {
	// Opened first: afterwards nothing may fail.
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: os.DevNull, Err: err}
	}
	defer func() { _ = unix.Close(null) }()
	fd, err := unix.FcntlInt(uintptr(p.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(fd), "socket passed by systemd")
	ln, err := net.FileListener(f)
	_ = f.Close()
	if err != nil {
		return nil, err
	}
	// In one step, or another goroutine gets the number. Without close-on-exec,
	// as it was: see Listener.
	if err := unix.Dup3(null, p.fd, 0); err != nil {
		_ = ln.Close()
		return nil, os.NewSyscallError("dup3", err)
	}
	return ln, nil
}

// String returns p's name, if it has one, and its address.
func (p *passed) String() string {
	at := p.path
	if p.addr.IsValid() {
		at = p.addr.String()
	}
	return strings.TrimSpace(p.name + " " + at)
}
