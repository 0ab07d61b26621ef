//go:build !linux

package systemd

// The same names where there is no systemd.

import (
	"net"
	"time"
)

// Notifier is always nil here.
type Notifier struct{}

// New returns nil.
func New() *Notifier { return nil }

// Ready does nothing.
func (n *Notifier) Ready(string) error { return nil }

// Reloading does nothing.
func (n *Notifier) Reloading(string) error { return nil }

// Stopping does nothing.
func (n *Notifier) Stopping(string) error { return nil }

// Status does nothing.
func (n *Notifier) Status(string) error { return nil }

// Watchdog does nothing.
func (n *Notifier) Watchdog() error { return nil }

// WatchdogInterval returns 0.
func (n *Notifier) WatchdogInterval() time.Duration { return 0 }

// Sockets is always nil here.
type Sockets struct{}

// Inherited returns nil.
func Inherited() *Sockets { return nil }

// Listener returns nil and no error: no socket was passed.
func (s *Sockets) Listener(string, string) (net.Listener, error) { return nil, nil }

// Unused returns nil.
func (s *Sockets) Unused() []string { return nil }

// Private does nothing.
func (s *Sockets) Private(bool) {}
