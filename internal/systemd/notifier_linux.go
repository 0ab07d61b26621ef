package systemd

// Telling the service manager what the service does: what goes into the
// messages, and that nobody waits for a service manager that hangs. How a
// message gets there is go-systemd's.

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

const (
	// patience is how long a message is waited for. The service manager takes
	// it at once, unless it hangs: then the server must go on.
	patience = time.Second

	// maxWaiting is how many messages wait for a service manager that hangs.
	maxWaiting = 64

	// maxStatus is how long a status may be, in bytes: systemd throws away
	// messages above 4096.
	maxStatus = 1024
)

// Notifier tells the service manager what this service does. All methods do
// nothing on a nil Notifier, and may be called by any goroutine.
//
// A message that the service manager does not take within a second is an error
// that wraps [os.ErrDeadlineExceeded], and so are those after it, at once. They
// are not lost: when the service manager takes messages again they are
// delivered in order, at most 64 of them.
type Notifier struct {
	mu      sync.Mutex
	waiting []message // oldest first, with the one that is on its way
	hangs   bool      // the service manager, for all that is known
}

type message struct {
	text   string
	result chan error // has room for it: nobody may be waiting any more
}

// New returns nil where no service manager wants to be told.
func New() *Notifier {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return nil
	}
	return new(Notifier)
}

// Ready says that the service has started, or that a reload is over. Here and
// below status is shown by systemctl status; "" leaves the last one.
func (n *Notifier) Ready(status string) error {
	return n.send(daemon.SdNotifyReady + statusLine(status))
}

// Reloading says that a reload has begun: Ready must follow.
func (n *Notifier) Reloading(status string) error {
	if n == nil {
		return nil
	}
	// With the time in the same message, as Type=notify-reload wants it.
	now := strings.TrimSuffix(daemon.SdNotifyMonotonicUsec(), "\n")
	return n.send(daemon.SdNotifyReloading + "\n" + now + statusLine(status))
}

// Stopping says that the service is about to end.
func (n *Notifier) Stopping(status string) error {
	return n.send(daemon.SdNotifyStopping + statusLine(status))
}

// Status tells the status and nothing else; "" clears it.
func (n *Notifier) Status(status string) error {
	return n.send("STATUS=" + oneLine(status))
}

// Watchdog says that the service is alive.
func (n *Notifier) Watchdog() error {
	return n.send(daemon.SdNotifyWatchdog)
}

// WatchdogInterval returns how often Watchdog should be called: in half the
// time that the service manager waits. It is 0 when it does not wait for this
// process.
func (n *Notifier) WatchdogInterval() time.Duration {
	if n == nil {
		return 0
	}
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil || limit < 0 {
		return 0 // not a time: nothing that could be kept
	}
	return limit / 2
}

func statusLine(status string) string {
	if status == "" {
		return ""
	}
	return "\nSTATUS=" + oneLine(status)
}

// oneLine makes s what a status may be: a second line would be an assignment
// of its own, and one that is not UTF-8 is refused.
func oneLine(s string) string {
	s = s[:min(len(s), maxStatus)]
	s = strings.ToValidUTF8(s, "")
	return strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, s)
}

// send puts text behind the messages that wait, and waits for it a moment.
func (n *Notifier) send(text string) error {
	if n == nil {
		return nil
	}
	subject, _, _ := strings.Cut(text, "\n")
	m := message{text: text, result: make(chan error, 1)}
	n.mu.Lock()
	if len(n.waiting) == maxWaiting {
		n.mu.Unlock()
		return fmt.Errorf("systemd: notify %s: %w: dropped, %d messages wait", subject, os.ErrDeadlineExceeded, maxWaiting)
	}
	n.waiting = append(n.waiting, m)
	if len(n.waiting) == 1 {
		go n.deliver(m)
	}
	limit := patience
	if n.hangs {
		limit = 0
	}
	n.mu.Unlock()
	select {
	case err := <-m.result:
		if err != nil {
			return fmt.Errorf("systemd: notify %s: %w", subject, err)
		}
		return nil
	case <-time.After(limit):
	}
	n.mu.Lock()
	n.hangs = len(n.waiting) > 0
	n.mu.Unlock()
	return fmt.Errorf("systemd: notify %s: %w: delivered when the service manager takes messages again", subject, os.ErrDeadlineExceeded)
}

// deliver delivers m, the first of those that wait, and all after it.
func (n *Notifier) deliver(m message) {
	for last := false; !last; {
		_, err := daemon.SdNotify(false, m.text)
		done := m.result
		n.mu.Lock()
		n.hangs = false
		n.waiting = n.waiting[1:]
		if last = len(n.waiting) == 0; !last {
			m = n.waiting[0]
		}
		n.mu.Unlock()
		done <- err
	}
}
