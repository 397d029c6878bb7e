package ec2

import (
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
	// changed is when a change was last reported to a caller, and to is its new state.
	changed time.Time
	to      instance.State
}

func (t *tracker) state(id instance.ID) instance.State {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.entries[id].state
}

// observed notes the state of an instance.
func (t *tracker) observed(id instance.ID, state instance.State) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[id]
	e.state = state
	t.setLocked(id, e)
}

// reported notes that a change is reported to a caller.
func (t *tracker) reported(change instance.StateChange) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[change.ID]
	e.state = change.Current
	if change.Previous != change.Current {
		e.changed, e.to = time.Now(), change.Current
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
// sent at a time: EC2's date of the change allows it, and it was not reported to another caller.
func (t *tracker) changedBy(verb instance.Verb, inst *instance.Instance, sent time.Time) bool {
	at := inst.LaunchTime
	if verb != instance.VerbStart {
		at = transitionTime(inst.StateTransitionReason)
	}
	if at.IsZero() || !instance.MayHaveMade(at, sent, time.Time{}) {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[inst.ID]
	return !verb.DoneIn(e.to) || e.changed.Before(at)
}

// reportedSince reports whether a change to a verb's target state was reported to a caller at a
// time or later.
func (t *tracker) reportedSince(verb instance.Verb, id instance.ID, since time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[id]
	return verb.DoneIn(e.to) && !e.changed.Before(since)
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
