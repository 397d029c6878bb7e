package lifecycle

import (
	"maps"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// sighting is what somebody saw of an instance, ready to be compared with what is
// known of it.
type sighting struct {
	// image is the instance in full.
	image *instance.Instance
	// occurredAt is when it came to be so, as far as anybody can tell; zero for now.
	occurredAt time.Time
	source     instance.Source
	// candidates are the commands that may have brought it about.
	candidates []causeCandidate
}

// causeOf returns the cause of one step, given that of the step before it. A command is the
// cause of one step only, and none that had ended before it was sent that of a later one.
func (s *sighting) causeOf(r *recording, step recordedStep, before instance.Cause) instance.Cause {
	for i, c := range s.candidates {
		if c.target == step.to && r.claim(c, step) {
			s.candidates = slices.DeleteFunc(slices.Delete(s.candidates, i, i+1), func(o causeCandidate) bool { return o.endedBefore(c.sent) })
			return c.command.cause
		}
	}
	if instance.Completes(step.from, step.to) {
		return before
	}
	return instance.Cause{}
}

// reduce records what leads from what is known of an instance to what was seen of
// it: nothing when they are the same, and every state that it must have passed
// through otherwise, marked as inferred. With remove it is the one path by which
// changes enter the journal.
func reduce(r *recording, s sighting) {
	known, found := r.Get(s.image.ID)
	at := s.occurredAt
	if at.IsZero() {
		at = r.now
	}
	if at.Before(known.ChangedAt) {
		at = known.ChangedAt
	}
	seen := instance.Change{After: s.image, Source: s.source, OccurredAt: at, ObservedAt: r.now}
	if !found {
		seen.Type = instance.ChangeAdded
		r.Append(seen)
		return
	}
	from, to, cause := known.Instance.State, s.image.State, known.Cause
	path, ok := instance.Path(from, to)
	switch {
	case restarted(known, s.image):
		path = map[instance.State][]instance.State{
			instance.StateRunning: {instance.StateStopping, instance.StateStopped, instance.StatePending, instance.StateRunning},
			instance.StateStopped: {instance.StatePending, instance.StateStopped},
		}[to]
	case from == to:
		if !known.Instance.Equal(s.image) {
			seen.Type, seen.Cause = instance.ChangeAttributes, attributesCause(known, s.image)
			r.Append(seen)
		}
		return
	}
	if !ok {
		// Nothing leads out of terminated, so what was known was another instance.
		gone := seen
		gone.Type, gone.Before, gone.After, gone.Inferred = instance.ChangeRemoved, known.Instance, nil, true
		r.Append(gone)
		seen.Type = instance.ChangeAdded
		r.Append(seen)
		return
	}
	s.candidates = slices.DeleteFunc(s.candidates, func(c causeCandidate) bool { return c.contradictedBy(known.Instance, s.image) })
	for i, state := range path {
		cause = s.causeOf(r, recordedStep{from, state, at}, cause)
		step := seen
		step.Type, step.Cause = instance.ChangeState, cause
		if i < len(path)-1 {
			step.Inferred, step.After = true, passing(known.Instance, state)
		}
		r.Append(step)
		from = state
	}
}

// restarted reports whether an instance at rest was started since it was last known to
// be so, although it is in the same state again: nobody saw it happen. Launch times are
// in whole seconds; the simulator counts its changes.
func restarted(known journal.Record, image *instance.Instance) bool {
	if known.Instance.State != image.State || image.State.Transitional() {
		return false
	}
	if was, is := known.Instance.Simulator, image.Simulator; was != nil && is != nil {
		return is.Transitions > was.Transitions
	}
	return image.LaunchTime.After(known.ChangedAt)
}

// remove records that the backend no longer knows an instance.
func remove(r *recording, known journal.Record) {
	change := instance.Change{
		Type:       instance.ChangeRemoved,
		Before:     known.Instance,
		Source:     instance.SourceReconcile,
		OccurredAt: r.now,
		ObservedAt: r.now,
	}
	if known.Instance.State == instance.StateTerminated {
		change.Cause = known.Cause
	}
	r.Append(change)
}

// passing returns the instance as it must have been in a state that nobody saw it in.
func passing(known *instance.Instance, state instance.State) *instance.Instance {
	image := known.Clone()
	image.State = state
	image.StateReason = nil
	return image
}

// foundAs returns the instance as a command found it, as far as that is known. One that
// the command left alone is as the backend says; made up, it would look as if it had been
// started and stopped when it is next described.
func foundAs(known *instance.Instance, change instance.StateChange) *instance.Instance {
	if change.Current == change.Previous && change.After != nil {
		return change.After
	}
	return passing(known, change.Previous)
}

// attributesCause says who brought about a change of anything but the state: the
// command that is still taking effect, such as the start that gives an instance its
// public address; or somebody outside, as with tags.
func attributesCause(known journal.Record, image *instance.Instance) instance.Cause {
	if known.Instance.State.Transitional() && maps.Equal(known.Instance.Tags, image.Tags) {
		return known.Cause
	}
	return instance.Cause{}
}

// leftAs returns the instance as a command left it. EC2's answer has the states only.
func leftAs(known *instance.Instance, change instance.StateChange) *instance.Instance {
	if change.After != nil {
		return change.After
	}
	return entered(known, change.Current, change.At)
}

// entered returns the instance as it was when it entered a state, as far as that is known:
// a start sets the launch time, or about so. The rest follows when it is next described.
func entered(known *instance.Instance, state instance.State, at time.Time) *instance.Instance {
	image := passing(known, state)
	if state == instance.StatePending {
		image.StateTransitionReason, image.LaunchTime = "", at.Truncate(time.Second)
	}
	return image
}
