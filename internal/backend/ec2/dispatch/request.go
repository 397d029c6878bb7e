package dispatch

import (
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// Key is what requests must have in common to travel in one batch: the verb, its options,
// and the term in which they were accepted; nil for none.
type Key struct {
	Verb           instance.Verb
	AdditionalInfo string
	Hibernate      bool
	Force          bool
	SkipOSShutdown bool
	DryRun         bool
	Term           instance.Term
}

// Request is a command that waits for its outcome. The dispatcher's lock guards it.
type Request struct {
	Command  instance.Command
	Deadline time.Time // zero for none
	// Tag is whatever the caller likes to find again in a batch. The dispatcher does not use it.
	Tag any

	// Enqueued is when the dispatcher took the request; zero before.
	Enqueued time.Time

	seq   uint64 // in order of arrival
	queue *tenantQueue
	items []*Item
	// waitingItems is how many of its items are in no batch yet.
	waitingItems int
	// waitingPosition is its position in action.waitingRequests.
	waitingPosition int
	// counted is the last count of Dispatcher.CountRequests that included it.
	counted uint64
	// callerLeft is true once its caller has left.
	callerLeft bool

	// pending is how many ids, or whole requests, have no outcome yet.
	pending  int
	changes  map[instance.ID]instance.StateChange
	failures map[instance.ID]*instance.Error
	err      *instance.Error // of a whole request
	done     chan struct{}   // closed once nothing is pending
}

// NewRequest returns a request that is not queued yet.
func NewRequest(cmd instance.Command, deadline time.Time) *Request {
	r := &Request{
		Command:  cmd,
		Deadline: deadline,
		pending:  1,
		changes:  make(map[instance.ID]instance.StateChange, len(cmd.IDs)),
		done:     make(chan struct{}),
	}
	ids := slices.Clone(cmd.IDs)
	if !r.Divisible() {
		r.items = []*Item{{Request: r, IDs: ids}}
		return r
	}
	r.pending = len(ids)
	r.failures = make(map[instance.ID]*instance.Error)
	items := make([]Item, len(ids))
	for i := range items {
		items[i] = Item{Request: r, IDs: ids[i : i+1 : i+1], order: i}
		r.items = append(r.items, &items[i])
	}
	return r
}

// Divisible reports whether the instances of the request need not travel together.
func (r *Request) Divisible() bool { return r.Command.PerInstance && !r.Command.DryRun }

func (r *Request) key() Key {
	return Key{
		Verb:           r.Command.Verb,
		AdditionalInfo: r.Command.AdditionalInfo,
		Hibernate:      r.Command.Hibernate,
		Force:          r.Command.Force,
		SkipOSShutdown: r.Command.SkipOSShutdown,
		DryRun:         r.Command.DryRun,
		Term:           r.Command.Term,
	}
}

// Done is closed once the request has its outcome.
func (r *Request) Done() <-chan struct{} { return r.done }

// Result returns the outcome, once Done is closed: the changes and failures in the order of
// the command's ids, and the error of a whole request.
func (r *Request) Result() (instance.Result, *instance.Error) { return r.resultLocked(), r.err }

// resultLocked returns the changes and failures that there are, in the order of the command's
// ids.
func (r *Request) resultLocked() (result instance.Result) {
	for _, id := range r.Command.IDs {
		if change, ok := r.changes[id]; ok {
			result.Changes = append(result.Changes, change)
		}
		if failure := r.failures[id]; failure != nil {
			result.Failures = append(result.Failures, instance.Failure{ID: id, Err: failure})
		}
	}
	return result
}

// Item is what cannot be divided: a whole request, or one instance of another.
type Item struct {
	*Request
	IDs []instance.ID

	order int // within its request
	// dispatched is true once it is in a batch, or has an outcome without one.
	dispatched bool
	// blockedBy is how many of its instances are busy. While there are any, it is not in
	// tenantQueue.items.
	blockedBy int
	// queuePosition and arrivalPosition are its positions in tenantQueue.items and
	// batchQueue.arrivals.
	queuePosition, arrivalPosition int
}

func (it *Item) before(other *Item) bool {
	if it.seq != other.seq {
		return it.seq < other.seq
	}
	return it.order < other.order
}

// resolveLocked gives an item its outcome.
func (it *Item) resolveLocked(changes []instance.StateChange, err *instance.Error) {
	r := it.Request
	for _, change := range changes {
		r.changes[change.ID] = change
	}
	if !r.Divisible() {
		r.err, r.pending = err, 0
	} else {
		for _, id := range it.IDs {
			if err != nil {
				r.failures[id] = err
			}
		}
		r.pending -= len(it.IDs)
	}
	if r.pending == 0 {
		close(r.done)
	}
}

// DistinctIDs returns the ids of items, each once, in their order.
func DistinctIDs(items []*Item) []instance.ID {
	var ids []instance.ID
	seen := make(map[instance.ID]struct{})
	for _, it := range items {
		for _, id := range it.IDs {
			if _, again := seen[id]; !again {
				seen[id] = struct{}{}
				ids = append(ids, id)
			}
		}
	}
	return ids
}
