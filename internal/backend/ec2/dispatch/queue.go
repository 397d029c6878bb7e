package dispatch

import (
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// batchQueue holds the items that may travel together.
type batchQueue struct {
	key     Key
	tenants map[*tenant]*tenantQueue
	// ready and later hold the tenants whose next item can go out: those whose turn it is by
	// arrival, and by virtual time those that have had more than their share of the calls.
	ready, later heap[*tenantQueue]
	// arrivals holds all items that wait, blocked ones too.
	arrivals heap[*Item]
	front    *tenant   // whose item arrived first; nil for none
	inFlight int       // batches
	lastSent time.Time // when the last of them was built
}

// tenantQueue holds the items of one tenant in one batchQueue that no busy instance blocks, in
// order of arrival.
type tenantQueue struct {
	batches *batchQueue
	tenant  *tenant
	items   heap[*Item]
	waiting int // items, the blocked ones included

	// While its next item waits for tokens, sharedNeeded is the value of action.shared at
	// which there are enough.
	sharedNeeded float64
	// virtualTime is the tenant's as of when the queue was put into batchQueue.later.
	virtualTime float64
	// Positions in batchQueue.ready, batchQueue.later and action.short.
	readyPosition, laterPosition, shortPosition int
}

func (a *action) newBatchQueue(k Key) *batchQueue {
	return &batchQueue{
		key:     k,
		tenants: make(map[*tenant]*tenantQueue),
		ready: heap[*tenantQueue]{
			before:   func(x, y *tenantQueue) bool { return x.items.min().before(y.items.min()) },
			position: func(q *tenantQueue) *int { return &q.readyPosition },
			steps:    &a.steps,
		},
		later: heap[*tenantQueue]{
			before: func(x, y *tenantQueue) bool {
				if x.virtualTime != y.virtualTime {
					return x.virtualTime < y.virtualTime
				}
				return x.items.min().before(y.items.min())
			},
			position: func(q *tenantQueue) *int { return &q.laterPosition },
			steps:    &a.steps,
		},
		arrivals: heap[*Item]{
			before:   (*Item).before,
			position: func(it *Item) *int { return &it.arrivalPosition },
			steps:    &a.steps,
		},
	}
}

func (a *action) newTenantQueue(bq *batchQueue, t *tenant) *tenantQueue {
	return &tenantQueue{
		batches: bq,
		tenant:  t,
		items: heap[*Item]{
			before:   (*Item).before,
			position: func(it *Item) *int { return &it.readyPosition },
			steps:    &a.steps,
		},
	}
}

// tenantQueue returns the queue of a principal for a key, a new one if need be.
func (a *action) tenantQueue(k Key, principal string) *tenantQueue {
	t := a.tenant(principal)
	bq := a.batches[k]
	if bq == nil {
		bq = a.newBatchQueue(k)
		a.batches[k] = bq
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
	r.queue, r.waiting = q, len(r.items)
	bq, t := q.batches, q.tenant
	a.oldest.push(r)
	a.waiting += len(r.items)
	t.waiting += len(r.items)
	q.waiting += len(r.items)
	if !r.Command.DryRun {
		a.setWaiting(t, t.ids+len(r.Command.IDs))
	}
	a.unfile(q)
	for _, it := range r.items {
		bq.arrivals.push(it)
		if a.d.index(it); it.blockedBy == 0 {
			q.items.push(it)
		}
	}
	a.file(q)
	if bq.key.DryRun {
		a.addFronts(t, 1)
	} else {
		a.setFront(bq)
	}
}

// take removes an item from its queues; its ids are the caller's to discount. The tenant's
// queue has to be filed again.
func (a *action) take(it *Item) {
	r := it.Request
	q, t := r.queue, r.queue.tenant
	bq := q.batches
	a.unfile(q)
	q.items.remove(it)
	bq.arrivals.remove(it)
	a.d.unindex(it)
	it.dispatched = true
	if r.waiting--; r.waiting == 0 {
		a.oldest.remove(r)
	}
	a.waiting--
	t.waiting--
	q.waiting--
	if q.waiting == 0 {
		delete(bq.tenants, t)
		delete(t.queues, bq)
	}
	if bq.key.DryRun {
		a.addFronts(t, -1)
	} else {
		a.setFront(bq)
	}
	if t.waiting == 0 && !a.idle.contains(t) {
		t.idleUntil = t.virtualTime
		a.idle.push(t)
	}
}

// leave removes what of a request is in no batch, and returns it.
func (a *action) leave(r *Request) (left []*Item) {
	if r.waiting == 0 {
		return nil
	}
	q := r.queue
	ids := 0
	for _, it := range r.items {
		if !it.dispatched {
			a.take(it)
			left = append(left, it)
			ids += len(it.IDs)
		}
	}
	if !r.Command.DryRun {
		a.setWaiting(q.tenant, q.tenant.ids-ids)
	}
	a.file(q)
	a.tidy(q.batches)
	return left
}

// file puts a tenant's queue where it belongs: among those that can go out, or among those
// that lack tokens.
func (a *action) file(q *tenantQueue) {
	a.unfile(q)
	head := q.items.min()
	switch {
	case head == nil:
	case a.canAfford(q.tenant, head):
		a.fileReady(q)
	default:
		q.sharedNeeded = q.tenant.empty + a.needed(head)
		a.short.push(q)
	}
}

func (a *action) fileReady(q *tenantQueue) {
	bq := q.batches
	if q.tenant.virtualTime > a.clock {
		q.virtualTime = q.tenant.virtualTime
		bq.later.push(q)
	} else {
		bq.ready.push(q)
	}
	a.ready[bq] = struct{}{}
}

func (a *action) unfile(q *tenantQueue) {
	bq := q.batches
	bq.ready.remove(q)
	bq.later.remove(q)
	a.short.remove(q)
	if bq.ready.len()+bq.later.len() == 0 {
		delete(a.ready, bq)
	}
}

// first returns the tenant whose turn it is in a batchQueue, with an item that can go out;
// nil for none. It files the queues again whose tenants have been charged since: once for each
// charge.
func (a *action) first(bq *batchQueue) *tenantQueue {
	for {
		a.steps++
		for bq.later.len() > 0 && bq.later.min().virtualTime <= a.clock {
			a.file(bq.later.min())
		}
		q := bq.ready.min()
		if q == nil {
			q = bq.later.min()
		}
		if q == nil {
			return nil
		}
		if late := q.tenant.virtualTime; late > a.clock && (bq.ready.contains(q) || q.virtualTime < late) {
			a.file(q) // it has had a call since
			continue
		}
		if a.canAfford(q.tenant, q.items.min()) {
			return q
		}
		a.file(q)
	}
}

// index makes an item known under its instances. Dry runs need none of them.
func (d *Dispatcher) index(it *Item) {
	if it.Command.DryRun {
		return
	}
	for _, id := range it.IDs {
		items := d.waiting[id]
		if items == nil {
			items = make(map[*Item]struct{})
			d.waiting[id] = items
		}
		if _, again := items[it]; !again && d.busy[id] != nil {
			it.blockedBy++
		}
		items[it] = struct{}{}
	}
}

func (d *Dispatcher) unindex(it *Item) {
	if it.Command.DryRun {
		return
	}
	for _, id := range it.IDs {
		if delete(d.waiting[id], it); len(d.waiting[id]) == 0 {
			delete(d.waiting, id)
		}
	}
}

// setBusy keeps an instance busy for a batch. Items that want it leave their queues until it
// is free.
func (d *Dispatcher) setBusy(id instance.ID, b *Batch) {
	d.busy[id] = b
	for it := range d.waiting[id] {
		a := d.actions[it.Command.Verb]
		a.steps++
		if it.blockedBy++; it.blockedBy == 1 {
			a.unfile(it.queue)
			it.queue.items.remove(it)
			a.file(it.queue)
		}
	}
}

func (d *Dispatcher) setFree(id instance.ID) {
	delete(d.busy, id)
	for it := range d.waiting[id] {
		a := d.actions[it.Command.Verb]
		a.steps++
		if it.blockedBy--; it.blockedBy == 0 {
			a.unfile(it.queue)
			it.queue.items.push(it)
			a.file(it.queue)
		}
	}
}

// setFront finds out whose item arrived first.
func (a *action) setFront(bq *batchQueue) {
	var front *tenant
	if it := bq.arrivals.min(); it != nil {
		front = it.queue.tenant
	}
	if front == bq.front {
		return
	}
	a.addFronts(bq.front, -1)
	a.addFronts(front, 1)
	bq.front = front
}

func (a *action) addFronts(t *tenant, n int) {
	if t == nil {
		return
	}
	if t.fronts > 0 {
		a.fronts.remove(float64(t.fronts), t)
	}
	if t.fronts += n; t.fronts > 0 {
		a.fronts.insert(float64(t.fronts), t)
	}
}

// tidy drops what is no longer needed.
func (a *action) tidy(bq *batchQueue) {
	if bq.arrivals.len() == 0 && bq.inFlight == 0 {
		delete(a.batches, bq.key)
	}
	for a.idle.len() > 0 && a.idle.min().idleUntil <= a.clock {
		t := a.idle.min()
		a.idle.remove(t)
		switch {
		case t.waiting > 0:
		case t.virtualTime > a.clock:
			t.idleUntil = t.virtualTime
			a.idle.push(t)
		default:
			delete(a.tenants, t.principal)
		}
	}
	if a.waiting == 0 && len(a.tenants) > 0 {
		a.tenants = make(map[string]*tenant)
		a.idle.list = nil
		a.clock, a.shared, a.held = 0, 0, 0
	}
}
