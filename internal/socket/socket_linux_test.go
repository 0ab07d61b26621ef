package socket

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPinKeepsConnectionsFromLaterSockets(t *testing.T) {
	s, err := listen("tcp4", "127.0.0.1:0", setReuseport)
	require.NoError(t, err)
	require.NoError(t, s.Pin())
	later, err := s.Sibling()
	require.NoError(t, err)
	addr := s.Addr().String()
	serve(t, s, "first")
	serve(t, later, "later")
	for range 200 {
		require.Equal(t, "first", ask(t, "tcp", addr))
	}
}
