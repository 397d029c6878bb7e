package sim

import (
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// terminatedVisible is how long a terminated instance can still be described.
// Source: EC2 API Reference, TerminateInstances, "approximately one hour".
const terminatedVisible = time.Hour

// hibernationWarmUp is how long after its launch an instance cannot hibernate.
// Source: EC2 User Guide, "Hibernate your instance", about two minutes.
const hibernationWarmUp = 2 * time.Minute

// After a user's stop it takes a while until the Spot request of a Spot Instance supports a
// start. Source: EC2 User Guide, "Troubleshoot EC2 instance hibernation", about two minutes
// after a hibernation; reports say less after a stop.
const (
	spotStopDelay      = 30 * time.Second
	spotHibernateDelay = 2 * time.Minute
)

// span is a range of delays at speed 1.
type span struct{ minimum, maximum time.Duration }

// The delays. EC2 promises none; a start takes 10 to 30 seconds in practice.
var (
	startSpan            = span{10 * time.Second, 25 * time.Second}
	fallBackSpan         = span{3 * time.Second, 10 * time.Second}
	stopSpan             = span{15 * time.Second, 40 * time.Second}
	skipShutdownSpan     = span{5 * time.Second, 15 * time.Second}
	hibernateSpan        = span{40 * time.Second, 90 * time.Second}
	terminateSpan        = span{15 * time.Second, 40 * time.Second}
	terminateStoppedSpan = span{2 * time.Second, 6 * time.Second}
)

// op changes machines on behalf of one call.
type op struct {
	verb   instance.Verb
	number uint64 // of the call
	now    time.Time
}

// scale converts a delay of speed 1.
func (b *Backend) scale(d time.Duration) time.Duration {
	if b.config.Speed == 0 {
		return 0
	}
	return time.Duration(float64(d) / b.config.Speed)
}

// delay draws the duration of the transition that begins now.
func (b *Backend) delay(m *machine, s span) time.Duration {
	share := unit(draw(b.config.Seed, drawDelay, m.inst.ID, m.inst.Simulator.Transitions))
	return b.scale(s.minimum + time.Duration(share*float64(s.maximum-s.minimum)))
}

// start moves a stopped machine to pending, and later running. Source of what changes: EC2
// User Guide, "How EC2 instance stop and start works".
func (b *Backend) start(o op, m *machine) {
	next := m.draft()
	next.State = instance.StatePending
	next.StateReason = nil
	next.StateTransitionReason = ""
	next.LaunchTime = instance.WallClock(o.now).Truncate(time.Second)
	next.PublicIPAddress = b.publicAddress(next.ID, next.Simulator.Transitions)
	next.PublicDNSName = next.UsualPublicDNSName()
	next.Simulator.NextState = instance.StateRunning
	next.Simulator.NextReason = nil
	delay := b.delay(m, startSpan)
	if f := b.strikeLocked(o, FallBackToStopped, m); f != nil {
		next.Simulator.NextState = instance.StateStopped
		next.Simulator.NextReason = f.StateReason
		delay = b.delay(m, fallBackSpan)
	}
	b.begin(o, m, next, delay)
}

// ending says how a machine is stopped or terminated.
type ending struct {
	reason       *instance.StateReason
	transition   string // the state transition reason
	hibernate    bool
	skipShutdown bool
}

// stop moves a machine to stopping, and later stopped.
func (b *Backend) stop(o op, m *machine, e ending) {
	next := m.draft()
	next.State = instance.StateStopping
	next.StateReason, next.StateTransitionReason = e.reason, e.transition
	s := next.Simulator
	s.NextState, s.NextReason = instance.StateStopped, nil
	s.Hibernated, s.MemoryLost = e.hibernate, !e.hibernate
	d := stopSpan
	switch {
	case e.hibernate:
		d = hibernateSpan
	case e.skipShutdown:
		d = skipShutdownSpan
	}
	b.begin(o, m, next, b.delay(m, d))
}

// terminate moves a machine to shutting-down, and later terminated.
func (b *Backend) terminate(o op, m *machine, e ending) {
	next := m.draft()
	next.State = instance.StateShuttingDown
	next.StateReason, next.StateTransitionReason = e.reason, e.transition
	next.Simulator.NextState, next.Simulator.NextReason = instance.StateTerminated, nil
	d := terminateSpan
	switch {
	case m.inst.State == instance.StateStopped:
		d = terminateStoppedSpan
	case e.skipShutdown:
		d = skipShutdownSpan
	}
	b.begin(o, m, next, b.delay(m, d))
}

// begin sets a transitional image, which is completed after a delay or, with a fault,
// never.
func (b *Backend) begin(o op, m *machine, next *instance.Instance, delay time.Duration) {
	due := o.now.Add(delay)
	next.Simulator.NextAt = instance.WallClock(due)
	if b.strikeLocked(o, StuckTransition, m) != nil {
		next.Simulator.NextState = instance.StateUnspecified
		next.Simulator.NextAt = time.Time{}
		next.Simulator.NextReason = nil
		due = time.Time{}
	}
	b.enter(m, next, m.stamp(o.now), due)
}

// unstick completes a stuck transition, as a forced stop or termination does.
func (b *Backend) unstick(o op, m *machine, to instance.State) {
	if m.inst.Simulator.NextState != instance.StateUnspecified {
		return
	}
	next := m.draft()
	due := o.now.Add(b.delay(m, stopSpan))
	next.Simulator.NextState, next.Simulator.NextAt = to, instance.WallClock(due)
	b.replaceLocked(m, next, m.stamp(o.now))
	b.scheduleLocked(m, due)
}

// advanceLocked makes the transition of a machine that is due.
func (b *Backend) advanceLocked(m *machine) {
	if m.inst.State == instance.StateTerminated {
		b.dropLocked(m)
		return
	}
	next := m.draft()
	s := next.Simulator
	next.State = s.NextState
	if s.NextReason != nil {
		next.StateReason, next.StateTransitionReason = s.NextReason, fallBackTransition(s.NextReason)
	}
	s.NextState, s.NextAt, s.NextReason = instance.StateUnspecified, time.Time{}, nil
	var vanishes time.Time
	switch next.State {
	case instance.StateRunning:
		s.EverRunning = true
	case instance.StateStopped:
		next.PublicIPAddress, next.PublicDNSName = "", ""
		if next.Lifecycle == lifecycleSpot && userStopped(next) {
			delay := spotStopDelay
			if s.Hibernated {
				delay = spotHibernateDelay
			}
			s.NextAt = instance.WallClock(m.due.Add(b.scale(delay)))
		}
	case instance.StateTerminated:
		next.PublicIPAddress, next.PrivateIPAddress = "", ""
		next.PublicDNSName, next.PrivateDNSName = "", ""
		vanishes = m.due.Add(terminatedVisible)
		s.NextAt = instance.WallClock(vanishes)
	case instance.StateUnspecified, instance.StatePending, instance.StateShuttingDown, instance.StateStopping:
	}
	b.enter(m, next, m.stamp(m.due), vanishes)
}

// enter sets an image of another state.
func (b *Backend) enter(m *machine, next *instance.Instance, at, due time.Time) {
	next.Simulator.Transitions++
	meter(next, at)
	b.replaceLocked(m, next, at)
	b.scheduleLocked(m, due)
}

// meter charges usage at a change of state. Source: EC2 User Guide, "Amazon EC2
// instance state changes": running is billed, and stopping while it hibernates.
func meter(next *instance.Instance, at time.Time) {
	s := next.Simulator
	switch {
	case next.State == instance.StateRunning && s.BilledFrom.IsZero():
		s.BilledFrom = at
	case next.State == instance.StateRunning:
	case next.State == instance.StateStopping && s.Hibernated:
	default:
		s.BilledSeconds, s.BilledFrom = s.Billed(at), time.Time{}
	}
}
