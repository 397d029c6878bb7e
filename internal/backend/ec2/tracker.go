package ec2

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// tracker holds the last known state of each instance and the changes reported to callers, which
// together tell what became of a call whose answer was lost. It is safe for concurrent use.
type tracker struct {
	mu      sync.Mutex
	entries map[instance.ID]trackedState
}

type trackedState struct {
	state instance.State
	// launched is when the instance was last started, and changed when its last change was
	// requested, as EC2 describes it.
	launched, changed sighting
	// reports are the last changes that callers were told of, by the states that verbs lead to.
	reports [len(reportedTargets)]report
}

// sighting is a time in descriptions of an instance, and when it was first there.
type sighting struct{ at, seen time.Time }

func (s *sighting) update(at, now time.Time) {
	if !at.Equal(s.at) {
		s.at, s.seen = at, now
	}
}

// report is a change that a caller was told of: when the call that made it was sent, and when
// the caller was told.
type report struct{ sent, told time.Time }

// reportedTargets are the states to which verbs lead directly.
var reportedTargets = [...]instance.State{instance.StatePending, instance.StateStopping, instance.StateShuttingDown}

// report returns the last change of a verb that a caller was told of.
func (e *trackedState) report(verb instance.Verb) report {
	if i := slices.Index(reportedTargets[:], verb.Target()); i >= 0 {
		return e.reports[i]
	}
	return report{}
}

func (t *tracker) state(id instance.ID) instance.State {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.entries[id].state
}

// observed notes how an instance is described.
func (t *tracker) observed(inst *instance.Instance) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, now := t.entries[inst.ID], time.Now()
	e.state = inst.State
	e.launched.update(inst.LaunchTime, now)
	e.changed.update(transitionTime(inst.StateTransitionReason), now)
	t.setLocked(inst.ID, e)
}

// reported notes that a change is reported to a caller.
func (t *tracker) reported(change instance.StateChange) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, now := t.entries[change.ID], time.Now()
	e.state = change.Current
	if i := slices.Index(reportedTargets[:], change.Current); i >= 0 && change.Previous != change.Current {
		e.reports[i] = report{sent: change.At, told: now}
	}
	t.setLocked(change.ID, e)
}

// setLocked stores an entry, unless the instance is terminated: nothing follows that.
func (t *tracker) setLocked(id instance.ID, e trackedState) {
	if e.state == instance.StateTerminated {
		delete(t.entries, id)
		return
	}
	if t.entries == nil {
		t.entries = make(map[instance.ID]trackedState)
	}
	t.entries[id] = e
}

// forget drops an instance that does not exist.
func (t *tracker) forget(id instance.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.entries, id)
}

// transition returns the change that a verb makes to an instance in a state; the usual one if the
// state is unknown or impossible.
func transition(verb instance.Verb, before instance.State) (from, to instance.State) {
	switch verb {
	case instance.VerbStart:
		return instance.StateStopped, instance.StatePending
	case instance.VerbStop:
		if before == instance.StatePending {
			return before, instance.StateStopping
		}
		return instance.StateRunning, instance.StateStopping
	case instance.VerbTerminate:
		if before == instance.StateUnspecified || verb.DoneIn(before) {
			before = instance.StateRunning
		}
		return before, instance.StateShuttingDown
	case instance.VerbReboot:
	}
	return before, before
}

// changedBy reports whether an instance is in a verb's target state because of the call that was
// sent at a time: EC2's date of the change allows it, was not described before that, and is
// not that of a change of which another caller was told.
func (t *tracker) changedBy(verb instance.Verb, inst *instance.Instance, sent time.Time) bool {
	at, started := inst.LaunchTime, verb == instance.VerbStart
	if !started {
		at = transitionTime(inst.StateTransitionReason)
	}
	if at.IsZero() || !instance.MayHaveMade(at, sent, time.Time{}) {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[inst.ID]
	described := e.changed
	if started {
		described = e.launched
	}
	if described.at.Equal(at) && described.seen.Before(sent) {
		return false
	}
	other := e.report(verb)
	return other.told.IsZero() || !instance.MayHaveMade(at, other.sent, other.told)
}

// reportedSince reports whether a change to a verb's target state was reported to a caller at a
// time or later.
func (t *tracker) reportedSince(verb instance.Verb, id instance.ID, since time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[id]
	other := e.report(verb)
	return !other.told.IsZero() && !other.told.Before(since)
}

// transitionTime parses when the last change was requested, from EC2's text such as
// "User initiated (2019-10-12 20:35:03 GMT)"; zero if it has no time.
func transitionTime(reason string) time.Time {
	_, rest, found := strings.Cut(reason, "(")
	stamp, _, closed := strings.Cut(rest, ")")
	if !found || !closed {
		return time.Time{}
	}
	for _, zone := range []string{" GMT", " UTC"} {
		if text, ok := strings.CutSuffix(stamp, zone); ok {
			if at, err := time.ParseInLocation(time.DateTime, text, time.UTC); err == nil {
				return at
			}
		}
	}
	return time.Time{}
}
