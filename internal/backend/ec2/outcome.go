package ec2

import (
	"context"
	"maps"
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
		if ok && line.Previous == line.Current && r.batch.Verb.DoneIn(line.Current) && !r.b.tracker.reportedSince(r.batch.Verb, line.ID, doubted.sent) {
			// An earlier call did it after all, after EC2 described the instance.
			return r.transitionSince(line.ID, doubted)
		}
		return line
	}
	return repeated(line, n)
}

// transitionSince is the change that a call made to an instance, by its state before.
func (r *batchRun) transitionSince(id instance.ID, before unchanged) instance.StateChange {
	from, to := transition(r.batch.Verb, before.state)
	return instance.StateChange{ID: id, Previous: from, Current: to, At: wallClock(before.sent)}
}

// repeated is a change as the n-th item after the first sees it, which finds it done.
func repeated(line instance.StateChange, n int) instance.StateChange {
	if n > 0 {
		line.Previous = line.Current
		line.At = line.At.Add(time.Duration(n))
	}
	return line
}

// wallClock removes the monotonic reading from a time.
func wallClock(t time.Time) time.Time { return t.Round(0).UTC() }

// deliver gives an item its outcome.
func (r *batchRun) deliver(it *dispatch.Item, changes []instance.StateChange, err *instance.Error) {
	for _, change := range changes {
		r.b.tracker.reported(change)
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
	if slices.ContainsFunc(it.IDs, func(id instance.ID) bool { _, doubted := r.unchangedAfterFailure[id]; return doubted }) {
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

// retryPartialTerminate handles a termination that EC2 carried out except in the zones of protected
// instances. Which zones these are depends on what else is in the batch: items that name a
// protected instance among others are sent again alone, and the rest is returned.
func (r *batchRun) retryPartialTerminate(ctx context.Context, group []*dispatch.Item, f *failure) (rest []*dispatch.Item) {
	var alone []*dispatch.Item
	for _, it := range r.checkOutcome(ctx, group, f) {
		switch named := namedIn(f.err.Message, it.IDs); {
		case len(named) == 0 && !r.b.hooks.failEveryone:
			rest = append(rest, it)
		case len(it.IDs) == 1:
			r.fail(it, f.errorFor(it.IDs))
		default:
			alone = append(alone, it)
		}
	}
	if len(alone) > 0 {
		r.push(&sequence{r: r, items: alone, alone: true})
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

// splitTooLarge queues a group that is too large for EC2 to be sent in parts.
func (r *batchRun) splitTooLarge(group []*dispatch.Item, f *failure) {
	if len(group) == 1 {
		r.fail(group[0], f.errorFor(group[0].IDs))
		return
	}
	if n := max(1, f.asked/2); r.b.dispatcher.LowerMaxIDs(r.batch, n) {
		r.b.log.Info("EC2 takes fewer instances a call than was tried", "action", string(r.batch.Verb), "from_now_on", n)
	}
	r.reportRejected(group)
	r.push(&sequence{r: r, items: group})
}

// fitting returns how many items go into one call, at least one if there are any.
func (r *batchRun) fitting(group []*dispatch.Item) int {
	maxIDs := r.b.dispatcher.MaxIDs(r.batch)
	ids := make(map[instance.ID]struct{})
	for n, it := range group {
		for _, id := range it.IDs {
			ids[id] = struct{}{}
		}
		if len(ids) > maxIDs {
			return max(1, n)
		}
	}
	return len(group)
}

// resolveUnknown finds out what became of a call of unknown outcome, and returns the items that it
// did nothing for, to be retried. A reboot leaves no trace, and must not be repeated.
func (r *batchRun) resolveUnknown(ctx context.Context, group []*dispatch.Item, f *failure) []*dispatch.Item {
	r.unknownAttempts++
	if r.batch.Verb == instance.VerbReboot || r.unknownAttempts == maxUnknownAttempts {
		r.failEach(group, f.unknownOutcome())
		return nil
	}
	group = r.checkOutcome(ctx, group, f)
	if len(group) == 0 {
		return nil
	}
	if err := r.pause(ctx, jitter(minBackoff<<(r.unknownAttempts-1))); err != nil {
		r.failEach(group, f.unknownOutcome())
		return nil
	}
	return group
}

// checkOutcome describes the instances after a failed call that may have been carried out. Items
// whose instances were all changed get their results; the others are returned. If EC2 cannot be
// asked, the outcome of all is unknown.
func (r *batchRun) checkOutcome(ctx context.Context, group []*dispatch.Item, f *failure) (rest []*dispatch.Item) {
	seen, ok := r.observeOutcome(ctx, group, f)
	if !ok {
		return nil
	}
	if f.reaction == unknownOutcome && len(r.appliedUnclaimed) > 0 {
		// The call was carried out: what it did not change was in the target state before.
		for id, s := range seen {
			if _, changed := r.appliedUnclaimed[id]; !changed && r.batch.Verb.DoneIn(s.State) {
				r.appliedUnclaimed[id] = instance.StateChange{ID: id, Previous: s.State, Current: s.State, At: wallClock(r.sent)}
			}
		}
	}
	return r.deliverApplied(group)
}

// deliverApplied delivers to the items whose instances were all changed by failed calls, and
// returns the others.
func (r *batchRun) deliverApplied(group []*dispatch.Item) (rest []*dispatch.Item) {
	lines := maps.Clone(r.appliedUnclaimed)
	did := make(map[instance.ID]int)
	for _, it := range group {
		if slices.ContainsFunc(it.IDs, func(id instance.ID) bool { _, ok := r.appliedUnclaimed[id]; return !ok && did[id] == 0 }) {
			rest = append(rest, it)
			continue
		}
		var changes []instance.StateChange
		for _, id := range it.IDs {
			changes = append(changes, repeated(lines[id], did[id]))
			did[id]++
			delete(r.appliedUnclaimed, id)
		}
		r.deliver(it, changes, nil)
	}
	return rest
}

// observeOutcome describes the instances of a group and notes what the last call did. It is false
// if EC2 cannot be asked; the items have their outcomes then.
func (r *batchRun) observeOutcome(ctx context.Context, group []*dispatch.Item, f *failure) (map[instance.ID]describedInstance, bool) {
	ids := dispatch.DistinctIDs(group)
	was := make(map[instance.ID]instance.State, len(ids))
	for _, id := range ids {
		was[id] = r.b.tracker.state(id)
	}
	seen, failed := r.describeAfter(ctx, ids, f)
	if failed != nil {
		err := f.unknownOutcome()
		err.Cause = failed
		r.failEach(group, err)
		return nil, false
	}
	for _, id := range ids {
		inst, found := seen[id]
		if !found {
			continue
		}
		if _, known := r.appliedUnclaimed[id]; known {
			continue
		}
		doubted, again := r.unchangedAfterFailure[id]
		switch {
		case !r.batch.Verb.DoneIn(inst.State):
			r.unchangedAfterFailure[id] = unchanged{state: inst.State, sent: r.sent}
		case again && !r.b.tracker.reportedSince(r.batch.Verb, id, doubted.sent):
			delete(r.unchangedAfterFailure, id)
			r.appliedUnclaimed[id] = r.transitionSince(id, unchanged{state: doubted.state, sent: r.sent})
		case r.b.tracker.changedBy(r.batch.Verb, inst.Instance, r.sent):
			r.appliedUnclaimed[id] = r.transitionSince(id, unchanged{state: was[id], sent: r.sent})
		}
	}
	return seen, true
}

// describeAfter describes instances after a failed call. If that call timed out, this one probably
// will too, and callers should hear before their own deadlines.
func (r *batchRun) describeAfter(ctx context.Context, ids []instance.ID, f *failure) (map[instance.ID]describedInstance, error) {
	if f.unreachable {
		if openErr := r.b.client.breaker.openErr(); openErr != nil {
			return nil, openErr
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, checkTimeout)
		defer cancel()
	}
	return r.b.describeAll(ctx, ids)
}

// rebooted returns the states of instances whose reboot EC2 accepted: running, or terminated, since
// EC2 accepts those and does nothing.
func (r *batchRun) rebooted(ctx context.Context, ids []instance.ID) map[instance.ID]instance.StateChange {
	states := make(map[instance.ID]instance.State, len(ids))
	var ask []instance.ID
	for _, id := range ids {
		states[id] = instance.StateRunning
		if r.b.tracker.state(id) != instance.StateRunning {
			ask = append(ask, id)
		}
	}
	if len(ask) > 0 {
		// If EC2 cannot be asked, they count as running, which is what EC2 reboots.
		seen, _ := r.b.describeAll(ctx, ask)
		for id, inst := range seen {
			states[id] = inst.State
		}
	}
	got := make(map[instance.ID]instance.StateChange, len(ids))
	for id, state := range states {
		got[id] = instance.StateChange{ID: id, Previous: state, Current: state, At: wallClock(r.sent)}
	}
	return got
}
