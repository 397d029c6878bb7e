package ec2

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/backend/ec2/dispatch"
	"github.com/instanced/instanced/internal/instance"
)

// deliverResponse gives every unit its lines of EC2's answer. EC2 says once what it did: of those
// who asked for it the first caused it, and the others found it done.
func (r *batchRun) deliverResponse(group []*dispatch.Item, got map[instance.ID]instance.StateChange) {
	asked := make(map[instance.ID]int)
	for _, u := range group {
		changes := make([]instance.StateChange, len(u.IDs))
		for i, id := range u.IDs {
			changes[i] = r.resultFor(got[id], asked[id])
			asked[id]++
		}
		r.deliver(u, changes, nil)
	}
}

// deliverPartial gives the units their lines that EC2's answer has all lines of, and returns the
// others with the failure that what became of them is not known.
func (r *batchRun) deliverPartial(group []*dispatch.Item, got map[instance.ID]instance.StateChange) (rest []*dispatch.Item, f *failure) {
	var told []*dispatch.Item
	var missing []instance.ID
	taken := make(map[instance.ID]bool)
	for _, u := range group {
		if unit := missingIn(got, u.IDs); len(unit) > 0 {
			rest, missing = append(rest, u), append(missing, unit...)
			continue
		}
		told = append(told, u)
		for _, id := range u.IDs {
			taken[id] = true
		}
	}
	r.deliverResponse(told, got)
	for _, u := range rest {
		for _, id := range u.IDs {
			if line, ok := got[id]; ok && !taken[id] {
				r.appliedUnclaimed[id] = r.resultFor(line, 0)
			}
		}
	}
	const maxNamed = 5
	return rest, &failure{reaction: unknownOutcome, err: &instance.Error{
		Kind:       instance.KindUnavailable,
		Reason:     instance.ReasonAnswerLost,
		Message:    "EC2's answer does not say, in a way that can be understood, what became of " + joinIDs(missing[:min(len(missing), maxNamed)]),
		RetryAfter: retryUnavailable,
	}}
}

// resultFor returns a line of EC2's answer for a caller, the n-th who asked for it.
func (r *batchRun) resultFor(line instance.StateChange, n int) instance.StateChange {
	if did, ok := r.appliedUnclaimed[line.ID]; ok {
		delete(r.appliedUnclaimed, line.ID)
		if did.Previous != did.Current {
			// An earlier call did it, whose answer nobody got.
			return did
		}
	}
	if n == 0 || r.b.hooks.everyoneFirst {
		doubted, ok := r.unchangedAfterFailure[line.ID]
		delete(r.unchangedAfterFailure, line.ID)
		if ok && line.Previous == line.Current && r.batch.Verb.DoneIn(line.Current) && !r.b.tracker.reportedSince(r.batch.Verb, line.ID, doubted.sent) {
			// An earlier call did it after all, later than could be seen.
			return r.transitionSince(line.ID, doubted)
		}
		return line
	}
	return repeated(line, n)
}

// transitionSince is the change that a call made of an instance which was in a state before.
func (r *batchRun) transitionSince(id instance.ID, before unchanged) instance.StateChange {
	from, to := transition(r.batch.Verb, before.state)
	return instance.StateChange{ID: id, Previous: from, Current: to, At: wallClock(before.sent)}
}

// repeated is a line of an answer for the n-th caller after the first, who finds done what
// the first caused.
func repeated(line instance.StateChange, n int) instance.StateChange {
	if n > 0 {
		line.Previous = line.Current
		line.At = line.At.Add(time.Duration(n))
	}
	return line
}

// wallClock drops what a time says beyond the wall clock.
func wallClock(t time.Time) time.Time { return t.Round(0).UTC() }

// deliver gives a unit its outcome.
func (r *batchRun) deliver(u *dispatch.Item, changes []instance.StateChange, refusal *instance.Error) {
	for _, change := range changes {
		r.b.tracker.reported(change)
	}
	if refusal == nil {
		r.answered++
	}
	if r.b.hooks.onOutcome != nil {
		r.b.hooks.onOutcome(u, r.sent, changes, refusal)
	}
	r.b.dispatcher.Resolve(u, changes, refusal)
}

// fail gives a unit an error, beside what was changed of it all the same.
func (r *batchRun) fail(u *dispatch.Item, err *instance.Error) {
	var changes []instance.StateChange
	for _, id := range u.IDs {
		if did, ok := r.appliedUnclaimed[id]; ok {
			delete(r.appliedUnclaimed, id)
			if did.Previous != did.Current {
				changes = append(changes, did)
			}
		}
	}
	if len(changes) == len(u.IDs) && u.Divisible() {
		err = nil
	}
	r.deliver(u, changes, err)
}

func (r *batchRun) failEach(group []*dispatch.Item, err *instance.Error) {
	for _, u := range group {
		r.fail(u, err)
	}
}

// failUnsent refuses a unit whose next call did not get to EC2. Nothing was changed, unless
// an earlier call did of which that is not certain.
func (r *batchRun) failUnsent(u *dispatch.Item, err *instance.Error) {
	if slices.ContainsFunc(u.IDs, func(id instance.ID) bool { _, doubted := r.unchangedAfterFailure[id]; return doubted }) {
		err = &instance.Error{
			Kind:           instance.KindUnavailable,
			Reason:         instance.ReasonAnswerLost,
			Message:        "whether an earlier try of the call was carried out is unknown, and EC2 could not be asked again",
			RetryAfter:     err.RetryAfter,
			OutcomeUnknown: true,
			Cause:          err,
		}
	}
	r.fail(u, err)
}

func (r *batchRun) failEachUnsent(group []*dispatch.Item, err *instance.Error) {
	for _, u := range group {
		r.failUnsent(u, err)
	}
}

// failNamed refuses the units that want an instance which the failure names, and returns
// the others.
func (r *batchRun) failNamed(group []*dispatch.Item, f *failure) (rest []*dispatch.Item) {
	named := make(map[instance.ID]bool)
	for _, id := range f.named {
		named[id] = true
	}
	for _, u := range group {
		hit := r.b.hooks.failEveryone
		for _, id := range u.IDs {
			hit = hit || named[id]
		}
		if hit {
			r.fail(u, f.errorFor(u.IDs))
		} else {
			rest = append(rest, u)
		}
	}
	return rest
}

// retryPartialTerminate is for a termination that EC2 carried out, protected instances apart and all that
// share a zone with them. Which zones those are depends on who travels together: a call
// for a protected instance and others is made again alone, and the rest is returned.
func (r *batchRun) retryPartialTerminate(ctx context.Context, group []*dispatch.Item, f *failure) (rest []*dispatch.Item) {
	var alone []*dispatch.Item
	for _, u := range r.checkOutcome(ctx, group, f) {
		switch named := namedIn(f.err.Message, u.IDs); {
		case len(named) == 0 && !r.b.hooks.failEveryone:
			rest = append(rest, u)
		case len(u.IDs) == 1:
			r.fail(u, f.errorFor(u.IDs))
		default:
			alone = append(alone, u)
		}
	}
	if len(alone) > 0 {
		r.push(&sequence{r: r, items: alone, alone: true})
	}
	return rest
}

// failLate refuses the callers whose deadline comes before the buckets allow the next
// call: with EC2's error if it throttled, else with that of its mirror.
func (r *batchRun) failLate(group []*dispatch.Item, wait time.Duration, f *failure) (rest []*dispatch.Item) {
	now := time.Now()
	for _, u := range group {
		if u.Deadline.IsZero() || !now.Add(wait).After(u.Deadline) {
			rest = append(rest, u)
			continue
		}
		var err *instance.Error
		if f != nil {
			err = new(*f.err)
			err.RetryAfter = wait
		} else {
			err = r.b.dispatcher.LimitError(r.batch, wait)
		}
		r.failUnsent(u, err)
	}
	return rest
}

// splitTooLarge has a group that is too large for EC2 sent in parts.
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

// fitting returns how many units go into one call, at least one.
func (r *batchRun) fitting(group []*dispatch.Item) int {
	most := r.b.dispatcher.MaxIDs(r.batch)
	ids := make(map[instance.ID]struct{})
	for n, u := range group {
		for _, id := range u.IDs {
			ids[id] = struct{}{}
		}
		if len(ids) > most {
			return max(1, n)
		}
	}
	return len(group)
}

// resolveUnknown is for a call of unknown outcome: it looks what became of it, and returns
// the units that it did nothing for, to try again. Nobody can see whether a reboot took
// place, and a second one would be another one.
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

// checkOutcome describes the instances after a call that failed, and may have changed some all
// the same. Units of which everything was changed have their answer; the others are
// returned. When EC2 does not say, nobody can be told what happened.
func (r *batchRun) checkOutcome(ctx context.Context, group []*dispatch.Item, f *failure) (rest []*dispatch.Item) {
	seen, ok := r.observeOutcome(ctx, group, f)
	if !ok {
		return nil
	}
	if f.reaction == unknownOutcome && len(r.appliedUnclaimed) > 0 {
		// The call was carried out: what it did not change it found where it leads.
		for id, s := range seen {
			if _, changed := r.appliedUnclaimed[id]; !changed && r.batch.Verb.DoneIn(s.State) {
				r.appliedUnclaimed[id] = instance.StateChange{ID: id, Previous: s.State, Current: s.State, At: wallClock(r.sent)}
			}
		}
	}
	return r.deliverApplied(group)
}

// deliverApplied answers the units of which failed calls changed everything, and returns the
// others.
func (r *batchRun) deliverApplied(group []*dispatch.Item) (rest []*dispatch.Item) {
	lines := maps.Clone(r.appliedUnclaimed)
	did := make(map[instance.ID]int)
	for _, u := range group {
		if slices.ContainsFunc(u.IDs, func(id instance.ID) bool { _, ok := r.appliedUnclaimed[id]; return !ok && did[id] == 0 }) {
			rest = append(rest, u)
			continue
		}
		var changes []instance.StateChange
		for _, id := range u.IDs {
			changes = append(changes, repeated(lines[id], did[id]))
			did[id]++
			delete(r.appliedUnclaimed, id)
		}
		r.deliver(u, changes, nil)
	}
	return rest
}

// observeOutcome describes the instances of a group and notes what the last call did. If EC2 does
// not say, it is false, and the group has its outcome.
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

// describeAfter describes instances after a call that failed. If EC2 did not answer that, most
// likely it does not answer this either, and callers are to be told before their own time
// is over.
func (r *batchRun) describeAfter(ctx context.Context, ids []instance.ID, f *failure) (map[instance.ID]describedInstance, error) {
	if f.unreachable {
		if away := r.b.client.breaker.openErr(); away != nil {
			return nil, away
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, checkTimeout)
		defer cancel()
	}
	return r.b.describeAll(ctx, ids)
}

// rebooted returns the states of instances whose reboot EC2 accepted: running, or
// terminated, of which a reboot is ignored.
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
		// If EC2 does not say, it is what EC2 reboots.
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
