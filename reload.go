package prefork

// What an operator changes while the server runs: a rolling reload, the
// number of slots, and the recycling of children that have done enough. All of
// it is steps on slots that the supervise loop takes (advance): a new child
// starts beside the old one, on the same listener, and when it is ready the
// old one drains. How an upgrade goes on after its reload is in upgrade.go.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"time"
)

const (
	// handshakeGrace is how long the listener of a removed slot stays open,
	// with no new connection given to it, for those whose handshake has begun
	// and those that the kernel defers.
	handshakeGrace = 1500 * time.Millisecond
	// uncoverGrace is how long those that covered it have to close their copies.
	uncoverGrace = 200 * time.Millisecond
	// queuePoll is how often its queue is looked at after that.
	queuePoll = 50 * time.Millisecond
	// recyclePause is how long after a recycling that failed the next try is.
	recyclePause = 30 * time.Second
	// rssPoll is how often a child's resident memory is looked at.
	rssPoll = time.Second
)

// Reload replaces every child, one slot after another (ReloadParallel), by a
// child of the executable as it now is on disk: the new one starts on the same
// listener, and when it is ready the old one drains. No connection is lost or
// refused meanwhile, and no answer is cut off but at ShutdownTimeout. SIGHUP
// does the same.
//
// It may be called in the master, by any goroutine at any time; from a hook on
// a goroutine of its own. It returns when all old children are gone. If a new
// child does not become ready, the reload ends there with an [ErrReload]: the
// slots that have a new child keep it, or with ReloadRollback get one of the
// old version back. A reload that is asked for while one runs comes after it,
// once, however often it is asked for. A shutdown ends a reload, with
// ErrReload too. When ctx ends, Reload returns its error and the reload goes on.
func (a *App) Reload(ctx context.Context) error {
	return a.ask(ctx, &ask{kind: askReload})
}

// Scale sets the number of slots, and so of children, to n, which is 1 to
// 1024. It returns when the listeners of new slots are open: their children
// become ready later, as Children and OnChildReady tell. A slot that is
// removed gets no new connection from then on, and its child drains; on Linux
// nothing is lost, elsewhere in ListenerModeReuseport a connection that
// arrives in the moment in which the listener is closed can be. SIGTTIN adds
// a slot, SIGTTOU removes one.
//
// It may be called in the master, by any goroutine at any time.
func (a *App) Scale(n int) error {
	if n < 1 || n > maxChildren {
		return invalid("Scale", n, fmt.Sprintf("want 1 to %d", maxChildren))
	}
	return a.ask(context.Background(), &ask{kind: askScale, n: n})
}

// ask is what somebody wants of the supervise goroutine.
type ask struct {
	kind   askKind
	n      int        // of askScale: how many slots; of askScaleBy: how many more
	answer chan error // gets the outcome; has room for it
}

type askKind int

const (
	askReload askKind = iota
	askUpgrade
	askScale
	askScaleBy
)

// ask has the supervise goroutine do something, and waits for the outcome.
func (a *App) ask(ctx context.Context, what *ask) error {
	m := a.master()
	if m == nil {
		return fmt.Errorf("prefork: %w", ErrNotRunning)
	}
	what.answer = make(chan error, 1)
	select {
	case m.events <- event{ask: what}:
	case <-m.drained.c:
		return fmt.Errorf("prefork: %w", ErrNotRunning)
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-what.answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-m.drained.c:
		select {
		case err := <-what.answer:
			return err
		default:
			return fmt.Errorf("prefork: %w", ErrNotRunning)
		}
	}
}

// asked takes in what somebody wants.
func (m *master) asked(what *ask) {
	answer := func(err error) {
		switch {
		case what.answer != nil:
			what.answer <- err
		case err != nil: // it was a signal that asked
			m.log.errorf("%s", oneLine(err))
		}
	}
	if m.stopping.sent() {
		if what.answer != nil {
			answer(fmt.Errorf("prefork: %w", ErrNotRunning))
		}
		return
	}
	switch what.kind {
	case askScale:
		answer(m.scale(what.n))
	case askScaleBy:
		answer(m.scale(m.size + what.n))
	case askUpgrade:
		if err := m.upgradable(); err != nil {
			answer(fmt.Errorf("prefork: %w: %w", ErrUpgrade, err))
			return
		}
		fallthrough
	case askReload:
		if m.queued == nil {
			m.queued = &reload{}
		}
		m.queued.upgrade = m.queued.upgrade || what.kind == askUpgrade
		if what.answer != nil { // else the log tells how it ends
			m.queued.answers = append(m.queued.answers, answer)
		}
	}
}

// reload is one that runs or waits.
type reload struct {
	upgrade bool // the master follows
	from    int  // the generation before
	target  int  // that all slots are to have
	reason  error
	back    bool // it failed, and goes back to where it came from
	began   time.Time
	answers []func(error)
}

// advance takes the steps that can be taken now.
func (m *master) advance(now time.Time) {
	if m.starting || m.stopping.sent() {
		return
	}
	m.closeRemoved(now)
	if m.reload == nil && m.queued != nil {
		m.beginReload(now)
	}
	if m.reload != nil {
		m.stepReload(now)
		return
	}
	m.recycle(now)
}

func (m *master) beginReload(now time.Time) {
	m.reload, m.queued = m.queued, nil
	r := m.reload
	m.newest++
	r.from, r.target, r.began = m.generation, m.newest, now
	what := "reloading"
	if r.upgrade {
		what = "upgrading"
	}
	m.log.infof("%s: generation %d, from %s", what, r.target, here.program)
	m.notify.reloading(what)
	img, err := openImage()
	if err != nil {
		m.failReload(err)
		return
	}
	m.images[r.target] = img
}

// stepReload starts as many successors as may start at a time, and sees
// whether all is done.
func (m *master) stepReload(now time.Time) {
	r := m.reload
	done, starting := m.settled(), 0
	for _, s := range m.slots {
		if s.next != nil {
			starting++
		}
	}
	for _, s := range m.active() {
		if s.next != nil || s.Generation == r.target {
			continue
		}
		done = false
		if starting >= m.cfg.ReloadParallel {
			break
		}
		if err := m.succeed(s, r.target); err != nil {
			m.failReload(err)
			if m.reload != nil {
				m.stepReload(now) // back
			}
			return
		}
		starting++
	}
	if !done || len(m.slots) != m.size && r.upgrade {
		return
	}
	m.finishReload(now)
}

// settled says whether no slot is in between: what drains is gone, and what
// has ended is judged.
func (m *master) settled() bool {
	return !slices.ContainsFunc(m.slots, func(s *slot) bool {
		return s.next != nil || s.exit != nil || len(s.leaving) > 0
	})
}

// succeed starts the successor of the child of s.
func (m *master) succeed(s *slot, generation int) error {
	p, err := m.start(s, generation)
	if err != nil {
		return &ChildError{Reason: ErrChildStart, Slot: s.Slot, Status: err.Error(), Cause: err}
	}
	s.next = p
	m.post(func() { m.app.hooks.forked(m.fiberFork, p.pid) })
	return nil
}

// takesOver makes p, the successor that has become ready, the child of its
// slot, unless the upgrade that it is for is impossible with it.
func (m *master) takesOver(p *process, state uint32) bool {
	s := p.slot
	s.next = nil
	if r := m.reload; r != nil && r.upgrade && !r.back && state != stateVersion {
		m.retire(p)
		m.failReload(fmt.Errorf("slot %d pid %d: the new executable takes over state of version %d, this one has version %d",
			s.Slot, p.pid, state, stateVersion))
		return false
	}
	old := s.process
	if s.exit != nil { // the child before died meanwhile
		m.judge(s, time.Now())
	}
	s.fill(p)
	if old == nil {
		return true
	}
	m.log.infof("slot %d pid %d: ready after %v, generation %d; pid %d drains",
		s.Slot, p.pid, p.readyAt.Sub(p.startedAt).Round(time.Millisecond), p.generation, old.pid)
	m.retire(old)
	return true
}

// retire asks p to drain, beside the child that its slot has now.
func (m *master) retire(p *process) {
	p.slot.leaving = append(p.slot.leaving, p)
	m.askToDrain(p, m.cfg.ShutdownTimeout, false)
}

// notReady takes in that a successor has ended before it was ready.
func (m *master) notReady(p *process, status string) {
	s := p.slot
	if s.process == nil && s.exit == nil && s.respawnAt.IsZero() && !s.removed {
		s.respawnAt = time.Now()
	}
	if m.stopping.sent() {
		return
	}
	err := &ChildError{Reason: ErrChildStart, Slot: s.Slot, PID: p.pid, Status: cmp.Or(p.failure, status)}
	if m.reload != nil && m.reload.target == p.generation {
		m.failReload(err)
		return
	}
	s.recycleAt = time.Now().Add(recyclePause)
	m.log.warnf("slot %d pid %d: %s: was to replace pid %d; next try in %v", s.Slot, p.pid, err.Status, s.PID, recyclePause)
}

// failReload ends the reload that runs, or turns it round.
func (m *master) failReload(err error) {
	r := m.reload
	for _, s := range m.slots { // other successors
		if p := s.next; p != nil {
			s.next = nil
			m.retire(p)
		}
	}
	r.reason = errors.Join(r.reason, err)
	if m.cfg.ReloadRollback && !r.back {
		m.log.errorf("reload: %v: going back to generation %d", oneLine(err), r.from)
		r.back = true
		r.target = r.from
		return
	}
	m.finishReload(time.Now())
}

// finishReload ends the reload that runs. If it is an upgrade that went well,
// it does not return, unless the master cannot be replaced.
func (m *master) finishReload(now time.Time) {
	r := m.reload
	if r.reason == nil {
		if m.generation != r.target {
			m.generation = r.target
			m.log.infof("reloaded: generation %d, after %v", m.generation, now.Sub(r.began).Round(time.Millisecond))
		}
		if r.upgrade {
			err := m.replace()
			if errors.Is(err, errUnsettled) {
				return // it is tried again
			}
			r.reason = fmt.Errorf("prefork: %w: %w", ErrUpgrade, err)
		}
	} else {
		r.reason = fmt.Errorf("prefork: %w: %w", ErrReload, r.reason)
	}
	if r.reason != nil {
		m.log.errorf("%s", oneLine(r.reason))
	}
	m.reload = nil
	m.forgetImages()
	m.notify.ready(m.count())
	for _, answer := range r.answers {
		answer(r.reason)
	}
}

// endReloads answers those who wait for one that will not come.
func (m *master) endReloads(why error) {
	for _, r := range []*reload{m.reload, m.queued} {
		if r == nil {
			continue
		}
		for _, answer := range r.answers {
			answer(fmt.Errorf("prefork: %w: %w", ErrReload, why))
		}
	}
	m.reload, m.queued = nil, nil
}

// forgetImages closes the executables of which there are no children.
func (m *master) forgetImages() {
	for generation, img := range m.images {
		used := generation == m.generation
		for _, s := range m.slots {
			used = used || s.Generation == generation
		}
		if !used {
			img.close()
			delete(m.images, generation)
		}
	}
}

// scale makes n slots of what there is.
func (m *master) scale(n int) error {
	if n < 1 || n > maxChildren {
		return invalid("Scale", n, fmt.Sprintf("want 1 to %d", maxChildren))
	}
	before := m.size
	for m.size < n {
		if m.size == len(m.slots) {
			if err := m.addSlot(m.slots[0].socket); err != nil {
				for m.size > before { // all or nothing
					m.size--
					m.remove(m.slots[m.size])
				}
				return fmt.Errorf("prefork: scale to %d: %w", n, err)
			}
		} else {
			m.size++
		}
		s := m.slots[m.size-1]
		s.removed, s.closing, s.closeAt = false, false, time.Time{}
		m.deferOn(s, true)
		s.respawnAt, s.Generation = time.Now(), m.generation
		s.PID, s.State = 0, ChildDown
	}
	for m.size > n {
		m.size--
		m.remove(m.slots[m.size])
	}
	if n != before {
		m.log.infof("scaled from %d to %d children", before, n)
	}
	return nil
}

// deferOn lets the kernel defer connections to s, or not.
func (m *master) deferOn(s *slot, on bool) {
	if m.cfg.ListenerMode == ListenerModeReuseport { // else the listener is that of others too
		s.socket.Defer(on)
	}
}

// remove takes s out of service. No new connection comes to it, those in its
// queue are covered, and its child drains.
func (m *master) remove(s *slot) {
	s.removed = true
	s.respawnAt, s.lastPID = time.Time{}, 0
	s.closeAt = time.Now().Add(handshakeGrace)
	m.deferOn(s, false)
	m.arrange()
	if s.exit != nil { // whether it is replaced is no question any more
		m.log.infof("slot %d pid %d: %s", s.Slot, s.exit.PID, s.exit.line())
		s.exit, s.lost, s.judgeAt = nil, nil, time.Time{}
	}
	if p := s.next; p != nil {
		s.next = nil
		m.retire(p)
	}
	if p := s.process; p != nil {
		s.process, s.State = nil, ChildDraining
		m.retire(p)
	}
}

// closeRemoved closes the listeners of removed slots, the last one first: the
// others keep their place among those that the kernel chooses from.
func (m *master) closeRemoved(now time.Time) {
	for len(m.slots) > m.size {
		s := m.slots[len(m.slots)-1]
		if now.Before(s.closeAt) {
			return
		}
		if len(s.leaving) > 0 {
			s.closeAt = time.Time{} // its end is an event
			return
		}
		if m.cfg.ListenerMode == ListenerModeReuseport {
			if n, err := s.socket.Queued(); err == nil && n > 0 {
				s.closing, s.closeAt = false, now.Add(queuePoll)
				return
			}
			if !s.closing { // once more, when nobody accepts from it any more
				s.closing, s.closeAt = true, now.Add(uncoverGrace)
				m.uncover(s)
				return
			}
			_ = s.socket.Close()
		}
		m.slots = m.slots[:len(m.slots)-1]
		m.log.infof("slot %d: removed", s.Slot)
	}
}

// uncover ends all covering of s, by children that could not go on with it too.
func (m *master) uncover(s *slot) {
	for _, other := range m.slots {
		for _, p := range other.processes() {
			if slices.Contains(p.covers, s) {
				p.uncover(s)
			}
		}
	}
}

// limits are when a child is recycled. The zero value is never.
type limits struct {
	requests uint64
	until    time.Time
	rss      int64
	lookAt   time.Time // at rss, next
}

// newLimits are the configured ones, up to a tenth less, so that children
// that started together do not all come to them at once.
func (m *master) newLimits(now time.Time) limits {
	early := func(limit float64) float64 { return limit * (1 - rand.Float64()/10) } //nolint:gosec // to spread, not to hide
	var l limits
	if n := m.cfg.ChildMaxRequests; n > 0 {
		l.requests = max(1, uint64(early(float64(n))))
	}
	if d := m.cfg.ChildMaxLifetime; d > 0 {
		l.until = now.Add(time.Duration(early(float64(d))))
	}
	if n := m.cfg.ChildMaxRSS; n > 0 {
		l.rss, l.lookAt = max(1, int64(early(float64(n)))), now.Add(rssPoll)
	}
	return l
}

// recycleAt says when it is looked whether the child of s has done enough.
func (m *master) recycleAt(s *slot) time.Time {
	if m.reload != nil || !s.serving() || m.replacing() {
		return time.Time{}
	}
	l := s.process.limits
	at := l.until
	if at.IsZero() || !l.lookAt.IsZero() && l.lookAt.Before(at) {
		at = l.lookAt
	}
	if !at.IsZero() && at.Before(s.recycleAt) {
		at = s.recycleAt
	}
	return at
}

// replacing says whether a child is being replaced by another one.
func (m *master) replacing() bool {
	return slices.ContainsFunc(m.slots, func(s *slot) bool {
		return s.next != nil || slices.ContainsFunc(s.leaving, func(p *process) bool { return p.asked })
	})
}

// recycle replaces one child that has done enough, if none is being replaced:
// never two at once, whatever they have in common.
func (m *master) recycle(now time.Time) {
	if m.replacing() {
		return
	}
	var oldest *slot
	why := ""
	for _, s := range m.active() {
		if p := s.process; s.serving() && !now.Before(s.recycleAt) && (oldest == nil || p.startedAt.Before(oldest.StartedAt)) {
			if reason := p.enough(now); reason != "" {
				oldest, why = s, reason
			}
		}
	}
	if oldest == nil {
		return
	}
	m.log.infof("slot %d pid %d: is recycled: %s", oldest.Slot, oldest.PID, why)
	if err := m.succeed(oldest, oldest.Generation); err != nil {
		oldest.recycleAt = now.Add(recyclePause)
		m.log.warnf("%v; next try in %v", oneLine(err), recyclePause)
	}
}

// enough says why p is to be recycled, "" if it is not.
func (p *process) enough(now time.Time) string {
	l := &p.limits
	switch n := p.page.Read().Requests; {
	case p.replace != "":
		return p.replace
	case l.requests > 0 && n >= l.requests:
		return fmt.Sprintf("%d requests (ChildMaxRequests)", n)
	case !l.until.IsZero() && !now.Before(l.until):
		return fmt.Sprintf("up for %v (ChildMaxLifetime)", now.Sub(p.readyAt).Round(time.Millisecond))
	}
	if l.lookAt.IsZero() || now.Before(l.lookAt) {
		return ""
	}
	l.lookAt = now.Add(rssPoll)
	if n := residentMemory(p.pid); n >= l.rss {
		return fmt.Sprintf("%d MiB resident (ChildMaxRSS)", n>>20)
	}
	return ""
}

// signalled does what sig asks a running server for.
func (m *master) signalled(sig os.Signal) {
	what := askOf(sig)
	if what == nil {
		return
	}
	m.log.infof("%v: %s", sig, what)
	select {
	case m.events <- event{ask: what}:
	case <-m.drained.c:
	}
}

func (a *ask) String() string {
	switch a.kind {
	case askReload:
		return "reload"
	case askUpgrade:
		return "upgrade"
	default:
		return fmt.Sprintf("scale by %+d", a.n)
	}
}
