package ec2

import (
	"context"
	"maps"
	"slices"

	"github.com/instanced/instanced/internal/backend/ec2/dispatch"
	"github.com/instanced/instanced/internal/instance"
)

// transitionSince is the change that a call made to an instance, by its state before.
func (r *batchRun) transitionSince(id instance.ID, before unchanged) instance.StateChange {
	from, to := transition(r.batch.Verb, before.state)
	return instance.StateChange{ID: id, Previous: from, Current: to, At: instance.WallClock(before.sent), Deduced: true}
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
		r.metrics.divided[sentAlone].Inc()
		r.push(&sequence{r: r, items: alone, alone: true})
	}
	return rest
}

// resolveUnknown finds out what became of a call of unknown outcome, and returns the items that it
// did nothing for, to be retried. A reboot leaves no trace, and must not be repeated.
func (r *batchRun) resolveUnknown(ctx context.Context, group []*dispatch.Item, f *failure) []*dispatch.Item {
	r.unknownAttempts++
	if r.batch.Verb == instance.VerbReboot || r.unknownAttempts == maxUnknownAttempts {
		r.failUnresolved(group, f.unknownOutcome())
		return nil
	}
	group = r.checkOutcome(ctx, group, f)
	if len(group) == 0 {
		return nil
	}
	if err := r.pause(ctx, jitter(minBackoff<<(r.unknownAttempts-1))); err != nil {
		r.failUnresolved(group, f.unknownOutcome())
		return nil
	}
	r.metrics.countLostAnswer(group, sentAgain)
	return group
}

// failUnresolved tells the callers of a group that the outcome of their call is unknown.
func (r *batchRun) failUnresolved(group []*dispatch.Item, err *instance.Error) {
	r.metrics.countLostAnswer(group, unresolved)
	r.failEach(group, err)
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
		for _, it := range group {
			r.applyFound(it, seen)
		}
	}
	rest, done := r.deliverApplied(group)
	if f.reaction == unknownOutcome {
		r.metrics.lostAnswers[carriedOut].Add(float64(done))
	}
	return rest
}

// applyFound notes the instances of an item that a failed call has not changed and that are in the
// target state as found by it.
func (r *batchRun) applyFound(it *dispatch.Item, seen map[instance.ID]describedInstance) {
	for _, id := range it.IDs {
		if s, found := seen[id]; found && !r.applied(id) && r.batch.Verb.DoneIn(s.State) {
			r.appliedUnclaimed[id] = instance.StateChange{ID: id, Previous: s.State, Current: s.State, At: instance.WallClock(r.sent)}
		}
	}
}

// applied reports whether a failed call has changed an instance, or found it in the target state,
// and no caller was told so yet.
func (r *batchRun) applied(id instance.ID) bool {
	_, ok := r.appliedUnclaimed[id]
	return ok
}

// deliverApplied delivers to the items whose instances were all changed by failed calls, and
// returns the others, and how many instances it delivered.
func (r *batchRun) deliverApplied(group []*dispatch.Item) (rest []*dispatch.Item, instances int) {
	lines := maps.Clone(r.appliedUnclaimed)
	delivered := make(map[instance.ID]int)
	for _, it := range group {
		if slices.ContainsFunc(it.IDs, func(id instance.ID) bool { return !r.applied(id) && delivered[id] == 0 }) {
			rest = append(rest, it)
			continue
		}
		var changes []instance.StateChange
		for _, id := range it.IDs {
			changes = append(changes, repeated(lines[id], delivered[id]))
			delivered[id]++
			delete(r.appliedUnclaimed, id)
		}
		r.deliver(it, changes, nil)
	}
	return rest, len(delivered)
}

// observeOutcome describes the instances of a group and notes what the last call did. It is false
// if EC2 cannot be asked; the items have their outcomes then.
func (r *batchRun) observeOutcome(ctx context.Context, group []*dispatch.Item, f *failure) (map[instance.ID]describedInstance, bool) {
	ids := dispatch.DistinctIDs(group)
	was := make(map[instance.ID]instance.State, len(ids))
	for _, id := range ids {
		was[id] = r.b.lastChanges.state(id)
	}
	seen, failed := r.describeAfter(ctx, ids, f)
	if failed != nil {
		err := f.unknownOutcome()
		err.Cause = failed
		r.failUnresolved(group, err)
		return nil, false
	}
	for _, id := range ids {
		inst, found := seen[id]
		if !found {
			r.unseenAfterFailure[id] = true
			continue
		}
		delete(r.unseenAfterFailure, id)
		if _, known := r.appliedUnclaimed[id]; known {
			continue
		}
		doubted, again := r.unchangedAfterFailure[id]
		switch {
		case !r.batch.Verb.DoneIn(inst.State):
			r.unchangedAfterFailure[id] = unchanged{state: inst.State, sent: r.sent}
		case again && !r.b.lastChanges.reportedSince(r.batch.Verb, id, doubted.sent):
			delete(r.unchangedAfterFailure, id)
			r.appliedUnclaimed[id] = r.transitionSince(id, unchanged{state: doubted.state, sent: r.sent})
		case r.b.lastChanges.changedBy(r.batch.Verb, inst.Instance, r.sent):
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
		if r.b.lastChanges.state(id) != instance.StateRunning {
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
		got[id] = instance.StateChange{ID: id, Previous: state, Current: state, At: instance.WallClock(r.sent)}
	}
	return got
}
