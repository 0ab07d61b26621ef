//go:build unix

package prefork

// What only Unix has: starting a child with descriptors, signals, and knowing
// whose child this process is.

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fiber-prefork/prefork/internal/control"
)

// terminate asks a process to go.
const terminate = syscall.SIGTERM

// lastWords is how long the messages of a child that has ended are waited for.
const lastWords = 100 * time.Millisecond

// startProcess runs this program again as a child in s. What happens to it
// goes to events, its end last.
func startProcess(s *slot, env childEnv, procs int, events chan<- event) (*process, error) {
	listener, err := s.socket.File()
	if err != nil {
		return nil, err
	}
	// From here to its Close the socket is in our poller.
	defer func() { _ = listener.Close() }()
	channel, theirs, err := control.Pair()
	if err != nil {
		return nil, err
	}
	defer func() { _ = theirs.Close() }()

	cmd := &exec.Cmd{
		Path:       executable(),
		Args:       os.Args,
		Env:        environ(env, procs),
		Stdout:     os.Stdout,
		Stderr:     os.Stderr,
		ExtraFiles: []*os.File{listener, theirs}, // listenerFD, controlFD
	}
	if err := cmd.Start(); err != nil {
		_ = channel.Close()
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	p := &process{
		slot: s, pid: cmd.Process.Pid, startedAt: time.Now(), control: channel,
		signal: func(sig os.Signal) { _ = cmd.Process.Signal(sig) },
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for {
			message, err := channel.Receive()
			if err != nil {
				return
			}
			events <- event{process: p, message: &message}
		}
	}()
	go func() {
		err := cmd.Wait()
		channel.ReceiveWithin(lastWords)
		<-read
		_ = channel.Close()
		events <- event{process: p, exit: exitOf(p.pid, cmd.ProcessState, err)}
	}()
	return p, nil
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

// endSignals are those that ask a process to end.
func endSignals() []os.Signal {
	return []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP}
}

// asksToEnd says whether sig, which may be nil, asks a process to end.
func asksToEnd(sig os.Signal) bool { return slices.Contains(endSignals(), sig) }

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
		case envFiber, envChild, envHistory, "GOMAXPROCS", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC",
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
	guardOutput() // main may write before it listens
	rename()
}

// guardOutput makes a write to a stdout or stderr that nobody reads an error
// and not the end of the process, for good: main writes after Listen too.
var guardOutput = sync.OnceFunc(func() {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // not Ignore: programs that are run would inherit that
})

// watchSignals calls f, one signal after another, for those that ask a server
// to end, until stop is called. Those that the process was started to ignore
// (nohup, a job in the background) stay ignored.
func watchSignals(f func(os.Signal)) (stop func()) {
	c := make(chan os.Signal, 4)
	for _, sig := range endSignals() {
		if !signal.Ignored(sig) {
			signal.Notify(c, sig)
		}
	}
	done := make(chan struct{})
	go func() {
		for {
			select {
			case sig := <-c:
				f(sig)
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(c)
		close(done)
	}
}

// endsAtOnce says whether sig, as the second one, ends a drain. A terminal and
// systemd send SIGHUP along with others.
func endsAtOnce(sig os.Signal) bool { return sig != syscall.SIGHUP }

// signalSelf sends this process the signal that a main may be waiting for. It
// does nothing to a main that is not.
func signalSelf() {
	signal.Notify(make(chan os.Signal, 1), terminate)
	_ = syscall.Kill(os.Getpid(), terminate)
}
