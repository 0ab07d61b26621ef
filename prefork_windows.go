package prefork

// Windows: prefork is refused (see Listen), so that none of these is called.

import (
	"fmt"
	"os"
	"os/signal"
)

// terminate asks a process to go.
var terminate = os.Kill

func startProcess(*slot, childEnv, int, chan<- event) (*process, error) {
	return nil, fmt.Errorf("prefork: %w", ErrPlatformUnsupported)
}

func bornOf(int) bool { return false }

func adopt(...int) {}

func guardOutput() {}

func watchSignals(f func(os.Signal)) (stop func()) {
	c := make(chan os.Signal, 4)
	signal.Notify(c, os.Interrupt)
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

func asksToEnd(os.Signal) bool { return false }

func endsAtOnce(os.Signal) bool { return true }

func signalSelf() {}

func reapStrangers() (stop func()) { return func() {} }
