package dispatch

import (
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// Done ends a batch whose items all have their outcomes.
func (d *Dispatcher) Done(b *Batch) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.releaseLocked(b)
	d.giveBackLocked(b)
	b.queue.inFlight--
	b.action.inFlight--
	b.action.dropUnused(b.queue)
	d.signal()
}

// Release makes the instances of a batch available to others.
func (d *Dispatcher) Release(b *Batch) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.releaseLocked(b)
}

func (d *Dispatcher) releaseLocked(b *Batch) {
	if len(b.acquired) == 0 {
		return
	}
	for _, id := range b.acquired {
		d.setFreeLocked(id)
	}
	b.acquired = nil
	d.freed.Broadcast()
	d.signal()
}

// Acquire keeps instances busy for a batch, once no other batch does. It is false when the
// dispatcher is closed.
func (d *Dispatcher) Acquire(b *Batch, ids []instance.ID) bool {
	if b.DryRun {
		return true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	taken := func(id instance.ID) bool { return d.busy[id] != nil && d.busy[id] != b }
	for slices.ContainsFunc(ids, taken) && !d.closed {
		d.freed.Wait()
	}
	if d.closed {
		return false
	}
	for _, id := range ids {
		if d.busy[id] == nil {
			d.setBusyLocked(id, b)
			b.acquired = append(b.acquired, id)
		}
	}
	return true
}

// TakeTokens takes the tokens of the next call of a batch, for n instances, as far as they are not
// taken already, and returns how long to wait until they are there. They are spent by ReportSent;
// what is not spent is given back by Done at the latest.
func (d *Dispatcher) TakeTokens(b *Batch, n int) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	if !b.prepaid {
		b.prepaid, b.prepaidIDs, b.tokensDue = true, 0, now.Add(b.action.requests.Take(now, 1))
	}
	if b.limitsInstances() && n > b.prepaidIDs {
		if due := now.Add(b.action.instances.Take(now, float64(n-b.prepaidIDs))); due.After(b.tokensDue) {
			b.tokensDue = due
		}
		b.prepaidIDs = n
	}
	return max(0, b.tokensDue.Sub(now))
}

// limitsInstances reports whether the instances of a batch cost tokens.
func (b *Batch) limitsInstances() bool { return b.action.instances != nil && !b.DryRun }

// spendLocked spends the tokens of a call for n instances that is about to be written, and gives
// back what was taken for more.
func (d *Dispatcher) spendLocked(b *Batch, n int) {
	if b.prepaid {
		d.refundLocked(b, b.prepaidIDs-n)
		b.prepaid, b.prepaidIDs = false, 0
	}
}

// giveBackLocked gives back the tokens of a call that is not made.
func (d *Dispatcher) giveBackLocked(b *Batch) {
	if b.prepaid {
		b.action.requests.Give(1)
		d.spendLocked(b, 0)
		d.signal()
	}
}

// Refund returns the tokens of n instances that EC2 has not used.
func (d *Dispatcher) Refund(b *Batch, n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refundLocked(b, n)
}

func (d *Dispatcher) refundLocked(b *Batch, n int) {
	if b.limitsInstances() && n > 0 {
		b.action.instances.Give(float64(n))
		d.signal()
	}
}

// OnThrottle corrects a bucket after EC2 throttled a call for n instances, for the
// (before+1)-th time in a row. EC2 does not say which bucket was empty: the request bucket is
// corrected first, then they take turns, and the instance bucket is lowered by ever more.
func (d *Dispatcher) OnThrottle(b *Batch, before, n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	if before%2 == 0 || b.action.instances == nil || b.DryRun {
		b.action.requests.OnThrottle(now, 1, 1)
		return
	}
	short := min(float64(n), float64(uint64(1)<<min(before/2, 20)))
	b.action.instances.OnThrottle(now, float64(n), short)
}

// LimitError returns the error of a request whose deadline comes before the tokens of its next
// call.
func (d *Dispatcher) LimitError(b *Batch, wait time.Duration) *instance.Error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return b.action.errLimit(time.Now(), wait)
}

// MaxIDs returns how many instances EC2 is known to take in one call with the verb of a batch.
func (d *Dispatcher) MaxIDs(b *Batch) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return b.action.maxIDs
}

// LowerMaxIDs notes that EC2 takes no more than n instances in one call, at least one. It
// reports whether that is news.
func (d *Dispatcher) LowerMaxIDs(b *Batch, n int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n = max(1, n); n >= b.action.maxIDs {
		return false
	}
	b.action.maxIDs = n
	return true
}

// Resolve gives an item its outcome.
func (d *Dispatcher) Resolve(it *Item, changes []instance.StateChange, err *instance.Error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	it.resolveLocked(changes, err)
}

// Present returns the items whose callers have not left.
func (d *Dispatcher) Present(items []*Item) []*Item {
	d.mu.Lock()
	defer d.mu.Unlock()
	return presentLocked(items)
}

func presentLocked(items []*Item) []*Item {
	return slices.DeleteFunc(slices.Clone(items), func(it *Item) bool { return it.callerLeft })
}

// ReportSent calls the Sent callbacks of items, of which a request is about to be written, and
// spends its tokens. It returns those whose callers have not left by then, and their instances.
func (d *Dispatcher) ReportSent(b *Batch, items []*Item) ([]*Item, []instance.ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if items = presentLocked(items); len(items) == 0 {
		return nil, nil
	}
	ids := DistinctIDs(items)
	d.spendLocked(b, len(ids))
	if !b.DryRun {
		report(items, func(c *instance.Command) func([]instance.ID) { return c.Sent })
	}
	return items, ids
}

// CountRequests returns the number of requests that items belong to.
func (d *Dispatcher) CountRequests(items []*Item) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.counts++
	for _, it := range items {
		if it.counted != d.counts {
			it.counted = d.counts
			n++
		}
	}
	return n
}

// ReportRequeued calls the Requeued callbacks of items: the last call changed nothing, and they
// are to be sent again.
func (d *Dispatcher) ReportRequeued(items []*Item) {
	d.mu.Lock()
	defer d.mu.Unlock()
	report(items, func(c *instance.Command) func([]instance.ID) { return c.Requeued })
}

// report calls a callback of each request with the instances of its items.
func report(items []*Item, callback func(*instance.Command) func([]instance.ID)) {
	for len(items) > 0 {
		r, ids, n := items[0].Request, items[0].IDs, 1
		for ; n < len(items) && items[n].Request == r; n++ {
			ids = append(ids, items[n].IDs...)
		}
		if tell := callback(&r.Command); tell != nil {
			tell(ids)
		}
		items = items[n:]
	}
}
