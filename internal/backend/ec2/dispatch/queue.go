package dispatch

import (
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// batchQueue holds the items that may travel together.
type batchQueue struct {
	key     Key
	tenants map[*tenant]*tenantQueue
	// eligible and ineligible hold the tenants whose next item has its tokens: those whose virtual
	// time is not ahead of the clock, by arrival, and the others by virtual time.
	eligible, ineligible heap[*tenantQueue]
	// arrivals holds all items that wait, blocked ones too.
	arrivals    heap[*Item]
	firstTenant *tenant   // whose item arrived first; nil for none and for dry runs
	inFlight    int       // batches
	lastSent    time.Time // when the last of them was built
}

// tenantQueue holds the items of one tenant in one batchQueue that no busy instance blocks, in
// order of arrival.
type tenantQueue struct {
	batchQueue   *batchQueue
	tenant       *tenant
	items        heap[*Item]
	waitingItems int // items, the blocked ones included

	// While its next item waits for tokens, fillLevelNeeded is the value of action.fillLevel at
	// which there are enough.
	fillLevelNeeded float64
	// virtualTime is the tenant's as of when the queue was put into batchQueue.ineligible.
	virtualTime float64
	// Positions in batchQueue.eligible, batchQueue.ineligible and action.awaitingTokens.
	eligiblePosition, ineligiblePosition, awaitingTokensPosition int
}

func (a *action) newBatchQueue(k Key) *batchQueue {
	return &batchQueue{
		key:     k,
		tenants: make(map[*tenant]*tenantQueue),
		eligible: heap[*tenantQueue]{
			less:     func(x, y *tenantQueue) bool { return x.items.min().before(y.items.min()) },
			position: func(q *tenantQueue) *int { return &q.eligiblePosition },
			steps:    &a.steps,
		},
		ineligible: heap[*tenantQueue]{
			less: func(x, y *tenantQueue) bool {
				if x.virtualTime != y.virtualTime {
					return x.virtualTime < y.virtualTime
				}
				return x.items.min().before(y.items.min())
			},
			position: func(q *tenantQueue) *int { return &q.ineligiblePosition },
			steps:    &a.steps,
		},
		arrivals: heap[*Item]{
			less:     (*Item).before,
			position: func(it *Item) *int { return &it.arrivalPosition },
			steps:    &a.steps,
		},
	}
}

func (a *action) newTenantQueue(bq *batchQueue, t *tenant) *tenantQueue {
	return &tenantQueue{
		batchQueue: bq,
		tenant:     t,
		items: heap[*Item]{
			less:     (*Item).before,
			position: func(it *Item) *int { return &it.queuePosition },
			steps:    &a.steps,
		},
	}
}

// tenantQueue returns the queue of a principal for a key, a new one if need be.
func (a *action) tenantQueue(k Key, principal string) *tenantQueue {
	t := a.tenant(principal)
	bq := a.batchQueues[k]
	if bq == nil {
		bq = a.newBatchQueue(k)
		a.batchQueues[k] = bq
	}
	q := bq.tenants[t]
	if q == nil {
		q = a.newTenantQueue(bq, t)
		bq.tenants[t], t.queues[bq] = q, q
	}
	return q
}

// add queues all items of a request.
func (a *action) add(r *Request) {
	q := a.tenantQueue(r.key(), r.Command.Principal)
	r.queue, r.waitingItems = q, len(r.items)
	bq, t := q.batchQueue, q.tenant
	a.waitingRequests.push(r)
	a.waitingItems += len(r.items)
	t.waitingItems += len(r.items)
	q.waitingItems += len(r.items)
	if !r.Command.DryRun {
		a.setWaitingIDs(t, t.waitingIDs+len(r.Command.IDs))
	}
	a.unschedule(q)
	for _, it := range r.items {
		bq.arrivals.push(it)
		if a.d.indexLocked(it); it.blockedBy == 0 {
			q.items.push(it)
		}
	}
	a.schedule(q)
	if bq.key.DryRun {
		a.addFirstInLine(t, 1)
	} else {
		a.updateFirstTenant(bq)
	}
}

// dequeue removes an item from its queues. The caller adjusts waitingIDs and schedules the tenant's
// queue again.
func (a *action) dequeue(it *Item) {
	r := it.Request
	q, t := r.queue, r.queue.tenant
	bq := q.batchQueue
	a.unschedule(q)
	q.items.remove(it)
	bq.arrivals.remove(it)
	a.d.unindexLocked(it)
	it.dispatched = true
	if r.waitingItems--; r.waitingItems == 0 {
		a.waitingRequests.remove(r)
	}
	a.waitingItems--
	t.waitingItems--
	q.waitingItems--
	if q.waitingItems == 0 {
		delete(bq.tenants, t)
		delete(t.queues, bq)
	}
	if bq.key.DryRun {
		a.addFirstInLine(t, -1)
	} else {
		a.updateFirstTenant(bq)
	}
	if t.waitingItems == 0 && !a.idle.contains(t) {
		t.forgetAt = t.virtualTime
		a.idle.push(t)
	}
}

// dequeueRequest removes the items of a request that are in no batch, and returns them.
func (a *action) dequeueRequest(r *Request) (left []*Item) {
	if r.waitingItems == 0 {
		return nil
	}
	q := r.queue
	ids := 0
	for _, it := range r.items {
		if !it.dispatched {
			a.dequeue(it)
			left = append(left, it)
			ids += len(it.IDs)
		}
	}
	if !r.Command.DryRun {
		a.setWaitingIDs(q.tenant, q.tenant.waitingIDs-ids)
	}
	a.schedule(q)
	a.dropUnused(q.batchQueue)
	return left
}

// schedule puts a tenant's queue among those that can go out or those that lack tokens. Its items
// may change only after unschedule.
func (a *action) schedule(q *tenantQueue) {
	a.unschedule(q)
	head := q.items.min()
	switch {
	case head == nil:
	case a.canAfford(q.tenant, head):
		a.scheduleSendable(q)
	default:
		q.fillLevelNeeded = q.tenant.emptyLevel + a.needed(head)
		a.awaitingTokens.push(q)
	}
}

func (a *action) scheduleSendable(q *tenantQueue) {
	bq := q.batchQueue
	if q.tenant.virtualTime > a.clock {
		q.virtualTime = q.tenant.virtualTime
		bq.ineligible.push(q)
	} else {
		bq.eligible.push(q)
	}
	a.sendable[bq] = struct{}{}
}

func (a *action) unschedule(q *tenantQueue) {
	bq := q.batchQueue
	bq.eligible.remove(q)
	bq.ineligible.remove(q)
	a.awaitingTokens.remove(q)
	if bq.eligible.len()+bq.ineligible.len() == 0 {
		delete(a.sendable, bq)
	}
}

// nextTenant returns the tenant that is to be served next in a batchQueue, with an item that has its
// tokens; nil for none. It schedules the queues again whose tenants have been charged since they
// were scheduled: once for each charge.
func (a *action) nextTenant(bq *batchQueue) *tenantQueue {
	for {
		a.steps++
		for bq.ineligible.len() > 0 && bq.ineligible.min().virtualTime <= a.clock {
			a.schedule(bq.ineligible.min())
		}
		q := bq.eligible.min()
		if q == nil {
			q = bq.ineligible.min()
		}
		if q == nil {
			return nil
		}
		if t := q.tenant.virtualTime; t > a.clock && (bq.eligible.contains(q) || q.virtualTime < t) {
			a.schedule(q) // charged since
			continue
		}
		if a.canAfford(q.tenant, q.items.min()) {
			return q
		}
		a.schedule(q)
	}
}

// indexLocked makes an item known under its instances. Dry runs need none of them.
func (d *Dispatcher) indexLocked(it *Item) {
	if it.Command.DryRun {
		return
	}
	for _, id := range it.IDs {
		items := d.waitingByID[id]
		if items == nil {
			items = make(map[*Item]struct{})
			d.waitingByID[id] = items
		}
		if _, again := items[it]; !again && d.busy[id] != nil {
			it.blockedBy++
		}
		items[it] = struct{}{}
	}
}

func (d *Dispatcher) unindexLocked(it *Item) {
	if it.Command.DryRun {
		return
	}
	for _, id := range it.IDs {
		if delete(d.waitingByID[id], it); len(d.waitingByID[id]) == 0 {
			delete(d.waitingByID, id)
		}
	}
}

// setBusyLocked keeps an instance busy for a batch. Items that want it leave their queues until it
// is free.
func (d *Dispatcher) setBusyLocked(id instance.ID, b *Batch) {
	d.busy[id] = b
	for it := range d.waitingByID[id] {
		a := d.actions[it.Command.Verb]
		a.steps++
		if it.blockedBy++; it.blockedBy == 1 {
			a.unschedule(it.queue)
			it.queue.items.remove(it)
			a.schedule(it.queue)
		}
	}
}

func (d *Dispatcher) setFreeLocked(id instance.ID) {
	delete(d.busy, id)
	for it := range d.waitingByID[id] {
		a := d.actions[it.Command.Verb]
		a.steps++
		if it.blockedBy--; it.blockedBy == 0 {
			a.unschedule(it.queue)
			it.queue.items.push(it)
			a.schedule(it.queue)
		}
	}
}

// updateFirstTenant finds out whose item arrived first.
func (a *action) updateFirstTenant(bq *batchQueue) {
	var front *tenant
	if it := bq.arrivals.min(); it != nil {
		front = it.queue.tenant
	}
	if front == bq.firstTenant {
		return
	}
	a.addFirstInLine(bq.firstTenant, -1)
	a.addFirstInLine(front, 1)
	bq.firstTenant = front
}

func (a *action) addFirstInLine(t *tenant, n int) {
	if t == nil {
		return
	}
	if t.firstInLine > 0 {
		a.firstInLine.remove(float64(t.firstInLine), t)
	}
	if t.firstInLine += n; t.firstInLine > 0 {
		a.firstInLine.insert(float64(t.firstInLine), t)
	}
}

// dropUnused drops a batchQueue if it is empty, and the tenants that are idle and not ahead of the
// clock.
func (a *action) dropUnused(bq *batchQueue) {
	if bq.arrivals.len() == 0 && bq.inFlight == 0 {
		delete(a.batchQueues, bq.key)
	}
	for a.idle.len() > 0 && a.idle.min().forgetAt <= a.clock {
		t := a.idle.min()
		a.idle.remove(t)
		switch {
		case t.waitingItems > 0:
		case t.virtualTime > a.clock:
			t.forgetAt = t.virtualTime
			a.idle.push(t)
		default:
			delete(a.tenants, t.principal)
		}
	}
	if a.waitingItems == 0 && len(a.tenants) > 0 {
		a.tenants = make(map[string]*tenant)
		a.idle.list = nil
		a.clock, a.fillLevel, a.heldCredit = 0, 0, 0
	}
}
