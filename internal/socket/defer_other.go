//go:build !linux

package socket

// Defer does nothing here.
func (*Socket) Defer(bool) {}

// AcceptAtOnce does nothing here.
func AcceptAtOnce(any) {}
