package sim

import (
	"cmp"
	"log/slog"
	"maps"
	"slices"

	"github.com/instanced/instanced/internal/instance"
)

// planned is a fault of the plan.
type planned struct {
	Fault
	number  purpose // keeps its draws independent of other faults
	counted bool    // whether Remaining is a bound
	last    uint64  // the last call that it struck
}

// extendPlanLocked adds faults that were checked.
func (b *Backend) extendPlanLocked(faults []Fault) {
	for _, f := range faults {
		f.Match.Verbs = slices.Clone(f.Match.Verbs)
		f.Match.IDs = slices.Clone(f.Match.IDs)
		f.Match.Tags = maps.Clone(f.Match.Tags)
		f.Match.Types = slices.Clone(f.Match.Types)
		f.Match.AvailabilityZones = slices.Clone(f.Match.AvailabilityZones)
		f.StateReason = fallBackReason(f)
		if f.Kind == DescribeLag {
			b.lag = max(b.lag, f.Delay)
		}
		b.plan = append(b.plan, &planned{Fault: f, number: drawFault + purpose(len(b.plan)), counted: f.Remaining > 0})
	}
}

// fallBackReason completes the reason of a fall back to stopped.
func fallBackReason(f Fault) *instance.StateReason {
	switch {
	case f.Kind != FallBackToStopped:
		return nil
	case f.StateReason == nil:
		return reasonLaunchError
	}
	r := *f.StateReason
	for _, known := range []*instance.StateReason{reasonLaunchError, reasonNoCapacity} {
		if r.Code == known.Code {
			r.Message = cmp.Or(r.Message, known.Message)
		}
	}
	r.Message = cmp.Or(r.Message, r.Code)
	return &r
}

func (f *planned) spent() bool { return f.counted && f.Remaining == 0 }

// use counts a call to which the fault applies, once for all of its instances.
func (f *planned) use(call uint64) {
	if f.counted && f.last != call {
		f.Remaining--
	}
	f.last = call
}

// falls draws whether the fault applies now.
func (b *Backend) falls(f *planned, call uint64, id instance.ID, counter uint64) bool {
	if f.spent() && f.last != call {
		return false
	}
	return f.Probability == 0 || unit(draw(b.config.Seed, f.number, id, counter)) < f.Probability
}

// strikeLocked returns the first fault of a kind that applies to one machine of a call.
func (b *Backend) strikeLocked(o op, kind FaultKind, m *machine) *planned {
	for _, f := range b.plan {
		if f.Kind == kind && f.Match.covers(o.verb) && f.Match.selects(m.inst) && b.falls(f, o.number, m.inst.ID, m.calls) {
			b.use(f, o, m.inst.ID)
			return f
		}
	}
	return nil
}

// strikeCallLocked returns the first fault of a kind that applies to a call as a whole.
func (b *Backend) strikeCallLocked(o op, kind FaultKind, ids []instance.ID, machines []*machine) *planned {
	for _, f := range b.plan {
		if f.Kind != kind || !f.Match.covers(o.verb) || !f.Match.names(machines) {
			continue
		}
		id, counter := instance.ID(""), o.number
		if len(ids) > 0 {
			id = ids[0]
			if machines[0] != nil && o.verb != verbDescribe {
				counter = machines[0].calls
			}
		}
		if b.falls(f, o.number, id, counter) {
			b.use(f, o, id)
			return f
		}
	}
	return nil
}

// strikeNoticeLocked returns the first fault of a kind that applies to the notice of a
// machine.
func (b *Backend) strikeNoticeLocked(o op, kind FaultKind, m *machine) *planned {
	for _, f := range b.plan {
		if f.Kind == kind && f.Match.selects(m.inst) && b.falls(f, o.number, m.inst.ID, m.heard) {
			b.use(f, o, m.inst.ID)
			return f
		}
	}
	return nil
}

// names reports whether the fault matches a call for these machines.
func (m *Match) names(machines []*machine) bool {
	return m.anyInstance() || slices.ContainsFunc(machines, func(named *machine) bool {
		return named != nil && m.selects(named.inst)
	})
}

func (b *Backend) use(f *planned, o op, id instance.ID) {
	f.use(o.number)
	b.log.Debug("fault", slog.String("kind", f.Kind.String()), slog.String("verb", string(o.verb)), slog.String("instance_id", string(id)))
}
