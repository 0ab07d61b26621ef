package prefork

// When and whether a child that died is replaced: the policy, which is pure,
// and the step of the supervise loop that it drives. Who is started and how
// is in prefork.go.

import (
	"fmt"
	"os"
	"slices"
	"time"
)

const (
	firstBackoff = 200 * time.Millisecond // before the second recovery in a row
	maxBackoff   = 30 * time.Second
	steady       = 10 * time.Second // the least uptime that wipes the backoff, but not the count
)

// recovery is the policy of one slot. It has no clock and does no I/O.
type recovery struct {
	limit    int            // recoveries before giving up; 0 = unlimited
	window   time.Duration  // an uptime that wipes the count; negative = never
	interval time.Duration  // least delay before any recovery
	jitter   func() float64 // in [0,1)

	count   int           // recoveries since the last wipe: what limit bounds
	backoff int           // failures since the last wipe: what the delay grows with
	last    time.Duration // the latest delay
}

// died says how long to wait before a child that was ready for uptime (0 if it
// never was) is replaced, and whether it is replaced at all.
func (r *recovery) died(uptime time.Duration) (delay time.Duration, ok bool) {
	if r.window >= 0 && uptime >= r.window {
		r.count, r.backoff = 0, 0
	}
	// Backoff is there to make failing cheap. One that stayed up for so long is.
	if uptime >= max(steady, 10*r.last) {
		r.backoff = 0
	}
	if r.limit > 0 && r.count >= r.limit {
		return 0, false
	}
	r.count++
	return r.wait(), true
}

// failed says how long to wait after a child could not even be started. That
// is the system's trouble and not the program's, and uses up no budget.
func (r *recovery) failed() time.Duration { return r.wait() }

// wait returns the delay that is due now and makes the next one longer: none
// at first, then 200 ms doubling up to 30 s, of which up to a half is left
// out at random so that slots that died together do not return together.
func (r *recovery) wait() time.Duration {
	n := r.backoff
	r.backoff++
	delay := time.Duration(0)
	if n > 0 {
		delay = maxBackoff
		if shift := n - 1; shift < 8 {
			delay = min(maxBackoff, firstBackoff<<shift)
		}
		delay -= time.Duration(r.jitter() * float64(delay) / 2)
	}
	r.last = max(delay, r.interval)
	return r.last
}

// groupGrace is how long a child that left by itself, or by a signal that asks
// to end, is not judged: the terminal or systemd may have signalled all of us,
// and the master may only be about to see it.
const groupGrace = 250 * time.Millisecond

// exited takes in that a child has ended.
func (m *master) exited(p *process, exit ChildExit) {
	now, s := time.Now(), p.slot
	p.page.Close()
	exit.Slot, exit.Generation, exit.Asked, exit.Uptime = s.Slot, p.generation, p.asked, now.Sub(p.startedAt)
	switch p {
	case s.process:
		s.lose(&exit, now, asksToEnd(exit.Signal))
	case s.next:
		s.next = nil
		m.notReady(p, exit.Status)
	default:
		s.leaving = slices.DeleteFunc(s.leaving, func(other *process) bool { return other == p })
		m.log.infof("slot %d pid %d: %s", s.Slot, exit.PID, exit.line())
		if s.removed && s.PID == p.pid {
			s.PID, s.State = 0, ChildDown
		}
	}
	m.post(func() { m.app.hooks.exited(exit) })
	m.due(now)
}

// leaves takes in that the child of s drains by itself. It is not waited for:
// what comes into the slot's queue meanwhile is its replacement's.
func (m *master) leaves(s *slot, why string) {
	exit := &ChildExit{PID: s.PID, ExitCode: -1, Status: why, Uptime: time.Since(s.StartedAt)}
	s.leaving = append(s.leaving, s.process)
	now := time.Now()
	// It ends its drain, and a main that does not end, by itself: see leaveSoon.
	s.process.deadline = now.Add(2*m.cfg.ShutdownTimeout + 2*leaveGrace)
	s.process.failure = "it was to end by itself"
	s.lose(exit, now, true)
	m.due(now)
}

// lose empties s. The loss is judged by due: now, or after groupGrace if the
// child may have left for a reason that is the master's too.
func (s *slot) lose(exit *ChildExit, now time.Time, wait bool) {
	s.lost, s.exit, s.judgeAt = s.process, exit, now
	s.process, s.PID, s.State = nil, 0, ChildDown
	if wait {
		s.judgeAt = now.Add(groupGrace)
	}
}

// line says how a child ended, and after which time.
func (e *ChildExit) line() string {
	return fmt.Sprintf("%s after %v", e.Status, e.Uptime.Round(time.Millisecond))
}

// judge decides what follows from the end of the child of s.
func (m *master) judge(s *slot, now time.Time) {
	exit, lost := s.exit, s.lost
	s.exit, s.lost, s.judgeAt = nil, nil, time.Time{}
	wasReady := !lost.readyAt.IsZero()
	served := time.Duration(0)
	if wasReady {
		served = lost.startedAt.Add(exit.Uptime).Sub(lost.readyAt)
	}
	where := fmt.Sprintf("slot %d pid %d: %s", s.Slot, exit.PID, exit.line())
	failure := &ChildError{Slot: s.Slot, PID: exit.PID, Status: exit.Status}
	switch {
	case m.stopping.sent():
		m.log.infof("%s", where)
	case m.starting && !wasReady:
		failure.Reason = ErrChildStart
		m.abort(failure)
	case m.cfg.DisableChildRecovery:
		failure.Reason = ErrChildExited
		m.giveUp(failure)
	default:
		delay, ok := s.policy.died(served)
		if !ok {
			failure.Reason = ErrRecoveryLimit
			m.giveUp(failure)
			return
		}
		if s.lastPID == 0 {
			s.lastPID = exit.PID
		}
		budget := "no limit"
		if m.cfg.MaxChildRecoveries > 0 {
			budget = fmt.Sprintf("of %d", m.cfg.MaxChildRecoveries)
		}
		s.Recoveries++
		s.respawnAt = now.Add(delay)
		m.publish()
		m.log.warnf("%s; recovery %d (%s), next child in %v", where, s.policy.count, budget, delay.Round(time.Millisecond))
	}
}

// due does what has to be done by now: judging ends, recoveries, ending
// children that do not become ready or that hang.
func (m *master) due(now time.Time) {
	for _, s := range m.slots {
		if s.exit != nil && (m.stopping.sent() || !now.Before(s.judgeAt)) {
			m.judge(s, now)
		}
		if m.stopping.sent() {
			continue
		}
		if s.waits() && !now.Before(s.respawnAt) {
			m.spawn(s)
		}
		for _, p := range s.processes() {
			m.overdue(p, now)
		}
		if p := s.process; p != nil {
			m.look(p, now)
		}
	}
	m.rotateTickets(now)
	m.notify.watchdog(now)
}

// waits says whether s is to get a child at respawnAt. While a reload fills
// it, it is not.
func (s *slot) waits() bool { return !s.respawnAt.IsZero() && s.next == nil }

// overdue ends p if it has taken too long, to start or to drain.
func (m *master) overdue(p *process, now time.Time) {
	if p.deadline.IsZero() || now.Before(p.deadline) {
		return
	}
	p.deadline = time.Time{}
	if p.failure == "" {
		p.failure = fmt.Sprintf("not ready after %v (ChildStartTimeout)", m.cfg.ChildStartTimeout)
		if m.starting {
			m.abort(&ChildError{Reason: ErrChildStart, Slot: p.slot.Slot, PID: p.pid, Status: p.failure})
			return
		}
	}
	m.log.errorf("slot %d pid %d: %s: killed", p.slot.Slot, p.pid, p.failure)
	p.signal(os.Kill)
}

// nextDue says how long there is nothing to do.
func (m *master) nextDue(now time.Time) time.Duration {
	next := time.Hour
	at := func(t time.Time) {
		if !t.IsZero() {
			next = min(next, max(0, t.Sub(now)))
		}
	}
	at(m.notify.watchdogAt)
	if m.stopping.sent() {
		return next
	}
	at(m.steering.lookAt)
	if m.tickets != nil {
		at(m.tickets.rotateAt())
	}
	for _, s := range m.slots {
		at(s.judgeAt)
		if s.waits() {
			at(s.respawnAt)
		}
		for _, p := range s.processes() {
			at(p.deadline)
		}
		if p := s.process; p != nil {
			at(m.lookAt(p))
			if !m.starting {
				at(m.recycleAt(s))
			}
		}
	}
	if s := m.slots[len(m.slots)-1]; s.removed && !m.starting {
		at(s.closeAt)
	}
	return next
}
