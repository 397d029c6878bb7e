package ec2

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// lastChanges remembers how each instance was last described and which changes callers were told
// of, which together tell what became of a call whose answer was lost. It is safe for concurrent
// use.
type lastChanges struct {
	mu      sync.Mutex
	entries map[instance.ID]lastChange
}

// lastChange is what is known of one instance.
type lastChange struct {
	state instance.State
	// launched is when the instance was last started, and changed when its last change was
	// requested, as EC2 describes it.
	launched, changed describedTime
	// reports are the last changes that callers were told of, by the states that verbs lead to.
	reports [len(reportedTargets)]report
}

// describedTime is a time in the descriptions of an instance, and when it first appeared there.
type describedTime struct{ at, firstSeen time.Time }

func (d *describedTime) update(at, now time.Time) {
	if !at.Equal(d.at) {
		d.at, d.firstSeen = at, now
	}
}

// report is a change that a caller was told of: when the call that made it was sent, and when
// the caller was told.
type report struct{ sent, told time.Time }

// reportedTargets are the states to which verbs lead directly.
var reportedTargets = [...]instance.State{instance.StatePending, instance.StateStopping, instance.StateShuttingDown}

// report returns the last change of a verb that a caller was told of.
func (c *lastChange) report(verb instance.Verb) report {
	if i := slices.Index(reportedTargets[:], verb.Target()); i >= 0 {
		return c.reports[i]
	}
	return report{}
}

func (c *lastChanges) state(id instance.ID) instance.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.entries[id].state
}

// observed notes how an instance is described.
func (c *lastChanges) observed(inst *instance.Instance) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, now := c.entries[inst.ID], time.Now()
	e.state = inst.State
	e.launched.update(inst.LaunchTime, now)
	e.changed.update(transitionTime(inst.StateTransitionReason), now)
	c.setLocked(inst.ID, e)
}

// reported notes that a change is reported to a caller.
func (c *lastChanges) reported(change instance.StateChange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, now := c.entries[change.ID], time.Now()
	e.state = change.Current
	if i := slices.Index(reportedTargets[:], change.Current); i >= 0 && change.Previous != change.Current {
		e.reports[i] = report{sent: change.At, told: now}
	}
	c.setLocked(change.ID, e)
}

// setLocked stores an entry, unless the instance is terminated: nothing follows that.
func (c *lastChanges) setLocked(id instance.ID, e lastChange) {
	if e.state == instance.StateTerminated {
		delete(c.entries, id)
		return
	}
	if c.entries == nil {
		c.entries = make(map[instance.ID]lastChange)
	}
	c.entries[id] = e
}

// forget drops an instance that does not exist.
func (c *lastChanges) forget(id instance.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.entries, id)
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
func (c *lastChanges) changedBy(verb instance.Verb, inst *instance.Instance, sent time.Time) bool {
	at, started := inst.LaunchTime, verb == instance.VerbStart
	if !started {
		at = transitionTime(inst.StateTransitionReason)
	}
	if at.IsZero() || !instance.MayHaveMade(at, sent, time.Time{}) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[inst.ID]
	described := e.changed
	if started {
		described = e.launched
	}
	if described.at.Equal(at) && described.firstSeen.Before(sent) {
		return false
	}
	other := e.report(verb)
	return other.told.IsZero() || !instance.MayHaveMade(at, other.sent, other.told)
}

// reportedSince reports whether a change to a verb's target state was reported to a caller at a
// time or later.
func (c *lastChanges) reportedSince(verb instance.Verb, id instance.ID, since time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[id]
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
