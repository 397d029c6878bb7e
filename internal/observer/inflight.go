package observer

import (
	"sync/atomic"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// commandState is how far a command on one instance has come.
type commandState uint8

const (
	// untracked: it cannot change the instance, or what it did is recorded.
	untracked commandState = iota
	// queued: no request that may change the instance has been sent.
	queued
	// inFlight: it is sent, and may be carried out at any time.
	inFlight
	// answered: the backend has said what it did, which is not recorded yet.
	answered
	// rejected: the backend did not carry it out, and the caller is not told yet.
	rejected
	// unrecorded: as answered, but the command has ended.
	unrecorded
	// outcomeUnknown: it has ended, and the backend has not said what it did.
	outcomeUnknown
)

// inflightCommand is one command, from before the backend is called. It is in flight for an
// instance once it is sent.
type inflightCommand struct {
	tracker *tracker
	cause   instance.Cause
	// origin is the span of the command; nil if it is not recorded.
	origin *origin
	// target is the state that the command leads to directly; unspecified for one that
	// changes no state.
	target instance.State
	// before is the end of the log when it began.
	before journal.Position
	// on has an entry for each instance of the command, in their order. The search for an
	// instance starts at next, since backends send instances mostly in their order.
	on   []commandOnInstance
	next int
	// stop ends the call once its time in the queue is over; nil before.
	stop func()
	// recorded is closed when the command ends; nil until a command waits for that.
	recorded chan struct{}
	// turn gets a value when the command, which acted at turnAt, is taken off the waiters
	// of a track; nil until it first waits.
	turn   chan struct{}
	turnAt time.Time
}

// commandOnInstance is one command on one of its instances. The tracker's lock guards it; the
// change is written once, before anybody else sees it.
type commandOnInstance struct {
	command *inflightCommand
	id      instance.ID
	state   commandState
	// at is when the command acted on the instance, as answered; until then, and if that is
	// not known, when it was sent.
	at time.Time
	// sentAt is when it was sent: it did not do what happened before. Zero while queued.
	sentAt time.Time
	// ended is when an unresolved command ended.
	ended time.Time
	// change is the backend's answer; nil if there is none, or it was a rejection.
	change *instance.StateChange
	// step is the step of the instance whose recorded cause it is; nil while there is none.
	// It is written by updates of the journal, one after the other.
	step atomic.Pointer[recordedStep]
}

// changed reports whether the command changed the instance, by its answer.
func (on *commandOnInstance) changed() bool {
	return on.change != nil && on.change.Previous != on.change.Current
}

// activeLocked reports whether the command has not ended on the instance.
func (on *commandOnInstance) activeLocked() bool {
	return on.state == inFlight || on.state == answered || on.state == rejected
}

// track returns a command for which the backend is about to be called. It is queued; the
// backend reports by markSent and markRequeued when it is not. It must be finished.
func (t *tracker) track(ids []instance.ID, cause instance.Cause, before journal.Position) *inflightCommand {
	c := &inflightCommand{tracker: t, cause: cause, target: cause.Verb.Target(), before: before, on: make([]commandOnInstance, len(ids))}
	for i, id := range ids {
		c.on[i].command, c.on[i].id, c.on[i].state = c, id, queued
	}
	return c
}

// markSent puts the command in flight on instances for which a request is about to be
// written. If it is in flight already, what matters is when it was sent first.
func (c *inflightCommand) markSent(ids []instance.ID) {
	c.tracker.mu.Lock()
	defer c.tracker.mu.Unlock()
	now := time.Now()
	for _, id := range ids {
		on := c.findLocked(id)
		if on == nil || on.state != queued {
			continue
		}
		on.sentAt = now
		if c.target != instance.StateUnspecified {
			c.tracker.startLocked(on, now)
		}
	}
}

// markRequeued queues the command again on instances that no request for it has changed.
func (c *inflightCommand) markRequeued(ids []instance.ID) {
	c.tracker.mu.Lock()
	defer c.tracker.mu.Unlock()
	for _, id := range ids {
		on := c.findLocked(id)
		if on == nil || on.state != queued && on.state != inFlight {
			continue
		}
		on.sentAt = time.Time{}
		if on.state == inFlight {
			c.tracker.moveLocked(on, queued, time.Time{})
		}
	}
	if c.stop != nil {
		c.stop()
	}
}

// unsent returns the instances for which no request was written that may have changed them.
func (c *inflightCommand) unsent() map[instance.ID]bool {
	c.tracker.mu.Lock()
	defer c.tracker.mu.Unlock()
	ids := make(map[instance.ID]bool)
	for i := range c.on {
		if c.on[i].sentAt.IsZero() {
			ids[c.on[i].id] = true
		}
	}
	return ids
}

// stopQueueing calls stop now if the command is not sent for all instances, and otherwise when
// it is queued again.
func (c *inflightCommand) stopQueueing(stop func()) {
	c.tracker.mu.Lock()
	defer c.tracker.mu.Unlock()
	c.stop = stop
	for i := range c.on {
		if c.on[i].sentAt.IsZero() {
			stop()
			return
		}
	}
}

// markAnswered keeps the backend's answers to a command, which are in the order of its
// instances, and returns the entries with an answer.
func (c *inflightCommand) markAnswered(changes []instance.StateChange) (answers []*commandOnInstance) {
	t := c.tracker
	answers = make([]*commandOnInstance, 0, len(changes))
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range c.on {
		on := &c.on[i]
		if len(changes) == 0 || changes[0].ID != on.id {
			if on.state == inFlight {
				t.moveLocked(on, rejected, on.at)
			}
			continue
		}
		on.change = &changes[0]
		answers, changes = append(answers, on), changes[1:]
		if on.state == inFlight {
			t.moveLocked(on, answered, on.change.At)
		}
	}
	return answers
}

// markUnknown says that the outcome of a command on some of its instances is unknown. It
// returns those that it may have changed.
func (c *inflightCommand) markUnknown(ids map[instance.ID]bool) (marked []instance.ID) {
	if len(ids) == 0 {
		return nil
	}
	return c.markUnresolved(outcomeUnknown, func(on *commandOnInstance) bool { return on.state == inFlight && ids[on.id] })
}

// markUnrecorded says that the answers to a command could not be recorded. It returns the
// instances that it changed.
func (c *inflightCommand) markUnrecorded() []instance.ID {
	return c.markUnresolved(unrecorded, func(on *commandOnInstance) bool { return on.state == answered && on.changed() })
}

// markUnresolved ends a command on some of its instances without a record.
func (c *inflightCommand) markUnresolved(state commandState, which func(*commandOnInstance) bool) (marked []instance.ID) {
	t := c.tracker
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range c.on {
		on := &c.on[i]
		if !which(on) {
			continue
		}
		marked = append(marked, on.id)
		on.ended = time.Now()
		if on.sentAt.Before(t.restored) || len(t.tracks[on.id].unresolved) == maxUnresolved {
			t.moveLocked(on, untracked, on.at)
		} else {
			t.moveLocked(on, state, on.at)
		}
	}
	return marked
}

// finish ends the command: its answers are recorded, or it is unresolved.
func (c *inflightCommand) finish() {
	t := c.tracker
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range c.on {
		on := &c.on[i]
		if on.activeLocked() {
			t.moveLocked(on, untracked, on.at)
		}
		if on.state == queued {
			on.state = untracked // what the backend reports now comes too late
		}
	}
	if c.recorded != nil {
		close(c.recorded)
		c.recorded = nil
	}
}

// findLocked returns the entry of an instance, nil if there is none.
func (c *inflightCommand) findLocked(id instance.ID) *commandOnInstance {
	for range c.on {
		on := &c.on[c.next]
		c.next = (c.next + 1) % len(c.on)
		if on.id == id {
			return on
		}
	}
	return nil
}
