package prefork

// Which slots the kernel gives new connections to, and how many of them, on
// Linux. All of it is the supervise goroutine's; the arithmetic is in
// internal/steer.

import (
	"slices"
	"time"

	"github.com/fiber-prefork/prefork/internal/steer"
)

// When the master looks how many connections the children have: when one has
// come, if they come one by one, and not before it can tell whether it was one
// or the first of many; by itself, whenever half as many have come as there are
// children, if more come, and while they end; now and then, if as many go as
// come and either they are many or they do not last until the next look; soon,
// if a child gets far more than expected. Never, if none has come for a while.
const (
	steerSeldom   = 100 // connections a second: fewer come one by one
	steerFirst    = time.Millisecond
	steerInterval = 10 * time.Millisecond
	steerMany     = 8 // connections to a child from one look to the next
	steerSlowly   = 100 * time.Millisecond
	steerIdle     = time.Second
)

// steering is what the kernel was told, and when that is looked over.
type steering struct {
	off     bool       // it cannot be told
	indexes []int      // of the slots that get new connections; nil = it goes by hash
	shares  []int      // of those slots
	to      []*process // that fill them
	looked  time.Time  // when their connections were counted last
	lookAt  time.Time  // when they are again; zero: when one came
	seldom  bool       // they come one by one, and the children say when one does
	first   time.Time  // when a child said so; zero: not since then
	busy    time.Time  // when it was seen that one had come
	open    int        // how many there were
	turned  int        // how many came for one that went, less those that came for none
}

// steer gives new connections to the slots that have a child which accepts
// them, and most to the child that has the fewest.
func (m *master) steer(now time.Time) {
	st := &m.steering
	if st.off || len(m.slots) == 1 {
		st.lookAt = time.Time{}
		return
	}
	var slots []*slot
	var to []*process
	for _, s := range m.active() {
		if s.serving() {
			slots, to = append(slots, s), append(to, s.process)
		}
	}
	due := !st.lookAt.IsZero() && !now.Before(st.lookAt)
	if slices.Equal(to, st.to) && !due {
		return
	}
	st.to, st.lookAt = to, time.Time{}
	switch {
	case len(to) == 0: // they wait in the queues of those that will be filled
		m.spread(m.active(), steer.Equal(m.size))
	case canSteer && m.cfg.Steering == SteeringAuto:
		m.spread(slots, m.shares(now))
	case st.indexes != nil || len(to) < len(m.slots):
		// Once there is a program it stays: without it, what is being closed
		// would get some again.
		m.spread(slots, steer.Equal(len(to)))
	}
}

// shares counts the connections of the children that get new ones, and says
// how those are to be shared from now on, and when a child is to say how many
// it has got.
func (m *master) shares(now time.Time) []int {
	st := &m.steering
	open, arrived := make([]int, len(st.to)), 0
	for i, p := range st.to {
		r := p.page.Read()
		queued, _ := p.slot.socket.Queued()
		open[i] = int(min(r.Conns, maxConns)) + queued
		total := r.Arrived + uint64(queued)
		arrived += int(min(max(0, int64(total-p.arrived)), maxConns))
		p.arrived = total
	}
	expected := st.pace(now, open, arrived)
	shares := steer.Shares(open, expected)
	for i, p := range st.to {
		unlike := 1
		if !st.seldom {
			unlike = steerMany + int(2*expected*float64(shares[i])/steer.Whole)
		}
		if p.page.Want(p.arrived + uint64(unlike)) {
			m.lookSoon(now)
		}
	}
	return shares
}

// pace says when to look again, and how many connections are expected to come
// before that, now that so many have arrived and so many are open.
func (st *steering) pace(now time.Time, open []int, arrived int) (expected float64) {
	all := 0
	for _, n := range open {
		all += n
	}
	rate := float64(arrived) / max(now.Sub(st.looked), steerInterval).Seconds()
	if !st.first.IsZero() { // the first says nothing about how fast they come
		rate = max(rate, float64(arrived-1)/max(now.Sub(st.first), steerFirst).Seconds())
	}
	if arrived > 0 {
		st.busy = now
	} else if now.Sub(st.busy) >= steerSlowly {
		st.turned = 0
	}
	fewer := all < st.open
	turnover, wait := st.turnover(all, arrived, rate, steerMany*len(open)), steerSlowly
	if !turnover && rate > 0 {
		wait = min(max(steerInterval, time.Duration(float64(len(open))/2/rate*float64(time.Second))), steerSlowly)
	}
	st.looked, st.first, st.open, st.seldom = now, time.Time{}, all, rate < steerSeldom && !turnover
	if !st.seldom {
		st.lookAt = now.Add(wait)
		return rate * wait.Seconds()
	}
	// The next one may be the first of many, that are seen too late: the more
	// there are, the less it matters where one goes.
	expected = max(1, float64(all)/4)
	switch {
	case fewer: // more may be ending
		st.lookAt = now.Add(steerInterval)
	case now.Sub(st.busy) < steerIdle: // a child that is stopped says nothing
		st.lookAt = now.Add(steerSlowly)
	default:
		st.lookAt = time.Time{}
		expected = max(expected, float64(len(open)))
	}
	return expected
}

// turnover says whether as many connections go as come, and it hardly matters
// where one goes: because they are many, or because those that come are gone
// before the next look.
func (st *steering) turnover(all, arrived int, rate float64, many int) bool {
	grown := max(all-st.open, -arrived)
	enough := max(all, steerMany) // to believe it
	st.turned = min(max(0, st.turned+arrived-2*grown), 2*enough)
	return st.turned >= enough && (all >= many || float64(all) <= rate*steerInterval.Seconds())
}

// maxConns is more than a child can have; it may say anything.
const maxConns = 1 << 24

// lookSoon looks because a child says that a connection came, or more than were
// expected.
func (m *master) lookSoon(now time.Time) {
	st := &m.steering
	if st.seldom && st.first.IsZero() {
		st.first = now
	}
	if at := now.Add(steerFirst); st.lookAt.IsZero() || at.Before(st.lookAt) {
		st.lookAt = at
	}
}

// spread tells the kernel the shares of slots in new connections.
func (m *master) spread(slots []*slot, shares []int) {
	st := &m.steering
	indexes := make([]int, len(slots))
	for i, s := range slots {
		indexes[i] = s.Slot
	}
	if slices.Equal(indexes, st.indexes) && steer.Near(shares, st.shares) {
		return
	}
	program, err := steer.Program(indexes, shares)
	if err == nil {
		err = m.slots[0].socket.Attach(program)
	}
	if err != nil {
		st.off, st.lookAt = true, time.Time{}
		m.log.warnf("the kernel spreads new connections by a hash, over slots without a child too, and those that come while a removed slot is closed can be lost: %v", err)
		return
	}
	st.indexes, st.shares = indexes, shares
}
