package lifecycle

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// maxHold is how long a command may hold back what else is known of its instances, and how
// long its answer waits for others to be recorded. A slow call must not blind everybody.
const maxHold = time.Second

// targets are the states that the verbs lead to.
var targets = map[instance.Verb]instance.State{
	instance.VerbStart:     instance.StatePending,
	instance.VerbStop:      instance.StateStopping,
	instance.VerbTerminate: instance.StateShuttingDown,
}

// tracker knows all commands that may have changed an instance in a way that is not
// recorded: those in flight, from before the backend sends a request until the answer is
// recorded, and those that ended without that. One that waits in the backend to be sent is
// queued: it has changed nothing, and none of what follows concerns it. Three things follow:
//
// What is heard of an instance while a command is in flight, and may be the command's
// doing, is held back, so that a change is recorded once, and with the command that caused
// it.
//
// The answers of several commands about one instance are recorded in the order in which the
// backend made the changes; what was held back and happened before a change is recorded
// before it.
//
// A step that is found out later has the command that it may be the doing of as its cause.
//
// The backend is waited for, and so is another command, for [maxHold] at most. What a
// command has answered by then is recorded together with what came later.
//
// Each instance has a track of its own, so that the work for one instance of a command
// depends on the commands that changed that instance, and on nothing else. All methods are
// safe for concurrent use.
type tracker struct {
	mu     sync.Mutex
	tracks map[instance.ID]*track
	// holding are the tracks with held notices.
	holding map[instance.ID]*track
	// released are notices that need no longer be held back.
	released []instance.Notice
	// describable are instances of which a description was deferred, and need no longer be.
	describable []instance.ID
	// wake is signalled when there are released notices or describable instances.
	wake chan struct{}
	// restored is when the backend was last set to what the journal knew. What was done to
	// it before is undone.
	restored time.Time
	// examined counts the entries of tracks that were looked at one by one.
	examined int
}

// track is what is known of the commands on one instance.
type track struct {
	// unanswered are the commands in flight whose answer is still to come, by the state
	// that they lead to.
	unanswered [len(trackedTargets)]timeline
	// changed are those in flight that changed the instance by their answer, and found are
	// those that left it as they found it, by its state.
	changed timeline
	found   [instance.StateStopped + 1]timeline
	// unresolved are those that ended and changed the instance without a record of it, or
	// of which nobody knows whether they did: [maxUnresolved] at most.
	unresolved timeline
	// refused are those in flight that were not carried out.
	refused timeline
	// active counts the entries of unanswered, changed, found and refused.
	active int
	// waiters are answered commands that wait until all that were sent before they acted are
	// answered, by when they acted.
	waiters []*inflightCommand
	// held are notices of the instance, oldest first.
	held []instance.Notice
	// describeDeferred is whether somebody wants to describe the instance once no command
	// is in flight.
	describeDeferred bool
}

// trackedTargets are the states that commands lead to.
var trackedTargets = [...]instance.State{instance.StatePending, instance.StateStopping, instance.StateShuttingDown}

// commandState says how far a command on one instance has come.
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
	// refused: the backend did not carry it out, and the caller is not told so yet.
	refused
	// unrecorded: the same of a command that has ended.
	unrecorded
	// outcomeUnknown: it has ended, and the backend has not said what it did.
	outcomeUnknown
)

// commandOnInstance is one command on one of its instances. The tracker's lock guards its
// state; the change is written once, before others get to see it.
type commandOnInstance struct {
	command *inflightCommand
	id      instance.ID
	state   commandState
	// at is when the command acted on the instance, as it was answered; until then, and
	// when that is not known, when it was sent.
	at time.Time
	// sentAt is when it was sent: it has not done what happened before. Zero while queued.
	sentAt time.Time
	// change is what it was answered; nil when it was not, or was refused.
	change *instance.StateChange
	// ended is when the command ended, of an unresolved one.
	ended time.Time
	// step is the step of the instance of which it was recorded as the cause; nil while
	// there is none. It is written by updates of the journal, one after the other.
	step atomic.Pointer[recordedStep]
}

// recordedStep is a change of state in the journal.
type recordedStep struct {
	from, to instance.State
	at       time.Time
}

// inflightCommand is one command, from before the backend is called. It is in flight for an
// instance once it is sent.
type inflightCommand struct {
	tracker *tracker
	cause   instance.Cause
	// target is the state that the command leads to directly; unspecified for one that
	// changes no state.
	target instance.State
	// before is the end of the log when it began.
	before journal.Position
	// on has an entry for each instance of the command, in their order. The search for an
	// instance starts at next, since backends send instances mostly in their order.
	on   []commandOnInstance
	next int
	// recorded is closed when the command ends; nil while nobody waits for that.
	recorded chan struct{}
	// turn gets a value when the command, which acted at turnAt, is taken off the waiters
	// of a track; nil until it first waits.
	turn   chan struct{}
	turnAt time.Time
}

func newTracker() *tracker {
	return &tracker{
		tracks:  make(map[instance.ID]*track),
		holding: make(map[instance.ID]*track),
		wake:    make(chan struct{}, 1),
	}
}

// begin returns a command that the backend is about to be called for. It is queued; the
// backend reports by sent and rejected when it is not.
func (t *tracker) begin(ids []instance.ID, cause instance.Cause, before journal.Position) *inflightCommand {
	c := &inflightCommand{tracker: t, cause: cause, target: targets[cause.Verb], before: before, on: make([]commandOnInstance, len(ids))}
	for i, id := range ids {
		c.on[i] = commandOnInstance{command: c, id: id, state: queued}
	}
	return c
}

// sent tracks the command on instances for which a request is about to be written. For one
// that is in flight already, what matters is when it was first.
func (c *inflightCommand) sent(ids []instance.ID) {
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
			c.tracker.trackLocked(on, inFlight, now)
		}
	}
}

// rejected queues the command again on instances that no request for it has changed.
func (c *inflightCommand) rejected(ids []instance.ID) {
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
}

// wasSent reports whether a request may have been written for any instance of the command,
// and is not known to have changed nothing.
func (c *inflightCommand) wasSent() bool {
	c.tracker.mu.Lock()
	defer c.tracker.mu.Unlock()
	for i := range c.on {
		if !c.on[i].sentAt.IsZero() {
			return true
		}
	}
	return false
}

// findLocked returns the entry of an instance, nil for none.
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

// trackLocked puts a queued command on the track of an instance.
func (t *tracker) trackLocked(on *commandOnInstance, state commandState, at time.Time) {
	tr := t.tracks[on.id]
	if tr == nil {
		tr = &track{}
		t.tracks[on.id] = tr
	}
	on.state, on.at = state, at
	tr.listOf(on).insert(on)
	tr.active++
}

// listOf returns the list that an entry belongs into by its state.
func (tr *track) listOf(on *commandOnInstance) *timeline {
	switch {
	case on.state == inFlight:
		return &tr.unanswered[slices.Index(trackedTargets[:], on.command.target)]
	case on.state == refused:
		return &tr.refused
	case on.state != answered:
		return &tr.unresolved
	case on.change.Previous != on.change.Current:
		return &tr.changed
	}
	return &tr.found[on.change.Current]
}

// active reports whether the command has not ended on the instance.
func (on *commandOnInstance) active() bool {
	return on.state == inFlight || on.state == answered || on.state == refused
}

// moveLocked gives an active entry of a track another state, and the time that goes with it. It
// signals whoever waited for the command.
func (t *tracker) moveLocked(on *commandOnInstance, state commandState, at time.Time) {
	tr := t.tracks[on.id]
	tr.listOf(on).remove(on)
	on.state, on.at = state, at
	if state != untracked && state != queued {
		tr.listOf(on).insert(on)
	}
	if !on.active() {
		tr.active--
	}
	ready := 0
	for ready < len(tr.waiters) && !tr.unansweredThrough(tr.waiters[ready].turnAt) {
		tr.waiters[ready].turn <- struct{}{}
		ready++
	}
	tr.waiters = slices.Delete(tr.waiters, 0, ready)
	if tr.active > 0 {
		return
	}
	if tr.describeDeferred {
		tr.describeDeferred = false
		t.describable = append(t.describable, on.id)
		t.signalLocked()
	}
	if len(tr.held) > 0 {
		t.releaseLocked(on.id, tr)
		t.signalLocked()
	}
	if len(tr.unresolved) == 0 {
		delete(t.tracks, on.id)
	}
}

func (t *tracker) signalLocked() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// unansweredThrough reports whether a command in flight was sent at a time or before, and may
// have acted on the instance then.
func (tr *track) unansweredThrough(at time.Time) bool {
	for _, list := range tr.unanswered {
		if len(list) > 0 && !list[0].at.After(at) {
			return true
		}
	}
	return false
}

// blocks reports whether what happened at a time may be the doing of a command in flight,
// and is held back for its sake. One that is slow to be answered is no reason.
func (tr *track) blocks(at, now time.Time) bool {
	for _, list := range tr.unanswered {
		if n := list.through(at); n > 0 && now.Sub(list[n-1].at) < maxHold {
			return true
		}
	}
	for _, list := range tr.found {
		if list.through(at) > 0 {
			return true
		}
	}
	return tr.changed.through(at) > 0
}

// deferDescribe reports whether a description of the instance has to wait for a command. If
// so, it becomes describable once it need not.
func (t *tracker) deferDescribe(id instance.ID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	tr, now := t.tracks[id], time.Now()
	if tr == nil || !tr.blocks(now, now) {
		return false
	}
	tr.describeDeferred = true
	return true
}

// takeDescribable returns the instances that have become describable.
func (t *tracker) takeDescribable() []instance.ID {
	t.mu.Lock()
	defer t.mu.Unlock()
	ids := t.describable
	t.describable = nil
	return ids
}

// admit returns the notices that can be recorded, those released before among them, and
// holds the others back. Of one instance they stay in their order.
func (t *tracker) admit(notices []instance.Notice) (ready []instance.Notice) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ready, t.released = t.released, nil
	now := time.Now()
	for _, n := range notices {
		tr := t.tracks[n.ID]
		if tr == nil || (len(tr.held) == 0 && !tr.blocks(n.OccurredAt.Add(resolution(n)), now)) {
			ready = append(ready, n)
			continue
		}
		i, _ := slices.BinarySearchFunc(tr.held, n, func(h, n instance.Notice) int {
			if h.OccurredAt.After(n.OccurredAt) {
				return 1
			}
			return -1
		})
		tr.held = slices.Insert(tr.held, i, n)
		t.holding[n.ID] = tr
	}
	return ready
}

// holdsNotices reports whether any notice is held back.
func (t *tracker) holdsNotices() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.holding) > 0
}

// expire releases the notices that were held back for long enough.
func (t *tracker) expire() {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	for id, tr := range t.holding {
		if !tr.blocks(now, now) {
			t.releaseLocked(id, tr)
		}
	}
}

func (t *tracker) releaseLocked(id instance.ID, tr *track) {
	t.released = append(t.released, tr.held...)
	tr.held = nil
	delete(t.holding, id)
}

// answer notes what the backend answered to a command, in the order of its instances, and
// returns the entries with a change.
func (c *inflightCommand) answer(changes []instance.StateChange) (on []*commandOnInstance) {
	t := c.tracker
	on = make([]*commandOnInstance, 0, len(changes))
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range c.on {
		entry := &c.on[i]
		if len(changes) == 0 || changes[0].ID != entry.id {
			if entry.state == inFlight {
				t.moveLocked(entry, refused, entry.at)
			}
			continue
		}
		entry.change = &changes[0]
		on, changes = append(on, entry), changes[1:]
		if entry.state == inFlight {
			t.moveLocked(entry, answered, entry.change.At)
		}
	}
	return on
}

// end ends the command: its answer is recorded, or it is marked as unresolved.
func (c *inflightCommand) end() {
	t := c.tracker
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range c.on {
		on := &c.on[i]
		if on.active() {
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

// awaitTurn returns when it is the turn of what a command was answered to be recorded:
// when those that acted on the same instances before are recorded. It does not wait for
// longer than [maxHold]. The notices are to be recorded before it: they happened earlier.
func (c *inflightCommand) awaitTurn(ctx context.Context, changes []instance.StateChange) (notices []instance.Notice) {
	t := c.tracker
	t.mu.Lock()
	defer t.mu.Unlock()
	var enough <-chan time.Time
	for i := 0; i < len(changes); {
		wait, onTrack := t.predecessorLocked(c, changes[i])
		if wait == nil {
			i++
			continue
		}
		t.mu.Unlock()
		if enough == nil {
			timer := time.NewTimer(maxHold)
			defer timer.Stop()
			enough = timer.C
		}
		over := false
		select {
		case <-wait:
		case <-enough:
			over = true
		case <-ctx.Done():
			over = true
		}
		t.mu.Lock()
		if over {
			t.stopWaitingLocked(c, changes[i].ID, onTrack)
			break
		}
	}
	for _, change := range changes {
		notices = append(notices, t.takeHeldLocked(change.ID, change.At)...)
	}
	return notices
}

// predecessorLocked returns what to wait for before a change of a command is recorded; nil
// when it is its turn. First come commands that are to say when they acted, if they did:
// the command waits on the track until there is none left. Then come those that acted
// before. Of several it is the last, which itself waits for the others, so that each waiter
// wakes once.
func (t *tracker) predecessorLocked(c *inflightCommand, change instance.StateChange) (wait <-chan struct{}, onTrack bool) {
	tr := t.tracks[change.ID]
	switch {
	case tr == nil:
		return nil, false
	case tr.unansweredThrough(change.At):
		if c.turn == nil {
			c.turn = make(chan struct{}, 1)
		}
		c.turnAt = change.At
		i, _ := slices.BinarySearchFunc(tr.waiters, c, func(a, b *inflightCommand) int { return a.turnAt.Compare(b.turnAt) })
		tr.waiters = slices.Insert(tr.waiters, i, c)
		return c.turn, true
	}
	last := tr.changed.lastBefore(change.At)
	for state, list := range tr.found {
		// It makes no difference which of two that found the same is recorded first.
		if change.Previous != change.Current || change.Current != instance.State(state) {
			if on := list.lastBefore(change.At); on != nil && (last == nil || on.at.After(last.at)) {
				last = on
			}
		}
	}
	if last == nil {
		return nil, false
	}
	if last.command.recorded == nil {
		last.command.recorded = make(chan struct{})
	}
	return last.command.recorded, false
}

// stopWaitingLocked takes a command off the waiters of a track.
func (t *tracker) stopWaitingLocked(c *inflightCommand, id instance.ID, onTrack bool) {
	if tr := t.tracks[id]; onTrack && tr != nil {
		tr.waiters = slices.DeleteFunc(tr.waiters, func(w *inflightCommand) bool { return w == c })
	}
	select {
	case <-c.turn:
	default:
	}
}

// takeHeldLocked takes the notices of what happened before a time.
func (t *tracker) takeHeldLocked(id instance.ID, before time.Time) []instance.Notice {
	tr := t.holding[id]
	if tr == nil {
		return nil
	}
	n := 0
	for n < len(tr.held) && tr.held[n].OccurredAt.Before(before) {
		n++
	}
	taken := slices.Clone(tr.held[:n])
	tr.held = slices.Delete(tr.held, 0, n)
	if len(tr.held) == 0 {
		delete(t.holding, id)
	}
	return taken
}

// timeline has commands on one instance in the order of their times.
type timeline []*commandOnInstance

// before returns how many have a time before another one, and through how many have one
// that is not after it.
func (l timeline) before(at time.Time) int {
	n, _ := slices.BinarySearchFunc(l, at, func(on *commandOnInstance, at time.Time) int { return on.at.Compare(at) })
	return n
}

func (l timeline) through(at time.Time) int {
	n, _ := slices.BinarySearchFunc(l, at, func(on *commandOnInstance, at time.Time) int {
		if on.at.After(at) {
			return 1
		}
		return -1
	})
	return n
}

// lastBefore returns the last with a time before another one, nil for none.
func (l timeline) lastBefore(at time.Time) *commandOnInstance {
	if n := l.before(at); n > 0 {
		return l[n-1]
	}
	return nil
}

func (l *timeline) insert(on *commandOnInstance) {
	*l = slices.Insert(*l, l.through(on.at), on)
}

func (l *timeline) remove(on *commandOnInstance) {
	i := l.before(on.at)
	for (*l)[i] != on {
		i++
	}
	*l = slices.Delete(*l, i, i+1)
}
