package ec2

import (
	"container/heap"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// queue has the callers of one tenant in one lane, in the order of arrival. Those who have
// left or gone out stay until they are the more.
type queue struct {
	lane   *batchQueue
	tenant *tenant
	list   []*request
	live   int
	// head is the first caller that could go out if its tenant had the tokens, as long as
	// that is all it waits for; the callers before pos cannot go out whatever there is.
	head  *request
	pos   int
	key   float64 // the value of desk.shared at which the head can go out
	index int     // in desk.short
}

// shortQueues is a heap of queues whose head waits for tokens, the first to have enough
// first.
type shortQueues struct {
	list  []*queue
	steps *int
}

func (s *shortQueues) Len() int           { return len(s.list) }
func (s *shortQueues) Less(i, j int) bool { *s.steps++; return s.list[i].key < s.list[j].key }
func (s *shortQueues) Swap(i, j int) {
	s.list[i], s.list[j] = s.list[j], s.list[i]
	s.list[i].index, s.list[j].index = i, j
}

func (s *shortQueues) Push(x any) {
	q := x.(*queue)
	q.index = len(s.list)
	s.list = append(s.list, q)
}

func (s *shortQueues) Pop() any {
	last := len(s.list) - 1
	q := s.list[last]
	s.list[last] = nil
	s.list = s.list[:last]
	return q
}

// idleTenants is a heap of tenants with no callers, and until when what they have used
// counts.
type idleTenants []idleTenant

type idleTenant struct {
	*tenant
	until float64
}

func (h idleTenants) Len() int           { return len(h) }
func (h idleTenants) Less(i, j int) bool { return h[i].until < h[j].until }
func (h idleTenants) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *idleTenants) Push(x any)        { *h = append(*h, x.(idleTenant)) }
func (h *idleTenants) Pop() any {
	last := len(*h) - 1
	t := (*h)[last]
	*h = (*h)[:last]
	return t
}

func (c *request) isWaiting() bool { return len(c.waiting) > 0 }

// compact returns the callers of a list that still wait, and how many of them were before
// pos.
func (d *dispatcher) compact(list []*request, pos int) ([]*request, int) {
	before := 0
	for _, c := range list[:pos] {
		if c.isWaiting() {
			before++
		}
	}
	d.visits += len(list)
	return slices.DeleteFunc(list, func(c *request) bool { return !c.isWaiting() }), before
}

// maxGone is how many callers may have gone from a list that is left as it is.
const maxGone = 16

// take says that of a caller only the rest waits any longer.
func (d *dispatcher) take(c *request, rest []instance.ID) {
	q, t := c.queue, c.tenant
	taken := len(c.waiting) - len(rest)
	c.waiting = rest
	if q.head == c && len(rest) == 0 {
		d.setHead(q, nil)
	}
	if !c.cmd.DryRun {
		d.setWaiting(t, t.ids-taken)
	}
	if len(rest) > 0 {
		return
	}
	l := q.lane
	d.callers--
	t.callers--
	q.live--
	l.live--
	if q.live == 0 {
		delete(l.queues, t)
	} else if len(q.list) > 2*q.live+maxGone {
		q.list, q.pos = d.compact(q.list, q.pos)
	}
	if len(l.waiting) > 2*l.live+maxGone {
		l.waiting, l.pos = d.compact(l.waiting, l.pos)
	}
	d.setFront(l)
	if t.callers == 0 && !t.idle {
		t.idle = true
		heap.Push(&d.idle, idleTenant{t, t.calls})
	}
}

// setFront finds who is first in a lane.
func (d *dispatcher) setFront(l *batchQueue) {
	for l.pos < len(l.waiting) && !l.waiting[l.pos].isWaiting() {
		d.visits++
		l.pos++
	}
	var front *tenant
	if l.pos < len(l.waiting) {
		front = l.waiting[l.pos].tenant
	}
	if front == l.front {
		return
	}
	d.addFronts(l.front, -1)
	d.addFronts(front, 1)
	l.front = front
}

func (d *dispatcher) addFronts(t *tenant, n int) {
	if t == nil {
		return
	}
	if t.fronts > 0 {
		d.fronts.remove(float64(t.fronts), t)
	}
	if t.fronts += n; t.fronts > 0 {
		d.fronts.insert(float64(t.fronts), t)
	}
}

// setHead says which caller of a queue waits for nothing but tokens; nil for none.
func (d *dispatcher) setHead(q *queue, c *request) {
	if q.head != nil {
		heap.Remove(&d.short, q.index)
		q.tenant.shorts--
	}
	if q.head = c; c != nil {
		q.key = q.tenant.empty + d.needed(c)
		q.tenant.shorts++
		heap.Push(&d.short, q)
	}
}

// clearHeads forgets what the queues wait for.
func (d *dispatcher) clearHeads() {
	for _, q := range d.short.list {
		d.visits++
		q.head = nil
		q.tenant.shorts = 0
	}
	d.short.list = nil
	d.stale = false
}

// needed is the credit with which any of a caller can go out. Where the bucket could never
// hold so many, a full one is enough.
func (d *dispatcher) needed(c *request) float64 {
	switch {
	case d.instances == nil || c.cmd.DryRun:
		return 0
	case c.divisible():
		return 1
	}
	return min(float64(len(c.waiting)), d.instances.capacity)
}

func (d *dispatcher) canAfford(c *request) bool {
	return d.instances == nil || d.needed(c)-d.credit(c.tenant) <= epsilon
}

// bucketFull reports whether no more tokens come.
func (d *dispatcher) bucketFull() bool {
	return d.instances != nil && d.instances.capacity-d.instances.level <= epsilon
}

// due reports whether a batch may go out for another reason than that somebody has come.
func (d *dispatcher) due(now time.Time) bool {
	d.allocate(now)
	if d.stale || !d.opensAt.IsZero() && !now.Before(d.opensAt) {
		return true
	}
	return d.short.Len() > 0 && (d.short.list[0].key <= d.shared+epsilon || d.bucketFull())
}

// arm sets the timer for the next time at which a batch may go out.
func (d *dispatcher) arm(now time.Time) {
	wait := never
	if !d.opensAt.IsZero() {
		wait = d.opensAt.Sub(now)
	}
	if d.short.Len() > 0 {
		first := min(d.timeUntilShared(now, d.short.list[0].key), d.instances.until(now, d.instances.capacity))
		wait = min(wait, max(time.Millisecond, first))
	}
	if d.stale {
		wait = min(wait, time.Millisecond)
	}
	if wait < never {
		d.timer.Reset(wait)
	} else {
		d.timer.Stop()
	}
}

// pumpDue pumps if a batch may go out.
func (b *Backend) pumpDue(d *dispatcher) {
	if b.closed {
		return
	}
	now := time.Now()
	if d.due(now) {
		b.pump(d)
		return
	}
	d.arm(now)
}

// pumpEntered sends what can go out now that a caller has come: that is the caller, and
// whoever may travel with it. Where it has to wait, nobody else is looked at.
func (b *Backend) pumpEntered(d *dispatcher, c *request) {
	now := time.Now()
	if d.due(now) {
		b.pump(d)
		return
	}
	q := c.queue
	opens := d.untilOpen(q.lane, now)
	switch {
	case opens < 0:
	case opens > 0:
		if at := now.Add(opens); d.opensAt.IsZero() || at.Before(d.opensAt) {
			d.opensAt = at
			d.arm(now)
		}
	case q.head != nil || !c.mayGo(b.isFree):
	case d.canAfford(c) || d.bucketFull():
		b.pump(d)
	default:
		q.pos = len(q.list) - 1
		d.setHead(q, c)
		d.arm(now)
	}
}

// leave takes away what of a caller has not gone out, and sends what can go out without it:
// that is who was behind it, or has tokens that it had.
func (b *Backend) leave(d *dispatcher, c *request) {
	if !c.isWaiting() {
		return
	}
	q := c.queue
	wasHead := q.head == c
	d.leave(c)
	if b.closed {
		return
	}
	now := time.Now()
	if d.due(now) {
		b.pump(d)
		return
	}
	if next := b.nextHead(d, q); wasHead && next != nil {
		if d.canAfford(next) || d.bucketFull() {
			b.pump(d)
			return
		}
		d.setHead(q, next)
	}
	d.arm(now)
}

// nextHead returns the first caller of a queue, from pos on, whose instances are free.
func (b *Backend) nextHead(d *dispatcher, q *queue) *request {
	for ; q.live > 0 && q.pos < len(q.list); q.pos++ {
		d.visits++
		if c := q.list[q.pos]; c.isWaiting() && c.mayGo(b.isFree) {
			return c
		}
	}
	return nil
}

func (b *Backend) isFree(id instance.ID) bool { return b.busy[id] == nil }
