package prefork

// Windows: prefork is refused (see Listen), so that none of these is called.

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/fiber-prefork/prefork/internal/socket"
)

const canBeQuiet = false

const canSteer = false

// terminate asks a process to go.
var terminate = os.Kill

// abort asks a process to print its goroutines and end.
var abort = os.Kill

func (p *process) start(*socket.Socket, childEnv, *image, *credential, int, chan<- event) error {
	return fmt.Errorf("prefork: %w", ErrPlatformUnsupported)
}

func (p *process) attendPID(chan<- event) error {
	return fmt.Errorf("prefork: %w", ErrPlatformUnsupported)
}

// credential does not exist here.
type credential struct{}

func lookUp(c Credential) (*credential, error) {
	if c != (Credential{}) {
		return nil, invalid("ChildCredential", fmt.Sprintf("%+v", c), "there is none on windows")
	}
	return nil, nil //nolint:nilnil // no credential is neither one nor a failure
}

// image does not exist here.
type image struct{}

func openImage() (*image, error) { return nil, ErrPlatformUnsupported }

func (*image) close() {}

func replaceImage(*image, *handover, func(bool) error) error {
	return ErrPlatformUnsupported
}

func programPath() string { return "" }

func inheritState() *handover { return nil }

func earlySignals([]int) chan os.Signal { return nil }

func askOf(os.Signal) *ask { return nil }

func residentMemory(int) int64 { return 0 }

func lastUsed(syscall.RawConn) time.Duration { return 0 }

func bornOf(int) bool { return false }

func adopt(...int) {}

func guardOutput() {}

func watchSignals(f func(os.Signal)) (w signalWatch) {
	c := make(chan os.Signal, 4)
	w.again = func() { signal.Notify(c, os.Interrupt) }
	w.again()
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
	w.stop = func() {
		signal.Stop(c)
		close(done)
	}
	return w
}

func asksToEnd(os.Signal) bool { return true }

func signalSelf() {}

func reapStrangers() (stop func()) { return func() {} }
