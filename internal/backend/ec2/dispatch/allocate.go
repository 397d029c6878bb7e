package dispatch

import (
	"math"
	"time"
)

const (
	// maxRoundingError is how far rounding may carry the sum of all credits from the level of
	// the bucket, in tokens.
	maxRoundingError = 1e-3
	// maxShared bounds the scale of credits: the larger a number, the coarser its fractions.
	maxShared = 1 << 12
)

// tenant is one principal's share of an action, while it has items waiting and for as long as
// what it has used counts.
type tenant struct {
	principal string
	seq       uint64 // in order of arrival
	// waiting and ids are how many items and instances wait.
	waiting, ids int
	queues       map[*batchQueue]*tenantQueue
	// virtualTime is until when it has used its share of the calls.
	virtualTime float64
	// fronts is how many calls it is first in line for: batchQueues in which its item arrived
	// first, and dry runs.
	fronts       int
	idleUntil    float64
	idlePosition int // in action.idle

	// While filling, the tenant gets its share of every token that comes, and its credit is
	// action.shared - empty; it has all that it asks for when action.shared reaches full.
	// Otherwise its credit is held.
	filling           bool
	empty, full, held float64
}

func (a *action) tenant(principal string) *tenant {
	t := a.tenants[principal]
	if t == nil {
		a.tenantSeq++
		t = &tenant{principal: principal, seq: a.tenantSeq, queues: make(map[*batchQueue]*tenantQueue)}
		a.tenants[principal] = t
	}
	return t
}

// credit is how many instance tokens a tenant has been given.
func (a *action) credit(t *tenant) float64 {
	if t.filling {
		return a.shared - t.empty
	}
	return t.held
}

// unallocated is how many tokens belong to no tenant; negative when EC2 has fewer than
// expected.
func (a *action) unallocated() float64 {
	filling := float64(a.filling.len())*a.shared - (a.filling.sum() - float64(a.fillingIDs))
	return a.instances.level - a.held - filling
}

// setWaiting sets for how many instances a tenant waits. Its credit is capped to that.
func (a *action) setWaiting(t *tenant, ids int) {
	a.ids += ids - t.ids
	a.setShare(t, ids, a.credit(t))
}

func (a *action) setShare(t *tenant, ids int, credit float64) {
	if a.instances == nil {
		t.ids = ids
		return
	}
	was, empty := t.filling, a.shared-credit
	if was && credit == a.credit(t) {
		empty = t.empty // without rounding
	}
	a.stopFilling(t)
	a.held -= t.held
	t.ids = ids
	if float64(ids)-credit > epsilon {
		t.filling, t.empty, t.full, t.held = true, empty, empty+float64(ids), 0
		a.filling.insert(t.full, t)
		a.fillingIDs += ids
	} else {
		t.held = min(credit, float64(ids))
		a.held += t.held
	}
	if was && t.filling && t.empty == empty {
		return
	}
	for _, q := range t.queues {
		if a.short.contains(q) {
			a.file(q)
		}
	}
}

func (a *action) stopFilling(t *tenant) {
	if t.filling {
		a.filling.remove(t.full, t)
		a.fillingIDs -= t.ids
		t.filling = false
	}
}

// allocate divides the available tokens among the tenants that wait: equal shares, but no more
// than each asks for. A tenant keeps what it is given until it has enough for its next item, so that
// large requests are not starved, and small ones need not wait for them.
//
// The share of all tenants that lack tokens is one number, so this takes a step only for each
// tenant that has enough now, and for each queue that can go out.
func (a *action) allocate(now time.Time) {
	if a.instances == nil {
		return
	}
	a.instances.advance(now)
	free := a.unallocated()
	if free < -maxRoundingError { // EC2 has fewer than expected
		if a.instances.level-free > epsilon {
			a.reallocate(func(*tenant) float64 { return 0 })
		}
		free = max(0, a.instances.level)
	}
	for free > 0 && a.filling.len() > 0 {
		a.steps++
		t, full := a.filling.min()
		n := float64(a.filling.len())
		step := max(0, full-a.shared)
		if step*n > free {
			a.shared += free / n
			break
		}
		a.shared += step
		free -= step * n
		a.stopFilling(t)
		t.held = float64(t.ids)
		a.held += t.held
	}
	if a.shared > maxShared {
		a.reallocate(a.credit)
	}
	for a.short.len() > 0 && a.short.min().sharedNeeded <= a.shared+epsilon {
		q := a.short.min()
		a.short.remove(q)
		a.fileReady(q)
	}
}

// needed is the credit with which an item can go out.
func (a *action) needed(it *Item) float64 {
	if a.instances == nil || it.Command.DryRun {
		return 0
	}
	return min(float64(len(it.IDs)), a.instances.capacity)
}

func (a *action) canAfford(t *tenant, it *Item) bool {
	return it.Command.DryRun || a.enough(a.credit(t), len(it.IDs))
}

// enough reports whether a credit allows a call for n instances. Where the bucket could never
// hold so many tokens, a full one is enough.
func (a *action) enough(credit float64, n int) bool {
	return a.instances == nil || min(float64(n), a.instances.capacity)-max(0, credit) <= epsilon
}

// bucketFull reports whether no more tokens come.
func (a *action) bucketFull() bool {
	return a.instances != nil && a.instances.capacity-a.instances.level <= epsilon
}

// allocateAllTo gives everything to one tenant: the bucket is full, and no tenant has enough.
func (a *action) allocateAllTo(favourite *tenant) {
	a.reallocate(func(t *tenant) float64 {
		if t == favourite {
			return a.instances.level
		}
		return 0
	})
}

// reallocate replaces all credits. It visits every tenant.
func (a *action) reallocate(credit func(*tenant) float64) {
	credits := make(map[*tenant]float64, len(a.tenants))
	for _, t := range a.tenants {
		credits[t] = credit(t)
	}
	a.filling.root, a.fillingIDs, a.shared, a.held = nil, 0, 0, 0
	for t, credit := range credits {
		a.steps++
		t.filling, t.held = false, 0
		a.setShare(t, t.ids, credit)
	}
}

// chargeCall charges one call to the tenants in it, in equal parts.
func (a *action) chargeCall(tenants []*tenant, now float64) {
	a.clock = max(a.clock, now)
	for _, t := range tenants {
		t.virtualTime = max(a.clock, t.virtualTime) + 1/float64(len(tenants))
	}
}

// timeUntilShared is how long it takes until action.shared reaches a value.
func (a *action) timeUntilShared(now time.Time, value float64) time.Duration {
	needed := a.filling.sumMin(value) - float64(a.filling.len())*a.shared
	return a.instances.timeToGain(now, needed-a.unallocated())
}

// wait estimates how long it takes until a further item of a tenant for so many instances goes
// out, if tokens and calls are shared as now.
func (a *action) wait(now time.Time, t *tenant, ids int, k Key) time.Duration {
	a.allocate(now)
	var longest time.Duration
	calls := 0.0
	if a.instances != nil && !k.DryRun {
		wanted := float64(t.ids+ids) - a.credit(t)
		needed := a.filling.sumMin(a.shared+wanted) - float64(a.filling.len())*a.shared
		if t.filling {
			needed -= min(t.full-a.shared, wanted)
		}
		needed += wanted
		longest = a.instances.timeToGain(now, needed-a.unallocated())
		calls = math.Floor((needed - epsilon) / float64(a.maxIDs))
	}
	// Other tenants have their calls first: one for each queue in which they are first in line.
	own := float64(t.fronts)
	if bq := a.batches[k]; bq == nil || bq.arrivals.len() == 0 || k.DryRun {
		own++
	}
	own = max(own, 1)
	calls += a.fronts.sumMin(own) - min(float64(t.fronts), own) + own
	a.requests.advance(now)
	return max(longest, a.requests.timeToGain(now, calls+a.reserve(k)-a.requests.level))
}
