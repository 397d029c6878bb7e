package ec2

import (
	"slices"
	"time"

	"github.com/instanced/instanced/internal/backend/ec2/dispatch"
	"github.com/instanced/instanced/internal/instance"
)

// deliverResponse gives every item its part of EC2's response. EC2 reports a change once: the first
// item that wants it caused it, and the others found it done.
func (r *batchRun) deliverResponse(group []*dispatch.Item, got map[instance.ID]instance.StateChange) {
	asked := make(map[instance.ID]int)
	for _, it := range group {
		changes := make([]instance.StateChange, len(it.IDs))
		for i, id := range it.IDs {
			changes[i] = r.resultFor(got[id], asked[id])
			asked[id]++
		}
		r.deliver(it, changes, nil)
	}
}

// deliverPartial delivers to the items that EC2's response covers in full. It returns the others,
// with the failure that their outcome is unknown.
func (r *batchRun) deliverPartial(group []*dispatch.Item, got map[instance.ID]instance.StateChange) (rest []*dispatch.Item, f *failure) {
	var told []*dispatch.Item
	var missing []instance.ID
	taken := make(map[instance.ID]bool)
	for _, it := range group {
		if ids := missingIn(got, it.IDs); len(ids) > 0 {
			rest, missing = append(rest, it), append(missing, ids...)
			continue
		}
		told = append(told, it)
		for _, id := range it.IDs {
			taken[id] = true
		}
	}
	r.deliverResponse(told, got)
	for _, it := range rest {
		for _, id := range it.IDs {
			if line, ok := got[id]; ok && !taken[id] {
				r.appliedUnclaimed[id] = r.resultFor(line, 0)
			}
		}
	}
	const maxNamed = 5
	return rest, &failure{reaction: unknownOutcome, err: &instance.Error{
		Kind:       instance.KindUnavailable,
		Reason:     instance.ReasonAnswerLost,
		Message:    "EC2's response does not say, in a way that can be understood, what became of " + instance.JoinIDs(missing[:min(len(missing), maxNamed)]),
		RetryAfter: retryUnavailable,
	}}
}

// resultFor returns EC2's change of an instance as the n-th item that wants it should see it.
func (r *batchRun) resultFor(line instance.StateChange, n int) instance.StateChange {
	if did, ok := r.appliedUnclaimed[line.ID]; ok {
		delete(r.appliedUnclaimed, line.ID)
		if did.Previous != did.Current {
			// An earlier call did it, whose answer was lost.
			return did
		}
	}
	if n == 0 || r.b.hooks.everyoneFirst {
		doubted, ok := r.unchangedAfterFailure[line.ID]
		delete(r.unchangedAfterFailure, line.ID)
		if ok && line.Previous == line.Current && r.batch.Verb.DoneIn(line.Current) && !r.b.lastChanges.reportedSince(r.batch.Verb, line.ID, doubted.sent) {
			// An earlier call did it after all, after EC2 described the instance.
			return r.transitionSince(line.ID, doubted)
		}
		return line
	}
	return repeated(line, n)
}

// repeated is a change as the n-th item after the first sees it, which finds it done.
func repeated(line instance.StateChange, n int) instance.StateChange {
	if n > 0 {
		line.Previous = line.Current
		line.At = line.At.Add(time.Duration(n))
	}
	return line
}

// deliver gives an item its outcome.
func (r *batchRun) deliver(it *dispatch.Item, changes []instance.StateChange, err *instance.Error) {
	for _, change := range changes {
		r.b.lastChanges.reported(change)
	}
	if err == nil {
		r.answered++
	}
	if r.b.hooks.onOutcome != nil {
		r.b.hooks.onOutcome(it, r.sent, changes, err)
	}
	r.b.dispatcher.Resolve(it, changes, err)
}

// fail gives an item an error, and with it the changes that were made anyway.
func (r *batchRun) fail(it *dispatch.Item, err *instance.Error) {
	var changes []instance.StateChange
	for _, id := range it.IDs {
		if did, ok := r.appliedUnclaimed[id]; ok {
			delete(r.appliedUnclaimed, id)
			if did.Previous != did.Current {
				changes = append(changes, did)
			}
		}
	}
	if len(changes) == len(it.IDs) && it.Divisible() {
		err = nil
	}
	r.deliver(it, changes, err)
}

func (r *batchRun) failEach(group []*dispatch.Item, err *instance.Error) {
	for _, it := range group {
		r.fail(it, err)
	}
}

// failUnsent fails an item whose next call did not reach EC2. Nothing was changed, unless an
// earlier call of unknown outcome did.
func (r *batchRun) failUnsent(it *dispatch.Item, err *instance.Error) {
	if slices.ContainsFunc(it.IDs, r.mayHaveChanged) {
		r.metrics.countLostAnswer([]*dispatch.Item{it}, unresolved)
		err = &instance.Error{
			Kind:           instance.KindUnavailable,
			Reason:         instance.ReasonAnswerLost,
			Message:        "whether an earlier attempt was carried out is unknown, and EC2 could not be asked again",
			RetryAfter:     err.RetryAfter,
			OutcomeUnknown: true,
			Cause:          err,
		}
	}
	r.fail(it, err)
}

// mayHaveChanged reports whether an earlier call may have changed an instance, and no description
// has shown that it did.
func (r *batchRun) mayHaveChanged(id instance.ID) bool {
	_, unchanged := r.unchangedAfterFailure[id]
	return unchanged || r.unseenAfterFailure[id]
}

func (r *batchRun) failEachUnsent(group []*dispatch.Item, err *instance.Error) {
	for _, it := range group {
		r.failUnsent(it, err)
	}
}

// failNamed fails the items that want an instance named by the failure, and returns the others.
func (r *batchRun) failNamed(group []*dispatch.Item, f *failure) (rest []*dispatch.Item) {
	named := make(map[instance.ID]bool)
	for _, id := range f.named {
		named[id] = true
	}
	for _, it := range group {
		hit := r.b.hooks.failEveryone
		for _, id := range it.IDs {
			hit = hit || named[id]
		}
		if hit {
			r.fail(it, f.errorFor(it.IDs))
		} else {
			rest = append(rest, it)
		}
	}
	return rest
}

// failLate fails the items whose deadline comes before the buckets allow the next call: with EC2's
// error if it throttled, otherwise with one that describes the buckets.
func (r *batchRun) failLate(group []*dispatch.Item, wait time.Duration, f *failure) (rest []*dispatch.Item) {
	now := time.Now()
	for _, it := range group {
		if it.Deadline.IsZero() || !now.Add(wait).After(it.Deadline) {
			rest = append(rest, it)
			continue
		}
		var err *instance.Error
		if f != nil {
			err = new(*f.err)
			err.RetryAfter = wait
		} else {
			err = r.b.dispatcher.LimitError(r.batch, wait)
		}
		r.failUnsent(it, err)
	}
	return rest
}
