package observer

import (
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// observation is what an answer, a notice or a description says of one instance.
type observation struct {
	id instance.ID
	// at is when the instance was seen. What commands did before that is recorded first.
	at time.Time
	// answer is the command that was answered; nil for notices and descriptions. They have
	// image, which returns the instance as it was seen, nil if it does not exist, and false
	// if that is no reason to record anything, given what is known.
	answer *commandOnInstance
	image  func(known journal.Record, found bool) (image *instance.Instance, news bool)
	// occurredAt is when the instance changed, as far as is known; zero for now.
	occurredAt time.Time
	source     instance.Source
	// causedAfter and causedUntil bound when a command acted that may have caused the change.
	// One that acted before the last recorded change did not.
	causedAfter, causedUntil time.Time
}

// apply is the one entry by which observations are recorded. First come the commands that
// changed the instance before and are not recorded, then the commands are collected that may
// have caused the observed change, and then the reducer records what leads to it.
func (u *updateTx) apply(o observation) {
	var except *inflightCommand
	if o.answer != nil {
		except = o.answer.command
	}
	for _, c := range u.observer.tracker.unrecordedBefore(o.id, o.at, except) {
		if _, found := u.Get(o.id); found {
			u.applyAnswer(c)
		}
	}
	if o.answer != nil {
		u.applyAnswer(causeCandidate{commandOnInstance: o.answer})
		return
	}
	known, found := u.Get(o.id)
	image, news := o.image(known, found)
	if !news {
		return
	}
	after := o.causedAfter
	if known.ChangedAt.After(after) {
		after = known.ChangedAt
	}
	u.reduce(o.id, image, o.occurredAt, o.source, u.observer.tracker.possibleCauses(o.id, after, o.causedUntil))
}

// applyAnswer records the answer to a command: first what leads to the state in which the
// command found the instance, if that was not known, then what the command changed.
func (u *updateTx) applyAnswer(by causeCandidate) {
	change := *by.change
	known, found := u.Get(change.ID)
	reduce := func(image *instance.Instance, causes []causeCandidate) {
		u.reduce(change.ID, image, change.At, instance.SourceAnswer, causes)
	}
	switch {
	case !found && change.After == nil:
		u.observer.refresher.request(change.ID)
		return
	case !found:
		reduce(foundAs(change.After, change), nil)
		known, _ = u.Get(change.ID)
	case known.Position.Seq > by.command.before.Seq && (alreadyRecorded(known, change) || by.showsIn(known.Instance.State)):
		return
	case change.Deduced && by.changed() && recordedOtherwise(known, change):
		return
	case known.Instance.State != change.Previous:
		reduce(foundAs(known.Instance, change), u.observer.tracker.possibleCauses(change.ID, known.ChangedAt, change.At))
	}
	if by.changed() {
		by.target = change.Current
		reduce(leftAs(known.Instance, change), []causeCandidate{by})
	}
}

// alreadyRecorded reports whether what is known is newer than a change, or is that change
// itself, as a notice told before the answer came. EventBridge gives whole seconds: within
// one, only the state can tell.
func alreadyRecorded(known journal.Record, change instance.StateChange) bool {
	if !change.At.After(known.ChangedAt) {
		return true
	}
	state := known.Instance.State
	return known.Source == instance.SourceEventBridge && !change.At.Truncate(time.Second).After(known.ChangedAt) &&
		(state == change.Current || state != change.Previous && instance.Completes(change.Current, state))
}

// recordedOtherwise reports whether a change that the backend deduced is recorded already, as
// somebody else's doing. The backend concluded from the present state that its call led there;
// that the instance was in another state before is no more than a guess, and the record is right.
// An instance that is at rest, but is not recorded to have come there from that state, is no
// sign of the change: it may have been stopped, or first been seen, a moment before it was started.
func recordedOtherwise(known journal.Record, change instance.StateChange) bool {
	ended := known.Previous != nil && known.Previous.State == change.Current && instance.Completes(change.Current, known.Instance.State)
	return (known.Instance.State == change.Current || ended) && !known.ChangedAt.Before(change.At.Add(-instance.ClockSkew))
}

// foundAs returns the instance as a command found it, as far as that is known. One that the
// command did not change is as the backend says; if its image were made up, the next
// description would look as if it had been started and stopped meanwhile.
func foundAs(known *instance.Instance, change instance.StateChange) *instance.Instance {
	if change.Current == change.Previous && change.After != nil {
		return change.After
	}
	return withState(known, change.Previous)
}

// leftAs returns the instance as a command left it. EC2's response has only the states.
func leftAs(known *instance.Instance, change instance.StateChange) *instance.Instance {
	if change.After != nil {
		return change.After
	}
	return entered(known, change.Current, change.At)
}

// entered returns the instance as it was when it entered a state, as far as that is known: a
// start sets the launch time, within [instance.ClockSkew]. The next description has the rest.
func entered(known *instance.Instance, state instance.State, at time.Time) *instance.Instance {
	image := withState(known, state)
	if state == instance.StatePending {
		image.StateTransitionReason, image.LaunchTime = "", at.Truncate(time.Second)
	}
	return image
}

// withState returns the instance in a state in which it was not seen.
func withState(known *instance.Instance, state instance.State) *instance.Instance {
	image := known.Clone()
	image.State = state
	image.StateReason = nil
	return image
}
