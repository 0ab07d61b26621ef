//go:build unix && !linux

package prefork

// Stand-ins for what only Linux has.

import (
	"errors"
	"os"
	"syscall"
	"time"
)

// canBeQuiet is false: nothing tells that connections wait for a child.
const canBeQuiet = false

// canSteer is false: the kernel cannot be told where new connections go.
const canSteer = false

// peerPID does not know here.
func peerPID(int) int { return 0 }

// rename is not needed: children are started by their own name here.
func rename() {}

// reapStrangers does nothing: only a container's PID 1 has strangers, and
// containers are Linux.
func reapStrangers() (stop func()) { return func() {} }

// lastUsed is not known here.
func lastUsed(syscall.RawConn) time.Duration { return 0 }

// residentMemory is not known here: ListenConfig refuses ChildMaxRSS.
func residentMemory(int) int64 { return 0 }

// openForExec is not needed: programs are started by their names here.
func openForExec(name string) (*os.File, error) { return os.Open(name) }

// sealedFile knows no files in memory here.
func sealedFile([]byte) (*os.File, error) { return nil, errors.ErrUnsupported }
