// Package systemd is the service manager's side of a server: telling it what
// the service does, and taking the sockets that it has passed. When to tell
// what, and what a socket is used for, is not decided here; binding one is
// internal/socket.
//
// It is systemd's, and so Linux only: elsewhere New and Inherited return nil,
// on which every method does nothing.
package systemd
