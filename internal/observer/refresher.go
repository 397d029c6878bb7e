package observer

import (
	"container/heap"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/expiring"
	"github.com/instanced/instanced/internal/instance"
)

const (
	// maxRefresh is how many instances one refresh asks the backend for.
	maxRefresh = 200
	// retryInterval is how soon something that failed for want of the backend or the journal,
	// or a stale description, is retried.
	retryInterval = time.Second
	// retrySupersededInterval is the same for a description that merely came too early.
	retrySupersededInterval = 20 * time.Millisecond
	// absentTTL is how long an id that the backend did not know is not looked up again. EC2
	// may need as long to know an instance that was just launched.
	absentTTL = 5 * time.Second
	// maxAbsent bounds how many such ids are remembered.
	maxAbsent = 10_000
)

// refresher describes instances at the backend on behalf of everybody, one call at a time:
// what is requested meanwhile goes into the next call. All methods are safe for concurrent
// use; mu is taken before the tracker's lock.
type refresher struct {
	o *Observer
	// absent are ids that the backend did not know a moment ago.
	absent *expiring.Cache[instance.ID, struct{}]
	// wake is signalled when something is due.
	wake chan struct{}

	mu sync.Mutex
	// running is whether anybody may wait for a refresh.
	running bool
	wanted  map[instance.ID]*refresh
	// waited are the refreshes that a caller waits for, background the others. A look-up is in
	// neither before its turn.
	waited, background refreshQueue
	lookUps            lookUps
	// examined counts the refreshes that were examined to find those that are due.
	examined int
}

// refresh is the wish to have one instance described.
type refresh struct {
	id          instance.ID
	consistency consistency
	notBefore   time.Time
	// place is its place in its queue, -1 if it is in none.
	place int
	// queued is whether it belongs in a queue; a look-up does not before it had its turn.
	queued bool
	// retry is whether it is retried when the backend does not respond.
	retry bool
	// reconciling is whether only a full comparison asked for it.
	reconciling bool
	// acks are called when the description is recorded. waiters are told then, or when the
	// backend did not respond.
	acks    []func()
	waiters []waiter
}

// waiter is told when an instance was described. The channel has room for it.
type waiter struct {
	done chan<- error
	// lookUpBy is whose look-up it is; nil for other refreshes.
	lookUpBy *string
}

func newRefresher(o *Observer) *refresher {
	return &refresher{
		o:       o,
		absent:  expiring.New[instance.ID, struct{}](absentTTL, maxAbsent),
		wake:    make(chan struct{}, 1),
		wanted:  make(map[instance.ID]*refresh),
		lookUps: newLookUps(),
	}
}

// request has instances described soon.
func (r *refresher) request(ids ...instance.ID) {
	r.enqueue(ids, refresh{queued: true, retry: true})
}

// requestReconciled is request for a full comparison whose description of the instances was
// not current.
func (r *refresher) requestReconciled(ids []instance.ID) {
	r.enqueue(ids, refresh{queued: true, retry: true, reconciling: true})
}

// requestThenAck has the instances of notices described, and the notices acknowledged
// afterwards.
func (r *refresher) requestThenAck(notices ...instance.Notice) {
	for _, n := range notices {
		r.enqueue([]instance.ID{n.ID}, refresh{queued: true, retry: true, acks: []func(){n.Ack}})
	}
}

// refresh describes instances and returns when the descriptions are recorded.
func (r *refresher) refresh(ctx context.Context, ids []instance.ID, c consistency) error {
	done := make(chan error, len(ids))
	r.mu.Lock()
	if !r.running {
		r.mu.Unlock()
		return ErrTermEnded()
	}
	r.enqueueLocked(ids, refresh{queued: true, consistency: c, waiters: []waiter{{done: done}}})
	r.mu.Unlock()
	return await(ctx, done, len(ids))
}

// lookUp describes instances that are not known, except those that the backend did not know
// a moment ago. Principals take turns, and may have as many look-ups waiting as they leave
// free of [maxLookUps].
func (r *refresher) lookUp(ctx context.Context, principal string, ids []instance.ID) error {
	ids = slices.DeleteFunc(slices.Clone(ids), r.absent.Has)
	done := make(chan error, len(ids))
	r.mu.Lock()
	switch {
	case !r.running:
		r.mu.Unlock()
		return ErrTermEnded()
	case len(ids) > 0 && !r.lookUps.add(principal, ids):
		r.mu.Unlock()
		return errTooManyLookUps()
	}
	r.enqueueLocked(ids, refresh{waiters: []waiter{{done: done, lookUpBy: &principal}}})
	r.mu.Unlock()
	return await(ctx, done, len(ids))
}

// await returns when n results have come, or the first error.
func await(ctx context.Context, done <-chan error, n int) error {
	for range n {
		select {
		case err := <-done:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (r *refresher) enqueue(ids []instance.ID, wish refresh) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.enqueueLocked(ids, wish)
}

func (r *refresher) enqueueLocked(ids []instance.ID, wish refresh) {
	for _, id := range ids {
		r.mergeLocked(id, wish)
	}
	r.signal()
}

// mergeLocked merges a refresh with the one for the same instance.
func (r *refresher) mergeLocked(id instance.ID, wish refresh) {
	w := r.wanted[id]
	if w == nil {
		w = &refresh{id: id, notBefore: wish.notBefore, place: -1, reconciling: wish.reconciling}
		r.wanted[id] = w
	}
	r.unqueueLocked(w)
	w.consistency = w.consistency || wish.consistency
	w.retry = w.retry || wish.retry
	w.queued = w.queued || wish.queued
	w.reconciling = w.reconciling && wish.reconciling
	w.acks = append(w.acks, wish.acks...)
	w.waiters = append(w.waiters, wish.waiters...)
	if wish.notBefore.Before(w.notBefore) {
		w.notBefore = wish.notBefore
	}
	r.queueLocked(w)
}

func (r *refresher) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// retryNow makes instances due whose description was deferred.
func (r *refresher) retryNow(ids []instance.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ids {
		if w := r.wanted[id]; w != nil && w.place >= 0 {
			w.notBefore = time.Time{}
			heap.Fix(r.queueOfLocked(w), w.place)
		}
	}
	r.signal()
}

// open lets callers wait for refreshes, until run ends.
func (r *refresher) open() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running = true
}

// close fails all waiters. Requests without waiters are kept for the next term.
func (r *refresher) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running = false
	for _, w := range r.wanted {
		r.unqueueLocked(w)
		r.notifyLocked(w, ErrTermEnded())
		r.queueLocked(w)
	}
}

// notifyLocked tells the waiters of a refresh how it ended.
func (r *refresher) notifyLocked(w *refresh, err error) {
	for _, waiter := range w.waiters {
		waiter.done <- err
		if waiter.lookUpBy != nil {
			r.lookUps.release(*waiter.lookUpBy)
		}
	}
	w.waiters = nil
}

// run describes what is due until ctx is done.
func (r *refresher) run(ctx context.Context) {
	defer r.close()
	failing := false
	for {
		due, next := r.nextDue()
		if len(due) == 0 {
			var timer <-chan time.Time
			if !next.IsZero() {
				timer = time.After(time.Until(next))
			}
			select {
			case <-r.wake:
			case <-timer:
			case <-ctx.Done():
				return
			}
			continue
		}
		began := time.Now()
		err := r.describe(ctx, due)
		r.o.metrics.refreshes.observe(ctx, began, err)
		if err == nil {
			r.o.metrics.lastRefresh.Store(new(time.Now()))
		}
		switch {
		case err != nil && ctx.Err() != nil:
			r.fail(due, ErrTermEnded())
			return
		case err != nil:
			r.fail(due, explainTimeout(err))
			if !failing {
				r.o.log.Warn("descriptions of instances could not be fetched or recorded; retrying", "count", len(due), "error", err)
			}
		case failing:
			r.o.log.Info("descriptions of instances are recorded again")
		}
		failing = err != nil
	}
}

// fail tells the waiters that the refresh failed, and enqueues again what is to be retried.
func (r *refresher) fail(refreshes map[instance.ID]*refresh, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, w := range refreshes {
		r.notifyLocked(w, err)
		if w.retry {
			r.mergeLocked(id, refresh{consistency: w.consistency, retry: true, queued: true, reconciling: w.reconciling, acks: w.acks, notBefore: time.Now().Add(retryInterval)})
		}
	}
}

// nextDue removes the refreshes that are due and returns them, and when the next will be. Up
// to half of them are look-ups for callers; what either side leaves is for the other one.
func (r *refresher) nextDue() (due map[instance.ID]*refresh, next time.Time) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	due = make(map[instance.ID]*refresh)
	remove := func(w *refresh) {
		r.examined++
		r.unqueueLocked(w)
		if r.o.tracker.deferDescribe(w.id) {
			// The end of the command makes it due, unless that takes too long.
			w.queued, w.notBefore = true, now.Add(maxHold)
			r.queueLocked(w)
			return
		}
		due[w.id] = w
		delete(r.wanted, w.id)
	}
	removeLookUps := func(limit int) {
		for len(due) < limit {
			id, ok := r.lookUps.next()
			if !ok {
				return
			}
			if w := r.wanted[id]; w != nil && !w.queued { // else it was looked up already, or is queued
				remove(w)
			}
		}
	}
	removeLookUps(maxRefresh / 2)
	for _, queue := range []*refreshQueue{&r.waited, &r.background} {
		for len(*queue) > 0 && len(due) < maxRefresh && !(*queue)[0].notBefore.After(now) {
			remove((*queue)[0])
		}
	}
	removeLookUps(maxRefresh)
	if len(due) == maxRefresh {
		return due, now
	}
	for _, queue := range []refreshQueue{r.waited, r.background} {
		if len(queue) > 0 && (next.IsZero() || queue[0].notBefore.Before(next)) {
			next = queue[0].notBefore
		}
	}
	return due, next
}
