package observer

import (
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// causeCandidate is a command that may have caused a step of an instance, as it stood when
// the tracker was asked.
type causeCandidate struct {
	*commandOnInstance
	// target is the state that it leads to directly.
	target instance.State
	// sent and ended are when it was sent and when it ended; ended is zero unless it is
	// unresolved.
	sent, ended time.Time
	// answered is whether the backend has said what it did.
	answered bool
}

func (on *commandOnInstance) candidateLocked() causeCandidate {
	return causeCandidate{commandOnInstance: on, target: on.command.target, sent: on.sentAt, ended: on.ended, answered: on.change != nil}
}

// endedBefore reports whether the command had ended before a time.
func (c causeCandidate) endedBefore(at time.Time) bool {
	return !c.ended.IsZero() && c.ended.Before(at)
}

// contradictedBy reports whether an image shows that the start by which it differs from what
// was known was not this command.
func (c causeCandidate) contradictedBy(known, image *instance.Instance) bool {
	return c.target == instance.StatePending && !c.answered && image.LaunchTime.After(known.LaunchTime) &&
		!instance.MayHaveMade(image.LaunchTime, c.sent, c.ended)
}

// recordedStep is a change of state in the journal.
type recordedStep struct {
	from, to instance.State
	at       time.Time
}

// attribute makes the command the cause of a step. It fails for one that was answered
// otherwise meanwhile, or that is the cause of another step.
func (on *commandOnInstance) attribute(step *recordedStep) bool {
	on.command.tracker.mu.Lock()
	defer on.command.tracker.mu.Unlock()
	if !on.changed() && (on.step.Load() != nil || on.state != inFlight && on.state != outcomeUnknown) {
		return false
	}
	on.step.Store(step)
	return true
}

// actedBefore reports whether an unresolved command acted at or before a time, if it did.
func (on *commandOnInstance) actedBefore(at time.Time) bool {
	if on.change != nil {
		return !on.change.At.After(at)
	}
	return on.ended.Before(at)
}

// showsIn reports whether the answer to the command is the step that is recorded as its doing
// already, and a state is what that step leads to. A backend that sent the command more than
// once, since an answer was lost, dates the change by a later request.
func (on *commandOnInstance) showsIn(state instance.State) bool {
	step, change := on.step.Load(), on.change
	return step != nil && step.from == change.Previous && step.to == change.Current &&
		(state == step.to || instance.Completes(step.to, state))
}

// reportedChange returns what the caller of a command is told of an instance once the answer
// is recorded. Whoever the journal names as the cause of a step is told of it, even if the
// backend found nothing to do, and no other caller is: a change that is recorded without a cause, or
// with another one, was found done.
func (on *commandOnInstance) reportedChange() instance.StateChange {
	change := *on.change
	switch step := on.step.Load(); {
	case step == nil:
		change.Previous = change.Current
	case !on.changed():
		change.Previous, change.Current = step.from, step.to
	}
	return change
}

// withRecordedSteps replaces unknown outcomes in the backend's response by the steps that the
// journal attributes to the command.
func (c *inflightCommand) withRecordedSteps(response instance.Result, err error) (instance.Result, error) {
	unknown := func(f instance.Failure) bool { return f.Err.OutcomeUnknown }
	if (err == nil || !instance.AsError(err).OutcomeUnknown) && !slices.ContainsFunc(response.Failures, unknown) {
		return response, err
	}
	changes := make(map[instance.ID]instance.StateChange)
	for i := range c.on {
		on := &c.on[i]
		if step := on.step.Load(); step != nil {
			changes[on.id] = instance.StateChange{ID: on.id, Previous: step.from, Current: step.to, At: step.at}
		}
	}
	if len(changes) == 0 {
		return response, err
	}
	for _, change := range response.Changes {
		changes[change.ID] = change
	}
	resolved := instance.Result{Failures: slices.DeleteFunc(slices.Clone(response.Failures), func(f instance.Failure) bool {
		_, found := changes[f.ID]
		return found && unknown(f)
	})}
	for i := range c.on {
		if change, found := changes[c.on[i].id]; found {
			resolved.Changes = append(resolved.Changes, change)
		}
	}
	if len(resolved.Changes)+len(resolved.Failures) == len(c.on) {
		err = nil
	}
	return resolved, err
}

// unrecordedBefore returns the commands that changed an instance before a time by their
// answer, which may not be recorded: those in flight, except for one that records its answer
// itself, and those whose answer could not be recorded. They are in order.
func (t *tracker) unrecordedBefore(id instance.ID, at time.Time, except *inflightCommand) (list []causeCandidate) {
	t.mu.Lock()
	defer t.mu.Unlock()
	tr := t.tracks[id]
	if tr == nil {
		return nil
	}
	for _, on := range tr.changed[:tr.changed.before(at)] {
		t.examined++
		if on.command != except {
			list = append(list, on.candidateLocked())
		}
	}
	for _, on := range tr.unresolved[:tr.unresolved.before(at)] {
		t.examined++
		if on.state == unrecorded {
			list = append(list, on.candidateLocked())
		}
	}
	slices.SortFunc(list, func(a, b causeCandidate) int { return a.change.At.Compare(b.change.At) })
	return list
}

// possibleCauses returns the commands that may have changed an instance between two times in
// a way that is not recorded: those that changed it by their answer, the first of each verb
// among those that are unanswered, and those whose outcome is unknown.
func (t *tracker) possibleCauses(id instance.ID, after, until time.Time) (list []causeCandidate) {
	t.mu.Lock()
	defer t.mu.Unlock()
	tr := t.tracks[id]
	if tr == nil {
		return nil
	}
	add := func(on *commandOnInstance) bool {
		t.examined++
		if on.step.Load() != nil {
			return false
		}
		list = append(list, on.candidateLocked())
		return true
	}
	first := tr.changed.through(after)
	for _, on := range tr.changed[first:max(first, tr.changed.through(until))] {
		add(on)
	}
	for _, unanswered := range tr.unanswered {
		for _, on := range unanswered[:unanswered.through(until)] {
			if add(on) {
				break
			}
		}
	}
	for _, on := range tr.unresolved[:tr.unresolved.through(until)] {
		if !on.actedBefore(after) {
			add(on)
		}
	}
	return list
}
