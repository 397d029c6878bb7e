package dispatch

import (
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

const (
	// MaxIDs is how many instances a call is for at most. It is documented for
	// TerminateInstances; EC2 says when it takes fewer.
	MaxIDs = 1000
	// SlowCallAfter is how long a call may take before the next of its kind goes out beside it.
	SlowCallAfter = time.Second
	// MaxBatches is how many batches with the same key may be in flight.
	MaxBatches = 4
	// reservedShare is the part of a request bucket that reboots and dry runs leave for real
	// stops and terminations.
	reservedShare = 0.2
	// never is longer than anything waits.
	never = time.Duration(math.MaxInt64)
)

// Buckets are the token buckets of an action: Requests has a token for each call, Instances
// one for each instance of a call; nil for none. Actions may share a bucket.
type Buckets struct{ Requests, Instances *Bucket }

// Dispatcher queues requests and builds batches from them. It is safe for concurrent use, and
// one lock guards it with all its requests, batches and buckets.
type Dispatcher struct {
	wake    chan struct{} // holds one signal: a batch may have become possible
	closing chan struct{}

	mu      sync.Mutex
	closed  bool
	seq     uint64
	counts  uint64 // calls of CountRequests
	actions map[instance.Verb]*action
	order   []*action // in which Next looks for a batch
	// busy are the instances that a call is about. No other call that may change them goes
	// out meanwhile, so that their changes happen in the order of their times.
	busy  map[instance.ID]*Batch
	freed *sync.Cond // signalled when busy or closed changes
	// waitingByID are the items in no batch, by the instances that they want.
	waitingByID map[instance.ID]map[*Item]struct{}
}

// action holds what waits of one verb, and divides its tokens. The dispatcher's lock guards it and is
// held while its methods run.
type action struct {
	d           *Dispatcher
	verb        instance.Verb
	requests    *Bucket
	instances   *Bucket
	maxIDs      int // how many instances EC2 is known to take in one call
	batchQueues map[Key]*batchQueue
	sendable    map[*batchQueue]struct{} // those with an item that has its tokens
	tenants     map[string]*tenant
	tenantSeq   uint64
	clock       float64 // virtual time, in calls
	// waitingItems and waitingIDs are how many items and instances wait.
	waitingItems, waitingIDs int
	inFlight                 int            // batches
	waitingRequests          heap[*Request] // those with items that wait, in order of arrival
	idle                     heap[*tenant]  // tenants without items, by tenant.forgetAt
	firstInLine              tree           // tenants by tenant.firstInLine, if it is not 0

	fillLevel      float64            // how many instance tokens each filling tenant was given
	filling        tree               // tenants that lack tokens, by tenant.fullLevel
	fillingIDs     int                // how many instances they wait for
	heldCredit     float64            // the credits of all other tenants
	awaitingTokens heap[*tenantQueue] // queues whose next item waits for tokens
	steps          int                // how many items, tenants and queues were looked at
}

// New returns a dispatcher for the verbs that have buckets.
func New(buckets map[instance.Verb]Buckets) *Dispatcher {
	d := &Dispatcher{
		wake:        make(chan struct{}, 1),
		closing:     make(chan struct{}),
		actions:     make(map[instance.Verb]*action),
		busy:        make(map[instance.ID]*Batch),
		waitingByID: make(map[instance.ID]map[*Item]struct{}),
	}
	d.freed = sync.NewCond(&d.mu)
	for _, verb := range []instance.Verb{instance.VerbStart, instance.VerbStop, instance.VerbTerminate, instance.VerbReboot} {
		if own, ok := buckets[verb]; ok {
			a := newAction(d, verb, own)
			d.actions[verb], d.order = a, append(d.order, a)
		}
	}
	return d
}

func newAction(d *Dispatcher, verb instance.Verb, buckets Buckets) *action {
	a := &action{
		d:           d,
		verb:        verb,
		requests:    buckets.Requests,
		instances:   buckets.Instances,
		maxIDs:      MaxIDs,
		batchQueues: make(map[Key]*batchQueue),
		sendable:    make(map[*batchQueue]struct{}),
		tenants:     make(map[string]*tenant),
	}
	a.waitingRequests = heap[*Request]{
		less:     func(x, y *Request) bool { return x.seq < y.seq },
		position: func(r *Request) *int { return &r.waitingPosition },
		steps:    &a.steps,
	}
	a.firstInLine.steps, a.filling.steps = &a.steps, &a.steps
	a.idle = heap[*tenant]{
		less:     func(x, y *tenant) bool { return x.forgetAt < y.forgetAt },
		position: func(t *tenant) *int { return &t.idlePosition },
		steps:    &a.steps,
	}
	a.awaitingTokens = heap[*tenantQueue]{
		less:     func(x, y *tenantQueue) bool { return x.fillLevelNeeded < y.fillLevelNeeded },
		position: func(q *tenantQueue) *int { return &q.awaitingTokensPosition },
		steps:    &a.steps,
	}
	return a
}

// Close fails all requests that wait. Next returns nil from now on, and batches acquire
// nothing more.
func (d *Dispatcher) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	d.closed = true
	close(d.closing)
	d.failWaitingLocked(ErrClosing)
	d.freed.Broadcast()
}

// ErrClosing returns the error of requests that were not carried out because the process ends.
func ErrClosing() *instance.Error {
	return &instance.Error{
		Kind:       instance.KindUnavailable,
		Reason:     instance.ReasonBackendClosing,
		Message:    "this process is ending; nothing was changed by this call",
		RetryAfter: time.Second,
	}
}

// Supports reports whether there is a queue for a verb.
func (d *Dispatcher) Supports(verb instance.Verb) bool { return d.actions[verb] != nil }

// Enqueue queues a request, or returns why not: its deadline would pass before its turn, or
// the dispatcher is closed.
func (d *Dispatcher) Enqueue(r *Request) *instance.Error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosing()
	}
	d.seq++
	r.seq = d.seq
	a := d.actions[r.Command.Verb]
	now := time.Now()
	if err := a.checkDeadline(r, now); err != nil {
		return err
	}
	r.Enqueued = now
	a.add(r)
	d.signal()
	return nil
}

// signal has Next look for another batch.
func (d *Dispatcher) signal() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// checkDeadline returns the error of a request that cannot be served within its deadline.
func (a *action) checkDeadline(r *Request, now time.Time) *instance.Error {
	if r.Deadline.IsZero() {
		return nil
	}
	t := a.tenants[r.Command.Principal]
	if t == nil {
		t = new(tenant)
	}
	wait := a.estimateWait(now, t, len(r.Command.IDs), r.key())
	if wait == 0 || !now.Add(wait).After(r.Deadline) {
		return nil
	}
	return a.errLimit(now, wait)
}

// errLimit describes the buckets, and says when to retry.
func (a *action) errLimit(now time.Time, wait time.Duration) *instance.Error {
	text := fmt.Sprintf("EC2's rate limits do not allow this %s within its deadline: its request bucket holds %.1f of %g and gains %g a second",
		a.verb, max(0, a.requests.level), a.requests.capacity, a.requests.rate(now))
	if a.instances != nil {
		text += fmt.Sprintf(", its instance bucket %.0f of %g and %g a second, and %d instances are waiting",
			max(0, a.instances.level), a.instances.capacity, a.instances.rate(now), a.waitingIDs)
	}
	return &instance.Error{
		Kind:       instance.KindExhausted,
		Reason:     instance.ReasonRequestLimitExceeded,
		Message:    text + "; nothing was changed by this call",
		RetryAfter: wait,
	}
}

// Next returns the next batch to send, once there is one; nil once the dispatcher is closed.
// Every batch has to be given back by Done. One goroutine may call Next at a time.
func (d *Dispatcher) Next() *Batch {
	for {
		batch, wait := d.next()
		if batch != nil {
			return batch
		}
		var due <-chan time.Time
		if wait < never {
			due = time.After(wait)
		}
		select {
		case <-d.wake:
		case <-due:
		case <-d.closing:
			return nil
		}
	}
}

func (d *Dispatcher) next() (batch *Batch, wait time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	wait = never
	if d.closed {
		return nil, wait
	}
	now := time.Now()
	for _, a := range d.order {
		batch, actionWait := a.next(now)
		if batch != nil {
			return batch, 0
		}
		wait = min(wait, actionWait)
	}
	return nil, wait
}

// next returns a batch that may go out now, or how long it takes until there may be one. The
// batchQueues compete for the tokens of the request bucket: the one whose first tenant has the
// least virtual time is next.
func (a *action) next(now time.Time) (*Batch, time.Duration) {
	a.allocate(now)
	for reallocated := false; ; reallocated = true {
		var first *tenantQueue
		wait := never
		for bq := range a.sendable {
			a.steps++
			if open := a.timeUntilOpen(bq, now); open != 0 {
				wait = min(wait, open)
			} else if q := a.nextTenant(bq); q != nil && (first == nil || a.precedes(q, first)) {
				first = q
			}
		}
		if first != nil {
			return a.buildBatch(first, now), 0
		}
		if a.awaitingTokens.len() == 0 {
			return nil, wait
		}
		if !a.bucketFull() {
			refill := min(a.timeUntilFillLevel(now, a.awaitingTokens.min().fillLevelNeeded), a.instances.until(now, a.instances.capacity))
			return nil, min(wait, max(time.Millisecond, refill))
		}
		// The bucket is full, and every tenant waits for more tokens than its credit.
		q, open := a.nextAwaitingTokens(now)
		if q == nil || reallocated {
			return nil, min(wait, open)
		}
		a.allocateAllTo(q.tenant)
	}
}

// nextAwaitingTokens returns the queue that is next among those that lack tokens, or how long it
// takes until there may be one.
func (a *action) nextAwaitingTokens(now time.Time) (first *tenantQueue, wait time.Duration) {
	wait = never
	for _, q := range a.awaitingTokens.list {
		a.steps++
		switch open := a.timeUntilOpen(q.batchQueue, now); {
		case open != 0:
			wait = min(wait, open)
		case first == nil || a.precedes(q, first):
			first = q
		}
	}
	return first, wait
}

// precedes reports whether x is to be served before y.
func (a *action) precedes(x, y *tenantQueue) bool {
	xTime, yTime := max(a.clock, x.tenant.virtualTime), max(a.clock, y.tenant.virtualTime)
	if xTime != yTime {
		return xTime < yTime
	}
	return x.items.min().before(y.items.min())
}

// timeUntilOpen returns how long it takes until a batchQueue and the request bucket allow a batch;
// never when only the end of another batch helps.
func (a *action) timeUntilOpen(bq *batchQueue, now time.Time) time.Duration {
	if !bq.key.DryRun && bq.inFlight > 0 {
		if bq.inFlight >= MaxBatches {
			return never
		}
		if left := SlowCallAfter - now.Sub(bq.lastSent); left > 0 {
			return left
		}
	}
	return a.requests.until(now, 1+a.reserve(bq.key))
}

// reserve is how many request tokens a call leaves untouched.
func (a *action) reserve(k Key) float64 {
	urgent := k.Verb == instance.VerbStop || k.Verb == instance.VerbTerminate
	if !k.DryRun && urgent || k.Verb == instance.VerbStart {
		return 0
	}
	return math.Floor(a.requests.capacity * reservedShare)
}

// Leave removes what of a request is in no batch: its caller has left. It returns the outcomes
// that there are by then, and false if the request has its outcome already.
func (d *Dispatcher) Leave(r *Request) (instance.Result, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.pending == 0 {
		return instance.Result{}, false
	}
	r.callerLeft = true
	d.actions[r.Command.Verb].dequeueRequest(r)
	d.signal()
	return r.resultLocked(), true
}

// Withdraw fails what of a request is in no batch.
func (d *Dispatcher) Withdraw(r *Request, err *instance.Error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, it := range d.actions[r.Command.Verb].dequeueRequest(r) {
		it.resolveLocked(nil, err)
	}
	d.signal()
}

// FailWaiting fails all requests that wait, for as long as openErr returns an error.
func (d *Dispatcher) FailWaiting(openErr func() *instance.Error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failWaitingLocked(openErr)
}

func (d *Dispatcher) failWaitingLocked(openErr func() *instance.Error) {
	for _, a := range d.order {
		for _, bq := range a.batchQueues {
			for bq.arrivals.len() > 0 {
				err := openErr()
				if err == nil {
					return
				}
				for _, it := range a.dequeueRequest(bq.arrivals.min().Request) {
					it.resolveLocked(nil, err)
				}
			}
		}
	}
}

// Buckets returns the state of the buckets of a verb.
func (d *Dispatcher) Buckets(verb instance.Verb) (list []instance.TokenBucket) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a, now := d.actions[verb], time.Now()
	list = append(list, a.requests.Status(now))
	if a.instances != nil {
		instances := a.instances.Status(now)
		instances.Waiting = a.waitingIDs
		list = append(list, instances)
	}
	return list
}

// Load is how much of a verb waits and is in flight.
type Load struct {
	// WaitingInstances wait for their first call, with each request that wants one counted;
	// dry runs excluded.
	WaitingInstances int
	// OldestEnqueued is when the oldest request was enqueued of which a part waits for its first
	// call; zero if nothing waits.
	OldestEnqueued time.Time
	// Batches are in flight: their items have no outcome yet.
	Batches int
}

// Load returns the load of a verb, in the same time however much waits.
func (d *Dispatcher) Load(verb instance.Verb) Load {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.actions[verb]
	l := Load{WaitingInstances: a.waitingIDs, Batches: a.inFlight}
	if r := a.waitingRequests.min(); r != nil {
		l.OldestEnqueued = r.Enqueued
	}
	return l
}
