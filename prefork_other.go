//go:build unix && !linux

package prefork

// Stand-ins for what only Linux has.

// peerPID does not know here.
func peerPID(int) int { return 0 }

// rename is not needed: children are started by their own name here.
func rename() {}

// reapStrangers does nothing: only a container's PID 1 has strangers, and
// containers are Linux.
func reapStrangers() (stop func()) { return func() {} }
