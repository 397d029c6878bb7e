package dispatch

import (
	"math"
	"time"
)

const (
	// maxRoundingError is how far rounding may carry the sum of all credits from the level of
	// the bucket, in tokens.
	maxRoundingError = 1e-3
	// maxFillLevel bounds the scale of credits: the larger a number, the coarser its fractions.
	maxFillLevel = 1 << 12
)

// tenant is one principal's share of an action, while it has items waiting and for as long as
// what it has used counts.
type tenant struct {
	principal string
	seq       uint64 // in order of arrival
	// waitingItems and waitingIDs are how many items and instances wait.
	waitingItems, waitingIDs int
	queues                   map[*batchQueue]*tenantQueue
	// virtualTime is the earliest start of its next call.
	virtualTime float64
	// firstInLine is how many calls it is first in line for: batchQueues in which its item arrived
	// first, and dry runs.
	firstInLine  int
	forgetAt     float64 // virtual time at which it is dropped while it is idle
	idlePosition int     // in action.idle

	// While filling, the tenant gets its share of every token that comes, and its credit is
	// action.fillLevel - emptyLevel; it has all that it asks for when action.fillLevel reaches
	// fullLevel. Otherwise its credit is heldCredit.
	filling                           bool
	emptyLevel, fullLevel, heldCredit float64
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
		return a.fillLevel - t.emptyLevel
	}
	return t.heldCredit
}

// unallocated is how many tokens belong to no tenant; negative when EC2 has fewer than
// expected.
func (a *action) unallocated() float64 {
	filling := float64(a.filling.len())*a.fillLevel - (a.filling.sum() - float64(a.fillingIDs))
	return a.instances.level - a.heldCredit - filling
}

// setWaitingIDs sets for how many instances a tenant waits. Its credit is capped to that.
func (a *action) setWaitingIDs(t *tenant, ids int) {
	a.waitingIDs += ids - t.waitingIDs
	a.setCredit(t, ids, a.credit(t))
}

func (a *action) setCredit(t *tenant, ids int, credit float64) {
	if a.instances == nil {
		t.waitingIDs = ids
		return
	}
	wasFilling, empty := t.filling, a.fillLevel-credit
	if wasFilling && credit == a.credit(t) {
		empty = t.emptyLevel // without rounding
	}
	a.stopFilling(t)
	a.heldCredit -= t.heldCredit
	t.waitingIDs = ids
	if float64(ids)-credit > epsilon {
		t.filling, t.emptyLevel, t.fullLevel, t.heldCredit = true, empty, empty+float64(ids), 0
		a.filling.insert(t.fullLevel, t)
		a.fillingIDs += ids
	} else {
		t.heldCredit = min(credit, float64(ids))
		a.heldCredit += t.heldCredit
	}
	if wasFilling && t.filling && t.emptyLevel == empty {
		return
	}
	for _, q := range t.queues {
		if a.awaitingTokens.contains(q) {
			a.schedule(q)
		}
	}
}

func (a *action) stopFilling(t *tenant) {
	if t.filling {
		a.filling.remove(t.fullLevel, t)
		a.fillingIDs -= t.waitingIDs
		t.filling = false
	}
}

// allocate divides the available tokens among the tenants that wait: equal shares, but no more
// than each asks for. A tenant keeps what it is given until it has enough for its next item, so that
// large requests are not starved, and small ones need not wait for them.
//
// One number, the fill level, is what all filling tenants were given, so this takes a step only
// for each tenant that has enough now, and for each queue that can go out.
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
		step := max(0, full-a.fillLevel)
		if step*n > free {
			a.fillLevel += free / n
			break
		}
		a.fillLevel += step
		free -= step * n
		a.stopFilling(t)
		t.heldCredit = float64(t.waitingIDs)
		a.heldCredit += t.heldCredit
	}
	if a.fillLevel > maxFillLevel {
		a.reallocate(a.credit)
	}
	for a.awaitingTokens.len() > 0 && a.awaitingTokens.min().fillLevelNeeded <= a.fillLevel+epsilon {
		q := a.awaitingTokens.min()
		a.awaitingTokens.remove(q)
		a.scheduleSendable(q)
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
func (a *action) allocateAllTo(only *tenant) {
	a.reallocate(func(t *tenant) float64 {
		if t == only {
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
	a.filling.root, a.fillingIDs, a.fillLevel, a.heldCredit = nil, 0, 0, 0
	for t, credit := range credits {
		a.steps++
		t.filling, t.heldCredit = false, 0
		a.setCredit(t, t.waitingIDs, credit)
	}
}

// chargeCall charges one call that starts at a virtual time to the tenants in it, in equal parts.
func (a *action) chargeCall(tenants []*tenant, start float64) {
	a.clock = max(a.clock, start)
	for _, t := range tenants {
		t.virtualTime = max(a.clock, t.virtualTime) + 1/float64(len(tenants))
	}
}

// timeUntilFillLevel is how long it takes until action.fillLevel reaches a value.
func (a *action) timeUntilFillLevel(now time.Time, value float64) time.Duration {
	needed := a.filling.sumCapped(value) - float64(a.filling.len())*a.fillLevel
	return a.instances.timeToGain(now, needed-a.unallocated())
}

// estimateWait estimates how long it takes until a further item of a tenant for so many instances goes
// out, if tokens and calls are shared as now.
func (a *action) estimateWait(now time.Time, t *tenant, ids int, k Key) time.Duration {
	a.allocate(now)
	var longest time.Duration
	calls := 0.0
	if a.instances != nil && !k.DryRun {
		wanted := float64(t.waitingIDs+ids) - a.credit(t)
		needed := a.filling.sumCapped(a.fillLevel+wanted) - float64(a.filling.len())*a.fillLevel
		if t.filling {
			needed -= min(t.fullLevel-a.fillLevel, wanted)
		}
		needed += wanted
		longest = a.instances.timeToGain(now, needed-a.unallocated())
		calls = math.Floor((needed - epsilon) / float64(a.maxIDs))
	}
	// Other tenants have their calls first: one for each queue in which they are first in line.
	turns := float64(t.firstInLine)
	if bq := a.batchQueues[k]; bq == nil || bq.arrivals.len() == 0 || k.DryRun {
		turns++
	}
	turns = max(turns, 1)
	calls += a.firstInLine.sumCapped(turns) - min(float64(t.firstInLine), turns) + turns
	a.requests.advance(now)
	return max(longest, a.requests.timeToGain(now, calls+a.reserve(k)-a.requests.level))
}
