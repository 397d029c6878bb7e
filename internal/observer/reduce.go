package observer

import (
	"maps"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// reduce records what leads from what is known of an instance to an image of it: nothing if
// they are equal, and otherwise every state that it must have passed through, marked as
// inferred. A nil image means that the backend no longer knows the instance. All changes
// enter the journal here.
func (u *updateTx) reduce(id instance.ID, image *instance.Instance, occurredAt time.Time, source instance.Source, candidates []causeCandidate) {
	known, found := u.Get(id)
	if image == nil {
		if found {
			u.remove(known, source)
		}
		return
	}
	at := occurredAt
	if at.IsZero() {
		at = u.now
	}
	if at.Before(known.ChangedAt) {
		at = known.ChangedAt
	}
	change := instance.Change{After: image, Source: source, OccurredAt: at, ObservedAt: u.now}
	if !found {
		change.Type = instance.ChangeAdded
		u.Append(change)
		return
	}
	from, to := known.Instance.State, image.State
	path, ok := instance.Path(from, to)
	switch {
	case restarted(known, image):
		path = map[instance.State][]instance.State{
			instance.StateRunning: {instance.StateStopping, instance.StateStopped, instance.StatePending, instance.StateRunning},
			instance.StateStopped: {instance.StatePending, instance.StateStopped},
		}[to]
	case from == to:
		if !known.Instance.Equal(image) {
			change.Type, change.Cause = instance.ChangeAttributes, attributesCause(known, image)
			u.Append(change)
		}
		return
	}
	if !ok {
		// Nothing leads out of terminated, so what was known was another instance.
		gone := change
		gone.Type, gone.Before, gone.After, gone.Inferred = instance.ChangeRemoved, known.Instance, nil, true
		u.Append(gone)
		change.Type = instance.ChangeAdded
		u.Append(change)
		return
	}
	candidates = slices.DeleteFunc(candidates, func(c causeCandidate) bool { return c.contradictedBy(known.Instance, image) })
	cause := known.Cause
	for i, state := range path {
		cause, candidates = u.causeOf(recordedStep{from, state, at}, cause, candidates)
		step := change
		step.Type, step.Cause = instance.ChangeState, cause
		if i < len(path)-1 {
			step.Inferred, step.After = true, withState(known.Instance, state)
		}
		u.Append(step)
		from = state
	}
}

// remove records that the backend no longer knows an instance.
func (u *updateTx) remove(known journal.Record, source instance.Source) {
	change := instance.Change{
		Type:       instance.ChangeRemoved,
		Before:     known.Instance,
		Source:     source,
		OccurredAt: u.now,
		ObservedAt: u.now,
	}
	if known.Instance.State == instance.StateTerminated {
		change.Cause = known.Cause
	}
	u.Append(change)
}

// causeOf returns the cause of a step, given that of the step before, and the candidates that
// are left for later steps: a command causes one step, and a command that had ended before
// the cause of this step was sent did not cause a later one.
func (u *updateTx) causeOf(step recordedStep, before instance.Cause, candidates []causeCandidate) (instance.Cause, []causeCandidate) {
	for i, c := range candidates {
		if c.target == step.to && u.attribute(c, step) {
			left := slices.DeleteFunc(slices.Delete(candidates, i, i+1), func(o causeCandidate) bool { return o.endedBefore(c.sent) })
			return c.command.cause, left
		}
	}
	if instance.Completes(step.from, step.to) {
		return before, candidates
	}
	return instance.Cause{}, candidates
}

// restarted reports whether an instance at rest was started since it was last known to be,
// although it is in the same state again and no change was observed. Launch times are in whole
// seconds; the simulator counts its changes.
func restarted(known journal.Record, image *instance.Instance) bool {
	if known.Instance.State != image.State || image.State.Transitional() {
		return false
	}
	if was, is := known.Instance.Simulator, image.Simulator; was != nil && is != nil {
		return is.Transitions > was.Transitions
	}
	return image.LaunchTime.After(known.ChangedAt)
}

// attributesCause returns the cause of a change of anything but the state: the command that
// is still taking effect, such as the start that gives an instance its public address; or
// somebody outside, as with tags.
func attributesCause(known journal.Record, image *instance.Instance) instance.Cause {
	if known.Instance.State.Transitional() && maps.Equal(known.Instance.Tags, image.Tags) {
		return known.Cause
	}
	return instance.Cause{}
}
