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

// received takes in a message of p, on the goroutine that receives, and says
// whether it is an event. Reports are not: they come often.
func (p *process) received(m *control.Message) bool {
	if m.Kind != control.Report {
		return true
	}
	p.conns.Store(m.Conns)
	p.requests.Store(m.Requests)
	p.reported.Store(int64(time.Since(p.startedAt)))
	return p.wanted.Swap(false)
}

// lastReport is when p last said that it lives. What was not heard while the
// master was stopped does not count as silence.
func (m *master) lastReport(p *process) time.Time {
	last := p.startedAt.Add(time.Duration(p.reported.Load()))
	if last.Before(m.awake) {
		return m.awake
	}
	return last
}

// notePause notes that the master was stopped, or the machine, if it is awake
// much later than it wanted to be.
func (m *master) notePause(wanted time.Time) {
	if now := time.Now(); now.Sub(wanted) >= m.cfg.ReportInterval {
		m.awake = now
	}
}

// listens says whether p is to report.
func (p *process) listens() bool { return !p.readyAt.IsZero() && !p.asked && p.interval > 0 }

// listenAt says when p is looked at next.
func (m *master) listenAt(p *process) time.Time {
	last := m.lastReport(p)
	switch {
	case !p.listens():
		return time.Time{}
	case !p.abortAt.IsZero():
		return p.abortAt.Add(abortGrace)
	case p.silent && m.cfg.HangTimeout < 0:
		return time.Time{}
	case p.silent:
		return last.Add(m.cfg.HangTimeout)
	case !p.suspect.IsZero():
		return p.suspect
	default:
		return last.Add(lateReports * p.interval)
	}
}

// listenFor looks whether p still reports.
func (m *master) listenFor(p *process, now time.Time) {
	if !p.listens() {
		return
	}
	s, quiet := p.slot, now.Sub(m.lastReport(p))
	switch {
	case !p.abortAt.IsZero():
		if now.Sub(p.abortAt) >= abortGrace {
			p.abortAt = now
			p.signal(os.Kill)
		}
	case quiet < lateReports*p.interval:
		p.suspect = time.Time{}
		if p.silent {
			p.silent, s.State = false, ChildReady
			m.log.infof("slot %d pid %d: reports again", s.Slot, p.pid)
		}
	case p.suspect.IsZero():
		p.suspect = now.Add(secondLook)
	case now.Before(p.suspect):
	case !p.silent:
		p.silent, s.State = true, ChildSilent
		p.wanted.Store(true)
		m.log.warnf("slot %d pid %d: has not reported for %v; last: %d connections, %d requests answered",
			s.Slot, p.pid, quiet.Round(time.Millisecond), p.conns.Load(), p.requests.Load())
	case m.cfg.HangTimeout >= 0 && quiet >= m.cfg.HangTimeout:
		p.abortAt = now
		m.log.errorf("slot %d pid %d: hangs: has not reported for %v (HangTimeout); last: %d connections, %d requests answered: ended",
			s.Slot, p.pid, quiet.Round(time.Millisecond), p.conns.Load(), p.requests.Load())
		child := s.Child
		m.post(func() { m.app.hooks.hung(child) })
		p.signal(abort)
	}
}

// arrange sees to it that every connection finds a child that accepts it: it
// lets the kernel give new ones to slots that have such a child only, where it
// can be told to, and has the queues of the others covered.
func (m *master) arrange() {
	if m.starting || m.draining || m.cfg.ListenerMode != ListenerModeReuseport {
		return
	}
	m.spreadConnections()
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
			if p.control.Send(control.Message{Kind: control.Uncover, Slot: uint32(s.Slot)}) == nil {
				p.covers = slices.DeleteFunc(p.covers, func(other *slot) bool { return other == s })
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

// spreadConnections tells the kernel which slots get new connections.
func (m *master) spreadConnections() {
	if m.noSpread || len(m.slots) == 1 {
		return
	}
	var want []int
	for _, s := range m.active() {
		if s.serving() {
			want = append(want, s.Slot)
		}
	}
	switch len(want) {
	case len(m.slots):
		want = nil // all: by hash
	case 0: // nobody: they wait in the queues of those that will be filled
		for i := range m.size {
			want = append(want, i)
		}
	}
	if slices.Equal(want, m.spread) {
		return
	}
	if err := m.slots[0].socket.Spread(want...); err != nil {
		m.noSpread = true
		m.log.warnf("new connections cannot be kept from slots without a child, and those that come while a removed slot is closed can be lost: %v", err)
		return
	}
	m.spread = want
}
