package prefork

// Who accepts the connections of a slot that has no child which could: a slot
// is covered while its child is dead, starts, or has fallen silent. And how a
// child that is silent is told from a healthy one. All of it is the supervise
// goroutine's; what a child does when it covers is in accept.go.

import (
	"os"
	"slices"
	"time"

	"github.com/fiber-prefork/prefork/internal/control"
)

const (
	// maxCovers is how many children accept for a slot: enough that one of
	// them may be busy or stuck, and few, because each is woken for each
	// connection.
	maxCovers = 4
	// secondLook is how long after it was seen to be late a child is looked
	// at again: its reports may lie in a channel that nobody has read, because
	// it was the master that was stopped.
	secondLook = 50 * time.Millisecond
	// abortGrace is how long a hung child has to print its goroutines.
	abortGrace = 2 * time.Second
)

// notePause notes that the master was stopped, or the machine, if it is awake
// much later than it wanted to be. The time does not count: neither as silence
// nor as time that a child takes to start or to drain.
func (m *master) notePause(wanted time.Time) {
	now := time.Now()
	pause := now.Sub(wanted)
	if pause < m.cfg.ReportInterval {
		return
	}
	m.awake = now
	for _, s := range m.slots {
		for _, p := range s.processes() {
			if !p.deadline.IsZero() {
				p.deadline = p.deadline.Add(pause)
			}
		}
	}
}

// reports says whether p is to make reports.
func (p *process) reports() bool { return !p.readyAt.IsZero() && !p.asked && p.interval > 0 }

// quietLooks is how many intervals after a look at a quiet child the next is.
const quietLooks = 4

// lookAt says when p is looked at next.
func (m *master) lookAt(p *process) time.Time {
	switch {
	case !p.reports():
		return time.Time{}
	case !p.abortAt.IsZero():
		return p.abortAt.Add(abortGrace)
	case !p.suspect.IsZero():
		return p.suspect
	case p.silent || !p.waiting.IsZero():
		return p.looked.Add(p.interval)
	case p.quiet:
		return p.looked.Add(quietLooks * p.interval)
	default:
		return m.heardOf(p).Add(lateReports * p.interval)
	}
}

// heardOf says when p last said that it lives. The time in which the master
// was stopped does not count.
func (m *master) heardOf(p *process) time.Time {
	if p.heard.Before(m.awake) {
		return m.awake
	}
	return p.heard
}

// look looks whether p still reports.
func (m *master) look(p *process, now time.Time) {
	// Quiet ones are looked at together: each time of its own would wake the
	// master.
	early := time.Duration(0)
	if p.quiet && p.suspect.IsZero() {
		early = p.interval
	}
	if !p.reports() || now.Add(early).Before(m.lookAt(p)) {
		return
	}
	r := p.page.Read()
	if r.Beat != p.beat {
		// The clock may have been set: it is only believed within the time
		// since the last look.
		age := min(max(0, now.Sub(r.At)), now.Sub(p.looked))
		p.beat, p.heard, p.quiet, p.waiting = r.Beat, now.Add(-age), r.Quiet, time.Time{}
	}
	p.looked = now
	since, limit := m.heardOf(p), lateReports*p.interval
	if p.quiet {
		// It is asked for nothing as long as nobody wants anything of it.
		since, limit = m.wanted(p, since, now)
	}
	s, late := p.slot, now.Sub(since)
	switch {
	case !p.abortAt.IsZero():
		if now.Sub(p.abortAt) >= abortGrace {
			p.abortAt = now
			p.signal(os.Kill)
		}
	case late < limit:
		p.suspect = time.Time{}
		if p.silent {
			p.silent, s.State = false, ChildReady
			m.log.infof("slot %d pid %d: reports again", s.Slot, p.pid)
		}
	case !p.silent && p.suspect.IsZero():
		p.suspect = now.Add(secondLook)
		_ = p.control.Send(control.Message{Kind: control.Poke}) // a quiet one says that it lives
	case !p.silent:
		p.silent, s.State, p.suspect = true, ChildSilent, time.Time{}
		m.log.warnf("slot %d pid %d: has not reported for %v; last: %d connections, %d requests answered",
			s.Slot, p.pid, late.Round(time.Millisecond), r.Conns, r.Requests)
	case m.cfg.HangTimeout >= 0 && late >= m.cfg.HangTimeout:
		p.abortAt = now
		m.log.errorf("slot %d pid %d: hangs: has not reported for %v (HangTimeout); last: %d connections, %d requests answered: ended",
			s.Slot, p.pid, late.Round(time.Millisecond), r.Conns, r.Requests)
		child := s.Child
		m.post(func() { m.app.hooks.hung(child) })
		p.signal(abort)
	}
}

// wanted says since when a quiet child should have reported, and how long
// that may take: one for which connections wait should at once.
func (m *master) wanted(p *process, heard, now time.Time) (since time.Time, limit time.Duration) {
	queued := 0
	if m.cfg.ListenerMode == ListenerModeReuseport {
		queued, _ = p.slot.socket.Queued() // 0 if the system does not know
	}
	switch {
	case queued == 0 && !p.silent:
		p.waiting = time.Time{}
	case queued > 0 && p.waiting.IsZero():
		p.waiting = now
	}
	switch {
	case !p.waiting.IsZero():
		return p.waiting, 0
	case m.cfg.HangTimeout >= 0:
		return heard, m.cfg.HangTimeout * 3 / 4 // it is poked then
	default:
		return now, 1
	}
}

// arrange sees to it that every connection finds a child that accepts it: it
// lets the kernel give new ones to slots that have such a child only, where it
// can be told to, and has the queues of the others covered.
func (m *master) arrange() {
	if m.starting || m.draining || m.cfg.ListenerMode != ListenerModeReuseport {
		return
	}
	m.steer(time.Now())
	// Who could cover, by slot.
	var able []*process
	for _, s := range m.active() {
		if s.serving() {
			able = append(able, s.process)
		}
	}
	for _, s := range m.slots {
		var by []*process
		if !s.serving() && !s.closing {
			by = coverers(able, s.Slot)
		}
		m.coverBy(s, able, by)
	}
}

// coverers chooses from able those that cover a slot: the ones that follow it.
func coverers(able []*process, slot int) []*process {
	after := slices.IndexFunc(able, func(p *process) bool { return p.slot.Slot > slot })
	if after < 0 {
		after = 0
	}
	chosen := slices.Concat(able[after:], able[:after])
	return chosen[:min(maxCovers, len(chosen))]
}

// coverBy makes those in by cover s, and nobody else of able.
func (m *master) coverBy(s *slot, able, by []*process) {
	began, ended := 0, 0
	for _, p := range able {
		covers, is := slices.Contains(by, p), slices.Contains(p.covers, s)
		switch {
		case covers && !is:
			if p.control.SendFD(control.Message{Kind: control.Cover, Slot: uint32(s.Slot)}, s.socket.FD()) == nil {
				p.covers = append(p.covers, s)
				began++
			}
		case is && !covers:
			if p.uncover(s) {
				ended++
			}
		}
	}
	switch {
	case began > 0 && began == len(by):
		m.log.infof("slot %d: covered by %d children", s.Slot, began)
	case ended > 0 && len(by) == 0:
		m.log.infof("slot %d: not covered any more", s.Slot)
	}
}

// uncover asks p to cover s no longer, and says whether it was told.
func (p *process) uncover(s *slot) bool {
	if p.control.Send(control.Message{Kind: control.Uncover, Slot: uint32(s.Slot)}) != nil {
		return false // it is asked again
	}
	p.covers = slices.DeleteFunc(p.covers, func(other *slot) bool { return other == s })
	return true
}
