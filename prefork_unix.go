//go:build unix

package prefork

// What only Unix has: starting a child with descriptors, signals, and knowing
// whose child this process is.

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fiber-prefork/prefork/internal/control"
	"github.com/fiber-prefork/prefork/internal/report"
	"github.com/fiber-prefork/prefork/internal/socket"
)

// terminate asks a process to go.
const terminate = syscall.SIGTERM

// lastWords is how long the messages of a child that has ended are waited for.
const lastWords = 100 * time.Millisecond

// start runs a program as a child that serves at. What happens to it goes to
// events, its end last.
func (p *process) start(at *socket.Socket, env childEnv, img *image, as *credential, procs int, events chan<- event) error {
	listener, err := at.File()
	if err != nil {
		return err
	}
	// From here to its Close the socket is in our poller.
	defer func() { _ = listener.Close() }()
	channel, theirs, err := control.Pair()
	if err != nil {
		return err
	}
	defer func() { _ = theirs.Close() }()
	page, err := report.New()
	if err != nil {
		_ = channel.Close()
		return err
	}

	cmd := &exec.Cmd{
		Path:       img.path(),
		Args:       os.Args,
		Env:        environ(env, procs),
		Stdout:     os.Stdout,
		Stderr:     os.Stderr,
		ExtraFiles: []*os.File{listener, theirs, page.File(), page.File()}, // listenerFD, controlFD, pageFD, imageFD
	}
	if img != nil && img.file != nil {
		// Go puts a descriptor of its own above those that are passed, and
		// must not hit the one by which the program is started.
		cmd.ExtraFiles[imageFD-listenerFD] = img.file
	}
	if as != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: (*syscall.Credential)(as)}
	}
	if err := cmd.Start(); err != nil {
		page.Close()
		_ = channel.Close()
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	p.pid, p.startedAt, p.control, p.page = cmd.Process.Pid, time.Now(), channel, page
	p.attend(cmd.Process, events)
	return nil
}

// attendPID makes events of what happens to a child that this process has
// already.
func (p *process) attendPID(events chan<- event) error {
	process, err := os.FindProcess(p.pid)
	if err != nil {
		return err
	}
	p.attend(process, events)
	return nil
}

// attend makes events of what process says and of its end.
func (p *process) attend(process *os.Process, events chan<- event) {
	p.signal = func(sig os.Signal) { _ = process.Signal(sig) }
	go p.receive(events)
	go func() {
		state, err := process.Wait()
		p.control.ReceiveWithin(lastWords)
		<-p.read
		_ = p.control.Close()
		events <- event{process: p, exit: exitOf(p.pid, state, err)}
	}()
}

// exitOf says how a process ended. state is nil when somebody else has reaped it.
func exitOf(pid int, state *os.ProcessState, err error) *ChildExit {
	if state == nil {
		return &ChildExit{PID: pid, ExitCode: -1, Status: fmt.Sprintf("unknown status (%v)", err)}
	}
	exit := &ChildExit{PID: pid, ExitCode: state.ExitCode(), Status: state.String()}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		exit.Signal = status.Signal()
	}
	return exit
}

// abort asks a process to print its goroutines and end.
const abort = syscall.SIGABRT

// asksToEnd says whether sig, which may be nil, asks a process to end.
func asksToEnd(sig os.Signal) bool { return sig == syscall.SIGINT || sig == syscall.SIGTERM }

// askOf says what sig asks a master for.
func askOf(sig os.Signal) *ask {
	switch sig {
	case syscall.SIGHUP:
		return &ask{kind: askReload}
	case syscall.SIGUSR2:
		return &ask{kind: askUpgrade}
	case syscall.SIGTTIN:
		return &ask{kind: askScaleBy, n: 1}
	case syscall.SIGTTOU:
		return &ask{kind: askScaleBy, n: -1}
	default:
		return nil
	}
}

// watchedSignals are those that a server acts on. Those that the process was
// started to ignore (nohup, a job in the background) stay ignored.
func watchedSignals() []os.Signal {
	return slices.DeleteFunc([]os.Signal{
		syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR2, syscall.SIGTTIN, syscall.SIGTTOU,
	}, signal.Ignored)
}

// programPath is where the executable of this process is, as it was named: a
// path through symbolic links leads to another one when these are changed.
func programPath() string {
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	named, err := exec.LookPath(os.Args[0])
	if err != nil {
		return self
	}
	if named, err = filepath.Abs(named); err != nil {
		return self
	}
	a, err := os.Stat(named) //nolint:gosec // our own executable
	if err != nil {
		return self
	}
	if b, err := os.Stat(executable()); err != nil || !os.SameFile(a, b) {
		return self
	}
	return named
}

// image is an executable as it was on disk at some time. A nil image is that
// of this process.
type image struct {
	file *os.File // where the system can start what is open; else nil
	name string
}

// openImage opens what is now on disk.
func openImage() (*image, error) {
	name := here.program
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.IsDir() || info.Mode()&0o111 == 0 {
		return nil, &os.PathError{Op: "exec", Path: name, Err: syscall.EACCES}
	}
	if runtime.GOOS != "linux" {
		return &image{name: name}, nil
	}
	f, err := openForExec(name)
	if err != nil {
		return nil, err
	}
	img := &image{file: f, name: name}
	if _, err := os.Stat(img.path()); err != nil { // no /proc
		img.close()
		img.file = nil
	}
	return img, nil
}

// path is what can be started.
func (i *image) path() string {
	switch {
	case i == nil:
		return executable()
	case i.file != nil:
		return fmt.Sprintf("/proc/self/fd/%d", i.file.Fd())
	default:
		return i.name
	}
}

func (i *image) close() {
	if i != nil && i.file != nil {
		_ = i.file.Close()
	}
}

// replaceImage replaces the program of this process by img, which gets h
// and the descriptors that keep makes survive. It returns only if that is impossible; this program then has
// to watch its signals anew.
func replaceImage(img *image, h *handover, keep func(bool) error) error {
	var ignored []os.Signal
	for _, sig := range watchedSignals() {
		s, ok := sig.(syscall.Signal)
		if !ok || h.Unwatched {
			continue
		}
		h.Signals = append(h.Signals, int(s))
		if !asksToEnd(sig) {
			ignored = append(ignored, sig)
		}
	}
	// A program that is started meanwhile would inherit all of it.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	defer func() { _ = keep(false) }()
	here.sockets.Private(false)
	defer here.sockets.Private(true)
	if err := keep(true); err != nil {
		return err
	}
	f, err := stateFile(h)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	env := append(os.Environ(), fmt.Sprintf("%s=%d %d %d", envState, stateVersion, os.Getpid(), f.Fd()))
	// Until the new program watches them they would end it. One that comes
	// in between is lost.
	if len(ignored) > 0 { // else it would be all
		signal.Ignore(ignored...)
	}
	err = syscall.Exec(img.path(), os.Args, env) //nolint:gosec // our own executable
	return fmt.Errorf("exec %s: %w", img.name, err)
}

// stateFile returns a file that holds h: in memory, or else without a name
// and without what must never be on a disk.
func stateFile(h *handover) (*os.File, error) {
	b, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	f, err := sealedFile(b)
	if !errors.Is(err, errors.ErrUnsupported) {
		return f, err
	}
	h.Tickets = nil
	if b, err = json.Marshal(h); err != nil {
		return nil, err
	}
	return unlinkedFile(b)
}

// inheritState finds what the program that was here before has left, and
// keeps it away from programs that main runs.
func inheritState() *handover {
	value, ok := os.LookupEnv(envState)
	if !ok {
		return nil
	}
	_ = os.Unsetenv(envState)
	var version, pid, fd int
	if _, err := fmt.Sscanf(value, "%d %d %d", &version, &pid, &fd); err != nil || pid != os.Getpid() {
		return nil // a program's that this one was started by
	}
	f := os.NewFile(uintptr(fd), "state")
	if f == nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, maxState)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		logger{}.errorf("state of the program before: %v", err)
		return nil
	}
	h, err := parseHandover(b[:n])
	if err != nil {
		logger{}.errorf("state of the program before: %v", err)
		return nil
	}
	for _, k := range h.Slots {
		unix.CloseOnExec(k.Socket.FD)
		if k.Child != nil {
			unix.CloseOnExec(k.Child.Control)
			unix.CloseOnExec(k.Child.Page)
		}
	}
	guardOutput()
	rename()
	return h
}

// maxState is the most that a state is, in bytes.
const maxState = 16 << 20

// earlySignals catches signals until a server watches them.
func earlySignals(numbers []int) chan os.Signal {
	c := make(chan os.Signal, 4)
	for _, n := range numbers {
		signal.Notify(c, syscall.Signal(n))
	}
	return c
}

// executable is the image that this process runs, also when its file has been
// replaced or deleted: all children are of one version.
func executable() string {
	if runtime.GOOS == "linux" {
		const self = "/proc/self/exe"
		if _, err := os.Stat(self); err == nil {
			return self
		}
	}
	if path, err := os.Executable(); err == nil {
		return path
	}
	if path, err := exec.LookPath(os.Args[0]); err == nil {
		return path
	}
	return os.Args[0]
}

// environ is this process's environment for a child.
func environ(env childEnv, procs int) []string {
	drop := func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case envFiber, envChild, envHistory, envState, "GOMAXPROCS", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC",
			"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID":
			return true
		}
		return false
	}
	vars := append(slices.DeleteFunc(os.Environ(), drop),
		envFiber+"=1", envChild+"="+env.String(), "GOMAXPROCS="+strconv.Itoa(procs))
	if h := here.history.String(); h != "" {
		vars = append(vars, envHistory+"="+h)
	}
	return vars
}

// bornOf says whether this process is a child of that master: it holds the
// other end of a socket pair that the master made. A program that a child runs
// has the child's environment, but not that.
func bornOf(master int) bool {
	var st unix.Stat_t
	if err := unix.Fstat(controlFD, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return false
	}
	if peer := peerPID(controlFD); peer != 0 {
		return peer == master // also when the master is dead already
	}
	return os.Getppid() == master || os.Getppid() == 1
}

// adopt makes this process a child: it keeps descriptors away from the
// programs that main runs, survives a master whose output nobody reads any
// more, and has its name back, which it lost by being run as /proc/self/exe.
func adopt(fds ...int) {
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	_ = unix.Close(imageFD)
	guardOutput() // main may write before it listens
	rename()
}

// guardOutput makes a write to a stdout or stderr that nobody reads an error
// and not the end of the process, for good: main writes after Listen too.
var guardOutput = sync.OnceFunc(func() {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // not Ignore: programs that are run would inherit that
})

// watchSignals calls f for the signals that a server acts on, until stop is
// called. Those that ask to end wait for no others.
func watchSignals(f func(os.Signal)) (w signalWatch) {
	ends, others := make(chan os.Signal, 4), make(chan os.Signal, 4)
	watched := watchedSignals()
	w.again = func() {
		for _, sig := range watched {
			if asksToEnd(sig) {
				signal.Notify(ends, sig)
			} else {
				signal.Notify(others, sig)
			}
		}
	}
	w.again()
	early := here.signals
	if early != nil {
		signal.Stop(early)
		for len(early) > 0 { // nobody else sends any more
			if sig := <-early; asksToEnd(sig) {
				ends <- sig
			} else {
				others <- sig
			}
		}
	}
	done := make(chan struct{})
	call := func(c <-chan os.Signal) {
		for {
			select {
			case sig := <-c:
				if ofJobControl(sig) {
					signal.Ignore(sig) // else the terminal sends it again and again
				} else {
					f(sig)
				}
			case <-done:
				return
			}
		}
	}
	go call(ends)
	go call(others)
	w.stop = func() {
		// The others go on to be taken, by nobody: a reload that comes too
		// late is no reason to end main in the middle of its last words.
		signal.Stop(ends)
		close(done)
	}
	return w
}

// ofJobControl says whether sig is what a terminal sends to a process in its
// background that reads from it or writes to it, and nobody's wish.
func ofJobControl(sig os.Signal) bool {
	if sig != syscall.SIGTTIN && sig != syscall.SIGTTOU {
		return false
	}
	mine, err := unix.Getpgid(0)
	if err != nil {
		return false
	}
	for fd := range 3 {
		group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
		if err == nil && group != mine {
			return true
		}
	}
	return false
}

// signalSelf sends this process the signal that a main may be waiting for. It
// does nothing to a main that is not.
func signalSelf() {
	signal.Notify(make(chan os.Signal, 1), terminate)
	_ = syscall.Kill(os.Getpid(), terminate)
}

// unlinkedFile returns a file without a name that holds b.
func unlinkedFile(b []byte) (*os.File, error) {
	f, err := os.CreateTemp("", "prefork-state-")
	if err != nil {
		return nil, err
	}
	_ = os.Remove(f.Name())
	if _, err := f.Write(b); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}
