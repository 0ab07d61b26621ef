package prefork

// What systemd is told of a server, by the master alone. Without NOTIFY_SOCKET
// nothing is.

import (
	"fmt"
	"time"

	"github.com/fiber-prefork/prefork/internal/systemd"
)

// notifier sends in order and never makes the supervise goroutine wait.
type notifier struct {
	to         *systemd.Notifier // nil when nobody wants to know
	log        logger
	queue      *calls
	watchdogAt time.Time // zero when there is no watchdog
	interval   time.Duration
	last       string // count that was told
}

func newNotifier(log logger) notifier {
	n := notifier{to: systemd.New(), log: log, queue: newCalls()}
	if n.interval = n.to.WatchdogInterval(); n.interval > 0 {
		n.watchdogAt = time.Now()
	}
	return n
}

func (n *notifier) send(f func() error) {
	if n.to == nil {
		return
	}
	n.queue.post(maxLines, func() {
		if err := f(); err != nil {
			n.log.warnf("cannot notify the service manager: %v", err)
		}
	})
}

func status(ready, all int) string { return fmt.Sprintf("%d of %d children ready", ready, all) }

// ready says that the server has started, or that a reload has come to its end.
func (n *notifier) ready(ready, all int) {
	n.last = status(ready, all)
	text := n.last
	n.send(func() error { return n.to.Ready(text) })
}

// reloading says that a reload begins.
func (n *notifier) reloading(what string) {
	n.send(func() error { return n.to.Reloading(what) })
}

// stopping says that a shutdown begins.
func (n *notifier) stopping() {
	n.send(func() error { return n.to.Stopping("draining") })
}

// count tells how many children are ready, if that has changed.
func (n *notifier) count(ready, all int) {
	text := status(ready, all)
	if n.to == nil || text == n.last {
		return
	}
	n.last = text
	n.send(func() error { return n.to.Status(text) })
}

// watchdog says that the supervise goroutine lives, when that is due.
func (n *notifier) watchdog(now time.Time) {
	if n.watchdogAt.IsZero() || now.Before(n.watchdogAt) {
		return
	}
	n.watchdogAt = now.Add(n.interval)
	n.send(func() error { return n.to.Watchdog() })
}
