//go:build unix

package prefork_test

import (
	"strconv"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestServesFromChildren(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 3})
	pids := s.readyPIDs(3)
	seen := map[string]bool{}
	eventually(t, func() bool {
		seen[s.get("/")] = true
		return len(seen) == 3
	}, "not all children answer: %v of %v", seen, pids)
	for _, pid := range pids {
		assert.True(t, seen[strconv.Itoa(pid)])
	}
	assert.Equal(t, "1", s.get("/gomaxprocs"))
	assert.Equal(t, "true true", s.get("/ischild"))
	s.stop()
	require.Len(t, s.matches(`returned <nil>`), 4, "Listen returns nil in the master and in every child")
}

func TestReplacesChild(t *testing.T) {
	t.Parallel()
	s := start(t, "app", options{"enable_prefork": true, "Children": 2})
	old := s.readyPIDs(2)[0]
	kill(t, old, syscall.SIGKILL)
	m := s.await(`^EVENT \d+ recover (\d+) (\d+)`)
	assert.Equal(t, strconv.Itoa(old), m[1])
	s.stop()
}
