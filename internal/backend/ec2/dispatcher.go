package ec2

import (
	"cmp"
	"container/heap"
	"math"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

const (
	// maxIDs is how many instances a call is for at most. It is documented for
	// TerminateInstances; EC2 says when it takes fewer.
	maxIDs = 1000
	// slowCallAfter is how long a call may take before the next of its kind goes out beside it.
	slowCallAfter = time.Second
	// maxBatches is how many batches of a kind are on their way at most.
	maxBatches = 4
	// reservedShare is the part of a request bucket that is kept for real stops and
	// terminations: reboots and dry runs leave it alone.
	reservedShare = 0.2
)

// dispatcher gathers the calls of one verb into batches. The lock of the backend guards it.
type dispatcher struct {
	verb instance.Verb
	// requests has a token for each call; StopInstances and RebootInstances share one.
	requests *bucket
	// instances has a token for each instance of a call; nil for RebootInstances.
	instances *bucket
	// maxIDs is how many instances EC2 is known to take in one call.
	maxIDs       int
	batches      map[batchKey]*batchQueue
	tenants      map[string]*tenant
	clock        float64 // virtual time, in calls
	timer        *time.Timer
	callers, ids int    // waiting
	seq          uint64 // of the newest tenant
	idle         idleTenants
	// fronts has the tenants that are first in any lane, by how many those are.
	fronts tree

	// shared is how many tokens of the instance bucket each of those got who lack some.
	shared float64
	// filling has them, by the value of shared at which they have all that they ask for.
	filling    tree
	fillingIDs int     // for which they wait
	held       float64 // the credit of all others

	// short has the queues in the lanes that are open, if anybody in them waits for
	// tokens only.
	short shortQueues
	// stale is true when the queues have to be looked at again.
	stale bool
	// opensAt is when another lane opens; zero for never.
	opensAt time.Time
	// visits is how many callers, tenants and queues were looked at.
	visits int
}

// batchQueue holds the calls of one kind.
type batchQueue struct {
	batchKey
	queues map[*tenant]*queue
	// waiting are the callers in the order of arrival; those who have left or gone out stay
	// until they are the more. live still wait, the first of them at pos.
	waiting   []*request
	live, pos int
	front     *tenant   // of the first; nil for none
	rounds    int       // on their way
	newest    time.Time // when the last of them began
}

func newDesk(verb instance.Verb, requests, instances *bucket, pump func(*dispatcher)) *dispatcher {
	d := &dispatcher{
		verb:      verb,
		requests:  requests,
		instances: instances,
		maxIDs:    maxIDs,
		batches:   make(map[batchKey]*batchQueue),
		tenants:   make(map[string]*tenant),
	}
	d.fronts.steps, d.filling.steps, d.short.steps = &d.visits, &d.visits, &d.visits
	d.timer = time.AfterFunc(time.Hour, func() { pump(d) })
	d.timer.Stop()
	return d
}

// reserve is how many request tokens a call of a kind leaves untouched.
func (d *dispatcher) reserve(k batchKey) float64 {
	urgent := k.verb == instance.VerbStop || k.verb == instance.VerbTerminate
	if k.dryRun == 0 && urgent || k.verb == instance.VerbStart {
		return 0
	}
	return math.Floor(d.requests.capacity * reservedShare)
}

// enqueue adds a caller to those who wait.
func (d *dispatcher) enqueue(c *request) {
	t := d.tenant(c.cmd.Principal)
	k := c.key()
	l := d.batches[k]
	if l == nil {
		l = &batchQueue{batchKey: k, queues: make(map[*tenant]*queue)}
		d.batches[k] = l
	}
	q := l.queues[t]
	if q == nil {
		q = &queue{lane: l, tenant: t}
		l.queues[t] = q
	}
	c.tenant, c.queue = t, q
	d.callers++
	t.callers++
	if !c.cmd.DryRun {
		d.setWaiting(t, t.ids+len(c.waiting))
	}
	q.list = append(q.list, c)
	q.live++
	l.waiting = append(l.waiting, c)
	l.live++
	d.setFront(l)
}

func (d *dispatcher) tenant(principal string) *tenant {
	t := d.tenants[principal]
	if t == nil {
		d.seq++
		t = &tenant{principal: principal, seq: d.seq}
		d.tenants[principal] = t
	}
	return t
}

// leave removes what of a caller has not gone out.
func (d *dispatcher) leave(c *request) {
	if c.isWaiting() {
		d.take(c, nil)
		d.tidy(c.queue.lane)
	}
}

// tidy drops what nobody needs any more.
func (d *dispatcher) tidy(l *batchQueue) {
	if l.live == 0 && l.rounds == 0 {
		delete(d.batches, l.batchKey)
	}
	for len(d.idle) > 0 && d.idle[0].until <= d.clock {
		d.visits++
		t := heap.Pop(&d.idle).(idleTenant).tenant
		switch {
		case t.callers > 0:
			t.idle = false
		case t.calls > d.clock:
			heap.Push(&d.idle, idleTenant{t, t.calls})
		default:
			delete(d.tenants, t.principal)
		}
	}
	if d.callers == 0 && len(d.tenants) > 0 {
		d.tenants, d.idle = make(map[string]*tenant), nil
		d.clock, d.shared, d.held = 0, 0, 0
	}
}

// opens returns how long it takes until another batch of a lane may go out beside those
// on their way; negative when only the end of one of them helps.
func (l *batchQueue) opens(now time.Time) time.Duration {
	switch {
	case l.rounds == 0:
		return 0
	case l.rounds >= maxBatches:
		return -1
	}
	return max(0, slowCallAfter-now.Sub(l.newest))
}

// untilOpen returns how long it takes until a lane and the request bucket allow a batch;
// negative when only the end of another one helps.
func (d *dispatcher) untilOpen(l *batchQueue, now time.Time) time.Duration {
	if opens := l.opens(now); opens != 0 {
		return opens
	}
	return d.requests.until(now, 1+d.reserve(l.batchKey))
}

// candidate is a lane from which a batch could go out, and the tenant whose turn it is.
type candidate struct {
	*batchQueue
	turn *tenant
	at   float64 // virtual time
	seq  uint64
}

// candidates returns the lanes that may send a batch, those first whose turn it is, and
// how long it takes until there may be others.
func (d *dispatcher) candidates(now time.Time, free func(instance.ID) bool) (list []candidate, wait time.Duration) {
	wait = never
	for _, l := range d.batches {
		d.visits++
		if l.live == 0 {
			continue
		}
		opens := d.untilOpen(l, now)
		switch {
		case opens < 0:
			continue
		case opens > 0:
			wait = min(wait, opens)
			continue
		}
		next := candidate{batchQueue: l}
		for _, c := range l.waiting {
			d.visits++
			if !c.isWaiting() || next.turn != nil && d.virtualTime(c.tenant) >= next.at || !c.mayGo(free) {
				continue
			}
			next.turn, next.at, next.seq = c.tenant, d.virtualTime(c.tenant), c.seq
		}
		if next.turn != nil {
			list = append(list, next)
		}
	}
	slices.SortFunc(list, func(x, y candidate) int {
		return cmp.Or(cmp.Compare(x.at, y.at), cmp.Compare(x.seq, y.seq))
	})
	return list, wait
}

// never is longer than anybody waits.
const never = time.Duration(math.MaxInt64)

// mayGo reports whether any unit of the caller has only ids that no call is about.
func (c *request) mayGo(free func(instance.ID) bool) bool {
	switch {
	case c.cmd.DryRun:
		return true
	case c.divisible():
		return slices.ContainsFunc(c.waiting, free)
	}
	return !slices.ContainsFunc(c.waiting, func(id instance.ID) bool { return !free(id) })
}
