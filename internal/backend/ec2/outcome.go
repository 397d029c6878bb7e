package ec2

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// answer gives every unit its lines of EC2's answer. EC2 says once what it did: of those
// who asked for it the first caused it, and the others found it done.
func (r *round) answer(group []unit, got map[instance.ID]instance.StateChange) {
	asked := make(map[instance.ID]int)
	for _, u := range group {
		changes := make([]instance.StateChange, len(u.ids))
		for i, id := range u.ids {
			changes[i] = r.claim(got[id], asked[id])
			asked[id]++
		}
		r.give(u, changes, nil)
	}
}

// answerPart gives the units their lines that EC2's answer has all lines of, and returns the
// others with the failure that what became of them is not known.
func (r *round) answerPart(group []unit, got map[instance.ID]instance.StateChange) (rest []unit, f *failure) {
	var told []unit
	var missing []instance.ID
	taken := make(map[instance.ID]bool)
	for _, u := range group {
		if unit := missingIn(got, u.ids); len(unit) > 0 {
			rest, missing = append(rest, u), append(missing, unit...)
			continue
		}
		told = append(told, u)
		for _, id := range u.ids {
			taken[id] = true
		}
	}
	r.answer(told, got)
	for _, u := range rest {
		for _, id := range u.ids {
			if line, ok := got[id]; ok && !taken[id] {
				r.did[id] = r.claim(line, 0)
			}
		}
	}
	const maxNamed = 5
	return rest, &failure{reaction: open, err: &instance.Error{
		Kind:       instance.KindUnavailable,
		Reason:     instance.ReasonAnswerLost,
		Message:    "EC2's answer does not say, in a way that can be understood, what became of " + joinIDs(missing[:min(len(missing), maxNamed)]),
		RetryAfter: retryUnavailable,
	}}
}

// claim returns a line of EC2's answer for a caller, the n-th who asked for it.
func (r *round) claim(line instance.StateChange, n int) instance.StateChange {
	if did, ok := r.did[line.ID]; ok {
		delete(r.did, line.ID)
		if did.Previous != did.Current {
			// An earlier call did it, whose answer nobody got.
			return did
		}
	}
	if n == 0 || r.b.rules.allFirst {
		doubted, ok := r.before[line.ID]
		delete(r.before, line.ID)
		if ok && line.Previous == line.Current && done(r.kind.verb, line.Current) && !r.b.book.claimed(r.kind.verb, line.ID, doubted.sent) {
			// An earlier call did it after all, later than could be seen.
			return r.passed(line.ID, doubted)
		}
		return line
	}
	return found(line, n)
}

// passed is the change that a call made of an instance which was in a state before.
func (r *round) passed(id instance.ID, before doubt) instance.StateChange {
	from, to := passage(r.kind.verb, before.state)
	return instance.StateChange{ID: id, Previous: from, Current: to, At: wall(before.sent)}
}

// found is a line of an answer for the n-th caller after the first, who finds done what
// the first caused.
func found(line instance.StateChange, n int) instance.StateChange {
	if n > 0 {
		line.Previous = line.Current
		line.At = line.At.Add(time.Duration(n))
	}
	return line
}

// wall drops what a time says beyond the wall clock.
func wall(t time.Time) time.Time { return t.Round(0).UTC() }

// give gives a unit its outcome.
func (r *round) give(u unit, changes []instance.StateChange, refusal *instance.Error) {
	for _, change := range changes {
		r.b.book.told(change)
	}
	if refusal == nil {
		r.answered++
	}
	if r.b.rules.decided != nil {
		r.b.rules.decided(u, r.sent, changes, refusal)
	}
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	u.settle(changes, u.ids, refusal)
}

// refuse gives a unit an error, beside what was changed of it all the same.
func (r *round) refuse(u unit, err *instance.Error) {
	var changes []instance.StateChange
	for _, id := range u.ids {
		if did, ok := r.did[id]; ok {
			delete(r.did, id)
			if did.Previous != did.Current {
				changes = append(changes, did)
			}
		}
	}
	if len(changes) == len(u.ids) && u.divisible() {
		err = nil
	}
	r.give(u, changes, err)
}

func (r *round) refuseAll(group []unit, err *instance.Error) {
	for _, u := range group {
		r.refuse(u, err)
	}
}

// refuseUnsent refuses a unit whose next call did not get to EC2. Nothing was changed, unless
// an earlier call did of which that is not certain.
func (r *round) refuseUnsent(u unit, err *instance.Error) {
	if slices.ContainsFunc(u.ids, func(id instance.ID) bool { _, doubted := r.before[id]; return doubted }) {
		err = &instance.Error{
			Kind:           instance.KindUnavailable,
			Reason:         instance.ReasonAnswerLost,
			Message:        "whether an earlier try of the call was carried out is unknown, and EC2 could not be asked again",
			RetryAfter:     err.RetryAfter,
			OutcomeUnknown: true,
			Cause:          err,
		}
	}
	r.refuse(u, err)
}

func (r *round) refuseAllUnsent(group []unit, err *instance.Error) {
	for _, u := range group {
		r.refuseUnsent(u, err)
	}
}

// dismiss refuses the units that want an instance which the failure names, and returns
// the others.
func (r *round) dismiss(group []unit, f *failure) (rest []unit) {
	named := make(map[instance.ID]bool)
	for _, id := range f.named {
		named[id] = true
	}
	for _, u := range group {
		hit := r.b.rules.blameAll
		for _, id := range u.ids {
			hit = hit || named[id]
		}
		if hit {
			r.refuse(u, f.errorFor(u.ids))
		} else {
			rest = append(rest, u)
		}
	}
	return rest
}

// spare is for a termination that EC2 carried out, protected instances apart and all that
// share a zone with them. Which zones those are depends on who travels together: a call
// for a protected instance and others is made again alone, and the rest is returned.
func (r *round) spare(ctx context.Context, group []unit, f *failure) (rest []unit) {
	var alone []unit
	for _, u := range r.look(ctx, group, f) {
		switch named := namedIn(f.err.Message, u.ids); {
		case len(named) == 0 && !r.b.rules.blameAll:
			rest = append(rest, u)
		case len(u.ids) == 1:
			r.refuse(u, f.errorFor(u.ids))
		default:
			alone = append(alone, u)
		}
	}
	if len(alone)+len(rest) == len(group) && len(alone) == 0 {
		// It names none of them.
		return r.bisect(ctx, rest, f)
	}
	for i := range alone {
		r.settle(ctx, alone[i:i+1])
	}
	return rest
}

// dismissLate refuses the callers whose deadline comes before the buckets allow the next
// call: with EC2's error if it throttled, else with that of its mirror.
func (r *round) dismissLate(group []unit, wait time.Duration, f *failure) (rest []unit) {
	now := time.Now()
	for _, u := range group {
		if u.deadline.IsZero() || !now.Add(wait).After(u.deadline) {
			rest = append(rest, u)
			continue
		}
		var err *instance.Error
		if f != nil {
			err = new(*f.err)
			err.RetryAfter = wait
		} else {
			r.b.mu.Lock()
			err = r.d.errLimit(now, wait)
			r.b.mu.Unlock()
		}
		r.refuseUnsent(u, err)
	}
	return rest
}

// split divides a batch that is too large for EC2.
func (r *round) split(ctx context.Context, group []unit, f *failure) {
	if len(group) == 1 {
		r.refuse(group[0], f.errorFor(group[0].ids))
		return
	}
	r.b.mu.Lock()
	if most := max(1, f.asked/2); most < r.d.most {
		r.d.most = most
		r.b.log.Info("EC2 takes fewer instances a call than was tried", "action", string(r.d.verb), "from_now_on", most)
	}
	r.b.mu.Unlock()
	r.reportRejected(group)
	for len(group) > 0 {
		n := r.fitting(group)
		r.settle(ctx, group[:n])
		group = group[n:]
	}
}

// fitting returns how many units go into one call, at least one.
func (r *round) fitting(group []unit) int {
	r.b.mu.Lock()
	most := r.d.most
	r.b.mu.Unlock()
	ids := make(map[instance.ID]struct{})
	for n, u := range group {
		for _, id := range u.ids {
			ids[id] = struct{}{}
		}
		if len(ids) > most {
			return max(1, n)
		}
	}
	return len(group)
}

// reconsider is for a call of unknown outcome: it looks what became of it, and returns
// the units that it did nothing for, to try again. Nobody can see whether a reboot took
// place, and a second one would be another one.
func (r *round) reconsider(ctx context.Context, group []unit, f *failure) []unit {
	r.opens++
	if r.kind.verb == instance.VerbReboot || r.opens == mostOpen {
		r.refuseAll(group, f.unknownOutcome())
		return nil
	}
	group = r.look(ctx, group, f)
	if len(group) == 0 {
		return nil
	}
	if err := r.pause(ctx, jitter(firstPause<<(r.opens-1))); err != nil {
		r.refuseAll(group, f.unknownOutcome())
		return nil
	}
	return group
}

// look describes the instances after a call that failed, and may have changed some all
// the same. Units of which everything was changed have their answer; the others are
// returned. When EC2 does not say, nobody can be told what happened.
func (r *round) look(ctx context.Context, group []unit, f *failure) (rest []unit) {
	seen, ok := r.see(ctx, group, f)
	if !ok {
		return nil
	}
	if f.reaction == open && len(r.did) > 0 {
		// The call was carried out: what it did not change it found where it leads.
		for id, s := range seen {
			if _, changed := r.did[id]; !changed && done(r.kind.verb, s.State) {
				r.did[id] = instance.StateChange{ID: id, Previous: s.State, Current: s.State, At: wall(r.sent)}
			}
		}
	}
	return r.deliver(group)
}

// deliver answers the units of which failed calls changed everything, and returns the
// others.
func (r *round) deliver(group []unit) (rest []unit) {
	lines := maps.Clone(r.did)
	did := make(map[instance.ID]int)
	for _, u := range group {
		if slices.ContainsFunc(u.ids, func(id instance.ID) bool { _, ok := r.did[id]; return !ok && did[id] == 0 }) {
			rest = append(rest, u)
			continue
		}
		var changes []instance.StateChange
		for _, id := range u.ids {
			changes = append(changes, found(lines[id], did[id]))
			did[id]++
			delete(r.did, id)
		}
		r.give(u, changes, nil)
	}
	return rest
}

// see describes the instances of a group and notes what the last call did. If EC2 does
// not say, it is false, and the group has its outcome.
func (r *round) see(ctx context.Context, group []unit, f *failure) (map[instance.ID]sight, bool) {
	ids := distinct(group)
	was := make(map[instance.ID]instance.State, len(ids))
	for _, id := range ids {
		was[id] = r.b.book.state(id)
	}
	seen, failed := r.lookAfter(ctx, ids, f)
	if failed != nil {
		err := f.unknownOutcome()
		err.Cause = failed
		r.refuseAll(group, err)
		return nil, false
	}
	for _, id := range ids {
		inst, found := seen[id]
		if !found {
			continue
		}
		if _, known := r.did[id]; known {
			continue
		}
		doubted, again := r.before[id]
		switch {
		case !done(r.kind.verb, inst.State):
			r.before[id] = doubt{state: inst.State, sent: r.sent}
		case again && !r.b.book.claimed(r.kind.verb, id, doubted.sent):
			delete(r.before, id)
			r.did[id] = r.passed(id, doubt{state: doubted.state, sent: r.sent})
		case r.b.book.changedBy(r.kind.verb, inst.Instance, r.sent):
			r.did[id] = r.passed(id, doubt{state: was[id], sent: r.sent})
		}
	}
	return seen, true
}

// lookAfter describes instances after a call that failed. If EC2 did not answer that, most
// likely it does not answer this either, and callers are to be told before their own time
// is over.
func (r *round) lookAfter(ctx context.Context, ids []instance.ID, f *failure) (map[instance.ID]sight, error) {
	if f.unreached {
		if away := r.b.client.reach.known(); away != nil {
			return nil, away
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, lookTimeout)
		defer cancel()
	}
	return r.b.look(ctx, ids)
}

// rebooted returns the states of instances whose reboot EC2 accepted: running, or
// terminated, of which a reboot is ignored.
func (r *round) rebooted(ctx context.Context, ids []instance.ID) map[instance.ID]instance.StateChange {
	states := make(map[instance.ID]instance.State, len(ids))
	var ask []instance.ID
	for _, id := range ids {
		states[id] = instance.StateRunning
		if r.b.book.state(id) != instance.StateRunning {
			ask = append(ask, id)
		}
	}
	if len(ask) > 0 {
		// If EC2 does not say, it is what EC2 reboots.
		seen, _ := r.b.look(ctx, ask)
		for id, inst := range seen {
			states[id] = inst.State
		}
	}
	got := make(map[instance.ID]instance.StateChange, len(ids))
	for id, state := range states {
		got[id] = instance.StateChange{ID: id, Previous: state, Current: state, At: wall(r.sent)}
	}
	return got
}
