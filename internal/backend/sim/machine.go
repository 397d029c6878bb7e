package sim

import (
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// machine is one simulated instance. Its image is replaced, never modified.
type machine struct {
	inst    *instance.Instance
	changed time.Time // when the image last changed
	due     time.Time // when the schedule acts on it
	slot    int       // where it is in the schedule; -1 when it is not
	calls   uint64    // counts the calls that named it, for draws
	heard   uint64    // counts the notices of it, for draws
	named   uint64    // the last call that named it
	past    []version // what it was, while Describe may lag
}

// version is an earlier image; nil before the instance was created.
type version struct {
	inst  *instance.Instance
	until time.Time
}

// stamp returns the time of a change that is made now. The times of one machine strictly
// increase, even if the clock does not.
func (m *machine) stamp(now time.Time) time.Time {
	at := instance.WallClock(now)
	if !at.After(m.changed) {
		at = m.changed.Add(time.Nanosecond)
	}
	return at
}

// draft returns a copy of the image, to modify and hand to [Backend.replaceLocked]. Its
// tags and reasons are shared: they may be replaced, not modified.
func (m *machine) draft() *instance.Instance {
	next := *m.inst
	next.Simulator = new(*m.inst.Simulator)
	return &next
}

// asOf returns the image at an earlier time; nil before the creation.
func (m *machine) asOf(t time.Time) *instance.Instance {
	for _, v := range m.past {
		if v.until.After(t) {
			return v.inst
		}
	}
	return m.inst
}

// replaceLocked replaces the image and publishes a notice.
func (b *Backend) replaceLocked(m *machine, next *instance.Instance, at time.Time) {
	b.keepPastLocked(m, at)
	m.inst, m.changed = next, at
	b.publishLocked(m, at)
}

// keepPastLocked keeps the current image for as long as Describe may lag.
func (b *Backend) keepPastLocked(m *machine, at time.Time) {
	if b.lag == 0 {
		m.past = nil
		return
	}
	horizon := at.Add(-b.lag)
	m.past = slices.DeleteFunc(m.past, func(v version) bool { return v.until.Before(horizon) })
	m.past = append(m.past, version{inst: m.inst, until: at})
}

// adoptLocked adds an instance from the journal.
func (b *Backend) adoptLocked(inst *instance.Instance, now time.Time) {
	if inst.ImageID == "" {
		inst = identify(inst)
	}
	m := &machine{inst: inst, slot: -1}
	if s := inst.Simulator; inst.State == instance.StateRunning && s.BilledFrom.IsZero() {
		m.inst = m.draft()
		m.inst.Simulator.BilledFrom = inst.LaunchTime
	}
	if _, known := b.machines[inst.ID]; !known {
		b.ids, b.unsorted = append(b.ids, inst.ID), true
	}
	b.machines[inst.ID] = m
	b.noteLaunch(inst)
	switch s := inst.Simulator; {
	case s.NextState != instance.StateUnspecified:
		b.scheduleLocked(m, now.Add(s.NextAt.Sub(instance.WallClock(now))))
	case inst.State == instance.StateTerminated && s.NextAt.IsZero():
		b.scheduleLocked(m, now.Add(terminatedVisible))
	case inst.State == instance.StateTerminated:
		b.scheduleLocked(m, now.Add(s.NextAt.Sub(instance.WallClock(now))))
	}
}

// identify adds an image id, a launch index and host names to an instance recorded by an
// earlier version, which kept the first two elsewhere and did not record the names.
func identify(inst *instance.Instance) *instance.Instance {
	inst = inst.Clone()
	inst.ImageID = defaultImage
	if l := inst.Simulator.Launched; l != nil && l.ImageID != "" {
		inst.ImageID, l.ImageID = l.ImageID, ""
	}
	inst.AMILaunchIndex, inst.Simulator.LaunchIndex = int32(inst.Simulator.LaunchIndex), 0
	name(inst)
	return inst
}

// machinesLocked returns the machines of ids, nil where there is none.
func (b *Backend) machinesLocked(ids []instance.ID) []*machine {
	machines := make([]*machine, len(ids))
	for i, id := range ids {
		machines[i] = b.machines[id]
	}
	return machines
}

// dropLocked removes a machine.
func (b *Backend) dropLocked(m *machine) {
	delete(b.machines, m.inst.ID)
	b.unsorted = true
	if l := m.inst.Simulator.Launched; l != nil {
		if delete(b.launches[l.ClientToken], m.inst.ID); len(b.launches[l.ClientToken]) == 0 {
			delete(b.launches, l.ClientToken)
		}
	}
}

// sortedIDsLocked returns the sorted ids of all machines. They are sorted only here, so
// that the cost of creating or removing an instance does not grow with the fleet.
func (b *Backend) sortedIDsLocked() []instance.ID {
	if b.unsorted {
		b.ids = slices.DeleteFunc(b.ids, func(id instance.ID) bool { return b.machines[id] == nil })
		slices.Sort(b.ids)
		b.ids = slices.Compact(b.ids)
		b.unsorted = false
	}
	return b.ids
}
