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
	// paid is true while the tokens of the next call are taken: one of the request bucket, and
	// paidIDs of the instance bucket. They are there from due on.
	paid    bool
	paidIDs int
	due     time.Time
	// acquired are the instances that this batch keeps busy.
	acquired []instance.ID
}

// batchBuilder is a batch in the making.
type batchBuilder struct {
	a *action
	// ids are the instances in the batch; several items may want one.
	ids     map[instance.ID]struct{}
	items   []*Item
	shares  []*share
	shareOf map[*tenantQueue]*share
	misfits int
}

// share is what of a tenant is in a batch.
type share struct {
	*tenantQueue
	taken   int // instances that no longer wait
	charged int // instances that it pays for
}

// buildBatch takes what may go out in one call: the tenant whose turn it is first, then of
// every tenant alike, in turns that double, until the batch is full.
func (a *action) buildBatch(turn *tenantQueue, now time.Time) *Batch {
	bq := turn.batches
	at := max(a.clock, turn.tenant.virtualTime)
	b := &batchBuilder{a: a, ids: make(map[instance.ID]struct{}), shareOf: make(map[*tenantQueue]*share)}
	var active []*share
	for q := turn; q != nil && b.hasRoom(); q = a.first(bq) {
		if s := b.share(q); b.fill(s, 1) {
			active = append(active, s)
		}
	}
	for quantum := 2; len(active) > 0 && b.hasRoom(); quantum *= 2 {
		active = slices.DeleteFunc(active, func(s *share) bool { return !b.fill(s, quantum) })
	}
	if len(b.ids) >= a.maxIDs {
		b.addSharing(bq)
	}
	charged := b.seal(at)
	bq.inFlight++
	a.inFlight++
	bq.lastSent = now
	batch := &Batch{Key: bq.key, Items: b.items, action: a, queue: bq, paid: true, paidIDs: charged, due: now}
	if !bq.key.DryRun {
		batch.acquired = DistinctIDs(b.items)
		for _, id := range batch.acquired {
			a.d.setBusy(id, batch)
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

// share returns what of a tenant is in the batch. Its queue is filed again in the end.
func (b *batchBuilder) share(q *tenantQueue) *share {
	s := b.shareOf[q]
	if s == nil {
		b.a.unfile(q)
		s = &share{tenantQueue: q}
		b.shares, b.shareOf[q] = append(b.shares, s), s
	}
	return s
}

// addSharing adds to a full batch the items that want nothing but instances in it.
func (b *batchBuilder) addSharing(bq *batchQueue) {
	for id := range b.ids {
		for it := range b.a.d.waiting[id] {
			b.a.steps++
			if it.queue.batches == bq && it.IDs[0] == id && b.fresh(it) == 0 {
				b.add(b.share(it.queue), it)
			}
		}
	}
}

// fresh is how many instances an item would add to the batch.
func (b *batchBuilder) fresh(it *Item) (n int) {
	for _, id := range it.IDs {
		if _, shared := b.ids[id]; !shared {
			n++
		}
	}
	return n
}

// fill adds items of a tenant until it has its turn. It is false when nothing more of it can
// go into this batch.
func (b *batchBuilder) fill(s *share, turn int) bool {
	for s.charged < turn && b.hasRoom() {
		if it := s.items.min(); it == nil || !b.add(s, it) {
			return false
		}
	}
	return s.items.len() > 0
}

// add adds an item. It is false when the item has to wait for tokens or for the next call.
func (b *batchBuilder) add(s *share, it *Item) bool {
	fresh := b.fresh(it)
	// A request for more than EC2 takes travels alone, and gets EC2's answer.
	if len(b.ids) > 0 && len(b.ids)+fresh > b.a.maxIDs {
		b.misfits++
		return false
	}
	if !it.Command.DryRun {
		if !b.a.enough(b.a.credit(s.tenant)-float64(s.charged), fresh) {
			return false
		}
		s.taken += len(it.IDs)
		s.charged += fresh
	}
	for _, id := range it.IDs {
		b.ids[id] = struct{}{}
	}
	b.items = append(b.items, it)
	b.a.take(it)
	return true
}

// seal charges the tenants for the call and their instances, and returns how many of these.
func (b *batchBuilder) seal(at float64) (charged int) {
	a := b.a
	a.requests.level--
	var tenants []*tenant
	for _, s := range b.shares {
		t := s.tenant
		charged += s.charged
		if a.instances != nil {
			a.instances.level -= float64(s.charged)
		}
		a.ids -= s.taken
		a.setShare(t, t.ids-s.taken, max(0, a.credit(t)-float64(s.charged)))
		if s.charged > 0 {
			tenants = append(tenants, t)
		}
	}
	if len(tenants) == 0 {
		tenants = append(tenants, b.shares[0].tenant)
	}
	a.chargeCall(tenants, at)
	for _, s := range b.shares {
		a.file(s.tenantQueue)
	}
	slices.SortFunc(b.items, func(x, y *Item) int {
		if x.before(y) {
			return -1
		}
		return 1
	})
	return charged
}
