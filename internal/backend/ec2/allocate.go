package ec2

import (
	"math"
	"time"
)

const (
	// maxRoundingError is how far rounding may carry the sum of all credits from the level of the
	// bucket, in tokens.
	maxRoundingError = 1e-3
	// maxShared bounds the scale of credits: the larger a number, the coarser its fractions.
	maxShared = 1 << 12
)

// tenant is one principal's share at a desk, while it has callers waiting and for as
// long as what it has used counts.
type tenant struct {
	principal string
	seq       uint64 // in the order of arrival
	// callers and ids are how many wait.
	callers, ids int
	// calls is the virtual time until which it has used its share of the calls.
	calls  float64
	fronts int  // lanes whose first caller is its own
	shorts int  // its queues in desk.short
	idle   bool // whether it is in desk.idle

	// While filling, the tenant gets its share of every token that comes, and its credit is
	// desk.shared - empty; it has all that it asks for when desk.shared reaches full.
	// Otherwise its credit is held.
	filling           bool
	empty, full, held float64
}

// virtualTime is when, in virtual time, the tenant's next call is.
func (d *dispatcher) virtualTime(t *tenant) float64 { return max(d.clock, t.calls) }

// credit is how many tokens of the instance bucket are put aside for a tenant.
func (d *dispatcher) credit(t *tenant) float64 {
	if t.filling {
		return d.shared - t.empty
	}
	return t.held
}

// unallocated is how many tokens are put aside for nobody; it is below zero when EC2 has
// less than was thought.
func (d *dispatcher) unallocated() float64 {
	filling := float64(d.filling.len())*d.shared - (d.filling.sum() - float64(d.fillingIDs))
	return d.instances.level - d.held - filling
}

// setWaiting says for how many instances a tenant waits. Its credit is no more than that.
func (d *dispatcher) setWaiting(t *tenant, ids int) {
	d.ids += ids - t.ids
	d.setShare(t, ids, d.credit(t))
}

func (d *dispatcher) setShare(t *tenant, ids int, credit float64) {
	if d.instances == nil {
		t.ids = ids
		return
	}
	was, empty := t.filling, d.shared-credit
	if was && credit == d.credit(t) {
		empty = t.empty // without rounding
	}
	d.stopFilling(t)
	d.held -= t.held
	t.ids = ids
	if float64(ids)-credit > epsilon {
		t.filling, t.empty, t.full, t.held = true, empty, empty+float64(ids), 0
		d.filling.insert(t.full, t)
		d.fillingIDs += ids
	} else {
		t.held = min(credit, float64(ids))
		d.held += t.held
	}
	if t.shorts > 0 && !(was && t.filling && t.empty == empty) {
		d.stale = true
	}
}

func (d *dispatcher) stopFilling(t *tenant) {
	if t.filling {
		d.filling.remove(t.full, t)
		d.fillingIDs -= t.ids
		t.filling = false
	}
}

// allocate divides the tokens that are there among the principals that wait for them: each
// gets as much as any other, but no more than it asks for. What a principal is given
// stays its own until a call of its has enough, so that one that asks for many
// is not overtaken for ever, and one that asks for few need not wait for it.
//
// The share that everybody who lacks something has got is kept as one number, so this
// takes a step only for each who lacks nothing any more.
func (d *dispatcher) allocate(now time.Time) {
	if d.instances == nil {
		return
	}
	d.instances.advance(now)
	free := d.unallocated()
	if free < -maxRoundingError { // EC2 has less than was thought
		if d.instances.level-free > epsilon {
			d.reallocate(func(*tenant) float64 { return 0 })
		}
		free = max(0, d.instances.level)
	}
	for free > 0 && d.filling.len() > 0 {
		d.visits++
		t, full := d.filling.min()
		n := float64(d.filling.len())
		step := max(0, full-d.shared)
		if step*n > free {
			d.shared += free / n
			break
		}
		d.shared += step
		free -= step * n
		d.stopFilling(t)
		t.held = float64(t.ids)
		d.held += t.held
	}
	if d.shared > maxShared {
		d.reallocate(d.credit)
	}
}

// allocateAllTo gives everything to one tenant: the bucket is full, and nobody has enough.
func (d *dispatcher) allocateAllTo(favourite *tenant) {
	d.reallocate(func(t *tenant) float64 {
		if t == favourite {
			return d.instances.level
		}
		return 0
	})
}

// reallocate replaces all credits. It visits every tenant, and the queues have to be
// looked at again.
func (d *dispatcher) reallocate(credit func(*tenant) float64) {
	credits := make(map[*tenant]float64, len(d.tenants))
	for _, t := range d.tenants {
		credits[t] = credit(t)
	}
	d.filling.root, d.fillingIDs, d.shared, d.held = nil, 0, 0, 0
	for t, credit := range credits {
		d.visits++
		t.filling, t.held = false, 0
		d.setShare(t, t.ids, credit)
	}
	d.stale = true
}

// chargeCall charges the tenants of a batch for one call, which they share.
func (d *dispatcher) chargeCall(tenants map[*tenant]int, now float64) {
	d.clock = max(d.clock, now)
	for t := range tenants {
		t.calls = d.virtualTime(t) + 1/float64(len(tenants))
	}
}

// timeUntilShared is how long it takes until desk.shared reaches a value, when all who lack
// tokens share what comes.
func (d *dispatcher) timeUntilShared(now time.Time, value float64) time.Duration {
	needed := d.filling.sumMin(value) - float64(d.filling.len())*d.shared
	return d.instances.timeToGain(now, needed-d.unallocated())
}

// wait estimates when a call of a tenant would go out that is for so many instances
// more: when tokens and calls have been shared as they are now.
func (d *dispatcher) wait(now time.Time, t *tenant, ids int, k batchKey) time.Duration {
	d.allocate(now)
	var longest time.Duration
	calls := 0.0
	if d.instances != nil && k.dryRun == 0 {
		wanted := float64(t.ids+ids) - d.credit(t)
		needed := d.filling.sumMin(d.shared+wanted) - float64(d.filling.len())*d.shared
		if t.filling {
			needed -= min(t.full-d.shared, wanted)
		}
		needed += wanted
		longest = d.instances.timeToGain(now, needed-d.unallocated())
		calls = math.Floor((needed - epsilon) / float64(d.maxIDs))
	}
	// Before its next call, others have theirs: one for each lane in which they wait.
	own := float64(t.fronts)
	if l := d.batches[k]; l == nil || l.live == 0 {
		own++
	}
	own = max(own, 1)
	calls += d.fronts.sumMin(own) - min(float64(t.fronts), own) + own
	d.requests.advance(now)
	return max(longest, d.requests.timeToGain(now, calls+d.reserve(k)-d.requests.level))
}
