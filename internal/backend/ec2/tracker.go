package ec2

import (
	"strings"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// tracker is what was last heard of each instance, and which changes callers were told of.
// When EC2's answer to a call is lost it tells what became of the call. It is safe for
// concurrent use.
type tracker struct {
	mu      sync.Mutex
	entries map[instance.ID]trackedState
}

type trackedState struct {
	state instance.State
	// changed is when a caller was last told of a change, and to which state.
	changed time.Time
	to      instance.State
}

func (b *tracker) state(id instance.ID) instance.State {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.entries[id].state
}

// observed notes what state an instance is in.
func (b *tracker) observed(id instance.ID, state instance.State) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[id]
	e.state = state
	b.setLocked(id, e)
}

// reported notes that a caller is told of a change.
func (b *tracker) reported(change instance.StateChange) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[change.ID]
	e.state = change.Current
	if change.Previous != change.Current {
		e.changed, e.to = time.Now(), change.Current
	}
	b.setLocked(change.ID, e)
}

// setLocked keeps an entry; nothing comes after terminated.
func (b *tracker) setLocked(id instance.ID, e trackedState) {
	if e.state == instance.StateTerminated {
		delete(b.entries, id)
		return
	}
	if b.entries == nil {
		b.entries = make(map[instance.ID]trackedState)
	}
	b.entries[id] = e
}

// forget drops an instance that does not exist.
func (b *tracker) forget(id instance.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.entries, id)
}

// transition returns the states between which a verb takes an instance that was in a state
// before; from a state that is not known, or that cannot be, the usual ones.
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

// changedBy reports whether an instance is where a verb leads because of a call that was
// sent at a time, and of which no caller has been told.
func (b *tracker) changedBy(verb instance.Verb, inst *instance.Instance, sent time.Time) bool {
	at := inst.LaunchTime
	if verb != instance.VerbStart {
		at = transitionTime(inst.StateTransitionReason)
	}
	if at.IsZero() || !instance.MayHaveMade(at, sent, time.Time{}) {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[inst.ID]
	return !verb.DoneIn(e.to) || e.changed.Before(at)
}

// reportedSince reports whether a caller was told, at a time or later, of a change that leads
// where a verb does: then it was not another call that made it.
func (b *tracker) reportedSince(verb instance.Verb, id instance.ID, since time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[id]
	return verb.DoneIn(e.to) && !e.changed.Before(since)
}

// transitionTime is when somebody asked for the last change, by EC2's text such as
// "User initiated (2019-10-12 20:35:03 GMT)"; zero when it does not say.
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
