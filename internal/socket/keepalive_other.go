//go:build unix && !linux

package socket

import "net"

func (*Socket) keepAlive() {}

func leaveKeepAlive(net.Listener) {}
