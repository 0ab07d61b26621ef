package prefork

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/fiber-prefork/prefork/internal/report"
	"github.com/fiber-prefork/prefork/internal/socket"
)

// steered is a master of n children that are not there but for their pages.
func steered(t *testing.T, n int, alone bool) *master {
	t.Helper()
	m := &master{log: logger{queue: newCalls()}, size: n}
	for i := range n {
		page, err := report.New()
		require.NoError(t, err)
		t.Cleanup(page.Close)
		var at *socket.Socket
		if i == 0 || alone {
			at, err = socket.Listen("tcp4", "127.0.0.1:0", 0)
			require.NoError(t, err)
			require.NoError(t, at.EnableReuseport())
		} else {
			at, err = m.slots[0].socket.Sibling()
		}
		require.NoError(t, err)
		t.Cleanup(func() { _ = at.Close() })
		s := &slot{Child: Child{Slot: i}, socket: at}
		s.process = &process{slot: s, page: page, readyAt: time.Now()}
		m.slots = append(m.slots, s)
	}
	return m
}

func (m *master) page(slot int) *report.Page { return m.slots[slot].process.page }

// TestSteeringPace: when the master looks.
func TestSteeringPace(t *testing.T) {
	m := steered(t, 2, false)
	now := time.Now()
	look := func(after time.Duration) time.Duration {
		now = now.Add(after)
		m.steer(now)
		if m.steering.lookAt.IsZero() {
			return 0
		}
		return m.steering.lookAt.Sub(now)
	}
	come := func(n, open int) (told int) {
		for range n {
			if m.page(0).Arrive() {
				told++
				m.lookSoon(now)
			}
		}
		m.page(0).SetConns(open)
		return told
	}
	assert.Zero(t, look(0), "nothing comes: it waits to be told")
	assert.Zero(t, look(time.Hour))
	assert.Equal(t, 1, come(2, 2), "it is told once")
	assert.Equal(t, steerFirst, m.steering.lookAt.Sub(now), "more may be coming")
	assert.Equal(t, steerInterval, look(steerFirst), "they do: it looks by itself")
	assert.Less(t, m.steering.shares[0], 1<<15)
	assert.Greater(t, m.steering.shares[0], 1<<14, "half of what comes before the next look, but for two")
	assert.Equal(t, steerSlowly, look(steerInterval), "no more do")

	assert.Zero(t, look(time.Second))
	now = now.Add(2 * steerInterval)
	assert.Equal(t, 1, come(1, 3))
	assert.Equal(t, steerFirst, m.steering.lookAt.Sub(now))
	assert.Equal(t, steerSlowly, look(steerFirst), "one by one")
	assert.Equal(t, []int{1 << 10, 1<<16 - 1<<10}, m.steering.shares, "the other one gets the next")
	assert.Equal(t, 1, come(2, 5))
	assert.Equal(t, steerInterval, look(steerFirst))
	assert.Zero(t, come(2, 7))
	assert.Equal(t, 1, come(40, 47), "more than it would expect")
	assert.Equal(t, steerFirst, m.steering.lookAt.Sub(now))
	assert.Equal(t, steerInterval, look(steerInterval))
	assert.Equal(t, 1, come(400, 8))
	assert.Equal(t, steerSlowly, look(steerInterval), "they do not last until the next look")
	assert.InDelta(t, 1<<15, m.steering.shares[0], 1<<10, "that one has a few more does not matter then")
	assert.Equal(t, steerSlowly, look(steerSlowly), "no more come")
	come(0, 4)
	assert.Equal(t, steerInterval, look(steerSlowly), "they are ending")
	come(0, 2)
	assert.Equal(t, steerInterval, look(steerInterval))
	assert.Equal(t, steerSlowly, look(steerInterval), "the last two do not")
	for range 7 {
		assert.Equal(t, []int{1 << 10, 1<<16 - 1<<10}, m.steering.shares)
		assert.Equal(t, steerSlowly, look(steerSlowly))
	}
	assert.Zero(t, look(steerSlowly))
	assert.Equal(t, 1<<10, m.steering.shares[0])
	come(0, 1)
	assert.Zero(t, look(time.Hour), "it does not see that")
	m.steering.lookAt = now
	assert.Equal(t, steerInterval, look(0))
	assert.Equal(t, 1<<10, m.steering.shares[0])
	assert.Zero(t, look(steerInterval))
	assert.InDelta(t, 1<<14, m.steering.shares[0], 1<<9, "nor would it see how many come")

	m.page(1).SetConns(1 << 31) // whatever a child says
	m.page(1).SetConns(0)
	m.slots[1].process.silent = true
	assert.Zero(t, look(0))
	assert.Equal(t, []int{0}, m.steering.indexes)
	m.slots[0].process = nil
	look(0)
	assert.Equal(t, []int{0, 1}, m.steering.indexes, "they wait for whoever comes first")

	m.page(1).Close() // a child says that one came, and ends
	m.lookSoon(now)
}

// TestSteeringTurnover: how often the master is told of connections, and looks
// by itself, when as many go as come.
func TestSteeringTurnover(t *testing.T) {
	for _, c := range []struct {
		name  string
		gap   time.Duration // from one to the next
		open  int           // of each child, whenever the master looks
		told  int           // while the last 50 come
		looks int           // by itself, meanwhile
	}{
		{"gone before the look", 11 * time.Millisecond, 0, 0, 5},
		{"gone, and slow", 50 * time.Millisecond, 0, 0, 25},
		{"gone, and slower than looks", 150 * time.Millisecond, 0, 50, 50},
		{"gone, and fast", 2 * time.Millisecond, 0, 0, 1},
		{"few", 25 * time.Millisecond, 1, 50, 0},
		{"few, and fast", 5 * time.Millisecond, 2, 0, 25},
		{"many", 25 * time.Millisecond, 8, 0, 12},
		{"many, and fast", time.Millisecond, 30, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := steered(t, 2, false)
			now := time.Now()
			m.steer(now)
			told, looks := 0, 0
			for i := range 400 {
				if i == 350 {
					told, looks = 0, 0
				}
				for at := m.steering.lookAt; !at.IsZero() && at.Before(now); at = m.steering.lookAt {
					m.steer(at)
					looks++
				}
				if m.page(i % 2).Arrive() {
					told++
					looks-- // the one that follows is not by itself
					m.lookSoon(now)
				}
				m.page(i % 2).SetConns(c.open)
				now = now.Add(c.gap)
			}
			assert.Equal(t, c.told, told)
			assert.InDelta(t, c.looks, looks, 2)
		})
	}
}

// TestSteeringOff: the kernel's hash, as long as all slots have a child.
func TestSteeringOff(t *testing.T) {
	m := steered(t, 3, false)
	m.cfg.Steering = SteeringOff
	m.steer(time.Now())
	assert.Nil(t, m.steering.indexes)
	child := m.slots[1].process
	m.slots[1].process = nil
	m.steer(time.Now())
	assert.Equal(t, []int{0, 2}, m.steering.indexes)
	m.slots[1].process = child
	m.steer(time.Now())
	assert.Equal(t, []int{0, 1, 2}, m.steering.indexes)
	assert.True(t, m.steering.lookAt.IsZero())
	assert.False(t, m.page(0).Arrive())
}

// TestSteeringRefused: where the kernel refuses there is one warning.
func TestSteeringRefused(t *testing.T) {
	m := steered(t, 2, true) // no group: the kernel has nothing to choose from
	var lines lines
	m.log.custom = &lines
	for range 3 {
		m.steer(time.Now())
	}
	m.log.queue.flush()
	assert.True(t, m.steering.off)
	assert.True(t, m.steering.lookAt.IsZero())
	require.Len(t, lines, 1)
	assert.Contains(t, lines[0], "hash")
}
