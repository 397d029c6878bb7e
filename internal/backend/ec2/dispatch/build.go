package dispatch

import (
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// maxMisfits is how many items that do not fit into a batch are passed over, beyond as many as
// are in it, in search of smaller ones.
const maxMisfits = 16

// Batch is what goes out in one call, and is then repeated and divided until every item has
// its outcome.
type Batch struct {
	Key
	Items []*Item

	action *action
	queue  *batchQueue
	// prepaid is true while the tokens of the next call are taken: one of the request bucket, and
	// prepaidIDs of the instance bucket. They are there from tokensDue on.
	prepaid    bool
	prepaidIDs int
	tokensDue  time.Time
	// acquired are the instances that this batch keeps busy.
	acquired []instance.ID
}

// batchBuilder is a batch in the making.
type batchBuilder struct {
	a *action
	// ids are the instances in the batch; several items may want one.
	ids           map[instance.ID]struct{}
	items         []*Item
	contributions []*contribution
	byQueue       map[*tenantQueue]*contribution
	misfits       int
}

// contribution is what one tenant has in a batch.
type contribution struct {
	*tenantQueue
	dequeuedIDs int // instances of its items
	chargedIDs  int // the ones that were not in the batch before
}

// buildBatch builds a batch by round robin, starting with the first tenant: each tenant adds one
// instance, then up to a quantum that doubles every round, until the batch is full.
func (a *action) buildBatch(first *tenantQueue, now time.Time) *Batch {
	bq := first.batchQueue
	start := max(a.clock, first.tenant.virtualTime)
	b := &batchBuilder{a: a, ids: make(map[instance.ID]struct{}), byQueue: make(map[*tenantQueue]*contribution)}
	var active []*contribution
	for q := first; q != nil && b.hasRoom(); q = a.nextTenant(bq) {
		if c := b.contribution(q); b.fill(c, 1) {
			active = append(active, c)
		}
	}
	for quantum := 2; len(active) > 0 && b.hasRoom(); quantum *= 2 {
		active = slices.DeleteFunc(active, func(c *contribution) bool { return !b.fill(c, quantum) })
	}
	if len(b.ids) >= a.maxIDs {
		b.addCovered(bq)
	}
	charged := b.seal(start)
	bq.inFlight++
	a.inFlight++
	bq.lastSent = now
	batch := &Batch{Key: bq.key, Items: b.items, action: a, queue: bq, prepaid: true, prepaidIDs: charged, tokensDue: now}
	if !bq.key.DryRun {
		batch.acquired = DistinctIDs(b.items)
		for _, id := range batch.acquired {
			a.d.setBusyLocked(id, batch)
		}
	}
	return batch
}

func (b *batchBuilder) hasRoom() bool {
	if len(b.items) > 0 && b.items[0].Command.DryRun {
		return false // a dry run travels alone
	}
	return len(b.ids) < b.a.maxIDs && b.misfits <= len(b.items)+maxMisfits
}

// contribution returns what a tenant has in the batch. seal schedules its queue again.
func (b *batchBuilder) contribution(q *tenantQueue) *contribution {
	c := b.byQueue[q]
	if c == nil {
		b.a.unschedule(q)
		c = &contribution{tenantQueue: q}
		b.contributions, b.byQueue[q] = append(b.contributions, c), c
	}
	return c
}

// addCovered adds to a full batch the items whose instances are all in it.
func (b *batchBuilder) addCovered(bq *batchQueue) {
	for id := range b.ids {
		for it := range b.a.d.waitingByID[id] {
			b.a.steps++
			if it.queue.batchQueue == bq && it.IDs[0] == id && b.newIDs(it) == 0 {
				b.add(b.contribution(it.queue), it)
			}
		}
	}
}

// newIDs is how many instances an item would add to the batch.
func (b *batchBuilder) newIDs(it *Item) (n int) {
	for _, id := range it.IDs {
		if _, present := b.ids[id]; !present {
			n++
		}
	}
	return n
}

// fill adds items of a tenant until a quantum of instances is charged to it. It is false when the
// tenant can add nothing more to this batch.
func (b *batchBuilder) fill(c *contribution, quantum int) bool {
	for c.chargedIDs < quantum && b.hasRoom() {
		if it := c.items.min(); it == nil || !b.add(c, it) {
			return false
		}
	}
	return c.items.len() > 0
}

// add adds an item. It is false when the item has to wait for tokens or for the next call.
func (b *batchBuilder) add(c *contribution, it *Item) bool {
	added := b.newIDs(it)
	// A request for more than EC2 takes travels alone, and gets EC2's answer.
	if len(b.ids) > 0 && len(b.ids)+added > b.a.maxIDs {
		b.misfits++
		return false
	}
	if !it.Command.DryRun {
		if !b.a.enough(b.a.credit(c.tenant)-float64(c.chargedIDs), added) {
			return false
		}
		c.dequeuedIDs += len(it.IDs)
		c.chargedIDs += added
	}
	for _, id := range it.IDs {
		b.ids[id] = struct{}{}
	}
	b.items = append(b.items, it)
	b.a.dequeue(it)
	return true
}

// seal charges the tenants for a call that starts at a virtual time, and for their instances. It
// returns how many instances it charged.
func (b *batchBuilder) seal(start float64) (charged int) {
	a := b.a
	a.requests.level--
	var tenants []*tenant
	for _, c := range b.contributions {
		t := c.tenant
		charged += c.chargedIDs
		if a.instances != nil {
			a.instances.level -= float64(c.chargedIDs)
		}
		a.waitingIDs -= c.dequeuedIDs
		a.setCredit(t, t.waitingIDs-c.dequeuedIDs, max(0, a.credit(t)-float64(c.chargedIDs)))
		if c.chargedIDs > 0 {
			tenants = append(tenants, t)
		}
	}
	if len(tenants) == 0 {
		tenants = append(tenants, b.contributions[0].tenant)
	}
	a.chargeCall(tenants, start)
	for _, c := range b.contributions {
		a.schedule(c.tenantQueue)
	}
	slices.SortFunc(b.items, func(x, y *Item) int {
		if x.before(y) {
			return -1
		}
		return 1
	})
	return charged
}
