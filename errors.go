package prefork

// The errors that callers can tell apart. Every error that this package
// returns wraps one of them, one of Fiber's, or one of the system's.

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrInvalidConfig is returned, with the field and its value, before
	// anything is started.
	ErrInvalidConfig = errors.New("invalid configuration")

	// ErrReuseportUnsupported is returned when ListenConfig asks for one
	// listener per child and the system cannot spread connections over them.
	ErrReuseportUnsupported = errors.New("SO_REUSEPORT is not supported")

	// ErrChildStart is returned when a child ended, or took longer than
	// ListenConfig.ChildStartTimeout, before it was ever ready while the
	// server started. It comes in a [*ChildError].
	ErrChildStart = errors.New("child did not start")

	// ErrChildExited is returned when a child ended without having been asked
	// to and ListenConfig.DisableChildRecovery is set. It comes in a
	// [*ChildError].
	ErrChildExited = errors.New("child exited")

	// ErrRecoveryLimit is returned when a child ended and its slot has used up
	// ListenConfig.MaxChildRecoveries. It comes in a [*ChildError].
	ErrRecoveryLimit = errors.New("recovery limit reached")

	// ErrAlreadyRunning is returned by Listen and Listener while the same App
	// is being served.
	ErrAlreadyRunning = errors.New("app is already running")

	// ErrReload is returned by App.Reload and App.Upgrade when they did not
	// come to their end. It wraps the reason, such as a [*ChildError] with
	// ErrChildStart when a new child did not become ready.
	ErrReload = errors.New("reload failed")

	// ErrUpgrade is returned by App.Upgrade when the children were reloaded
	// and the master could not be replaced, or when this server cannot be
	// upgraded at all. It wraps the reason.
	ErrUpgrade = errors.New("upgrade failed")

	// ErrNotRunning is returned by App.Reload, App.Upgrade and App.Scale when
	// the app is not the master of a server that runs: in a child, before
	// Listen, and once a shutdown has begun.
	ErrNotRunning = errors.New("no prefork master is running")

	// ErrPlatformUnsupported is returned when EnablePrefork is set on a
	// platform where processes cannot share a listener: Windows.
	ErrPlatformUnsupported = errors.New("prefork is not supported on this platform")
)

// ChildError says which child ended the server, and how it ended itself.
type ChildError struct {
	// Reason is ErrChildStart, ErrChildExited or ErrRecoveryLimit.
	Reason error
	// Slot is the place of the child, from 0.
	Slot int
	// PID is its process id, 0 if no process could be started.
	PID int
	// Status says how it ended, such as "exit status 3" or "signal: killed".
	Status string
	// Cause is what prevented the start, when that is an error; else nil.
	Cause error
}

// Error returns one line with all the facts.
func (e *ChildError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("prefork: %v: slot %d: %s", e.Reason, e.Slot, e.Status)
	}
	return fmt.Sprintf("prefork: %v: slot %d pid %d: %s", e.Reason, e.Slot, e.PID, e.Status)
}

// Unwrap makes errors.Is find Reason and Cause.
func (e *ChildError) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Reason}
	}
	return []error{e.Reason, e.Cause}
}

// invalid reports a field that cannot be used.
func invalid(field string, value any, why string) error {
	return fmt.Errorf("prefork: %w: %s = %v: %s", ErrInvalidConfig, field, value, why)
}

// oneLine is err as a log line has it.
func oneLine(err error) string {
	return strings.ReplaceAll(strings.TrimPrefix(err.Error(), "prefork: "), "\n", "; ")
}
