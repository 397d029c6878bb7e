package lifecycle

import (
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// maxUnresolved is how many commands that ended without a record are remembered for one
// instance: more than usually are in flight for it when answers begin to be lost, or the
// journal goes away. What further ones did has no cause; of several of one verb it is most
// often the first that did something.
const maxUnresolved = 16

// lateness is how long after its end a command whose answer was lost may still have acted,
// by the clock of the backend.
const lateness = 3 * time.Second

// causeCandidate is a command that may have caused a step of an instance.
type causeCandidate struct {
	*commandOnInstance
	// target is the state that it leads to directly.
	target instance.State
	// sent is when it was sent.
	sent time.Time
	// ended is when it ended, if it has and is not resolved; else zero.
	ended time.Time
}

// endedBefore reports whether the command had ended before a time.
func (c causeCandidate) endedBefore(at time.Time) bool {
	return !c.ended.IsZero() && c.ended.Before(at)
}

// contradictedBy reports whether an image shows that the start by which it differs from
// what was known was not this command.
func (c causeCandidate) contradictedBy(known, image *instance.Instance) bool {
	if c.target != instance.StatePending || c.ended.IsZero() || !image.LaunchTime.After(known.LaunchTime) {
		return false
	}
	return image.LaunchTime.Before(c.sent.Add(-lateness)) || image.LaunchTime.After(c.ended.Add(lateness))
}

// candidate returns the command as what may have changed the instance. Unless the command is
// answered, the tracker's lock is needed.
func (on *commandOnInstance) candidate() causeCandidate {
	return causeCandidate{commandOnInstance: on, target: on.command.target, sent: on.sentAt}
}

func (on *commandOnInstance) unresolvedLocked() causeCandidate {
	c := on.candidate()
	c.ended = on.ended
	return c
}

// claim makes the command the cause of a step. One that was answered otherwise meanwhile,
// or is the cause of another step, cannot be.
func (on *commandOnInstance) claim(step *recordedStep) bool {
	on.command.tracker.mu.Lock()
	defer on.command.tracker.mu.Unlock()
	acted := on.change != nil && on.change.Previous != on.change.Current
	if !acted && (on.step.Load() != nil || on.state != inFlight && on.state != outcomeUnknown) {
		return false
	}
	on.step.Store(step)
	return true
}

// told returns what the caller of a command is told of an instance once the answer is
// recorded: whoever the journal names as the cause of a step is told of it, also when
// the backend found it done, and nobody else is. Known is what is recorded of the instance.
func (on *commandOnInstance) told(known journal.Record) instance.StateChange {
	change := *on.change
	step := on.step.Load()
	switch {
	case step != nil && change.Previous == change.Current:
		change.Previous, change.Current = step.from, step.to
	case step == nil && change.Previous != change.Current && known.Instance != nil &&
		!known.Cause.External() && known.Cause != on.command.cause &&
		(known.Instance.State == change.Current || instance.Completes(change.Current, known.Instance.State)):
		change.Previous = change.Current
	}
	return change
}

// outcomes replaces unknown outcomes of a command by what the journal says that it did.
func (c *inflightCommand) outcomes(result instance.Result, err error) (instance.Result, error) {
	known := make(map[instance.ID]instance.StateChange)
	for i := range c.on {
		on := &c.on[i]
		if step := on.step.Load(); step != nil {
			known[on.id] = instance.StateChange{ID: on.id, Previous: step.from, Current: step.to, At: step.at}
		}
	}
	unknown := func(f instance.Failure) bool { return f.Err.OutcomeUnknown }
	open := err != nil && asError(err).OutcomeUnknown || slices.ContainsFunc(result.Failures, unknown)
	if len(known) == 0 || !open {
		return result, err
	}
	for _, change := range result.Changes {
		known[change.ID] = change
	}
	resolved := instance.Result{Failures: slices.DeleteFunc(slices.Clone(result.Failures), func(f instance.Failure) bool {
		_, found := known[f.ID]
		return found && unknown(f)
	})}
	for i := range c.on {
		if change, found := known[c.on[i].id]; found {
			resolved.Changes = append(resolved.Changes, change)
		}
	}
	if len(resolved.Changes)+len(resolved.Failures) == len(c.on) {
		err = nil
	}
	return resolved, err
}

// actedBefore reports whether an unresolved command did what it did by a time at the latest.
func (on *commandOnInstance) actedBefore(at time.Time) bool {
	if on.change != nil {
		return !on.change.At.After(at)
	}
	return on.ended.Before(at)
}

// markUnknown says that a command has ended on some of its instances, and that nobody knows
// what it did to them. It returns those that it may have changed.
func (c *inflightCommand) markUnknown(ids map[instance.ID]bool) (marked []instance.ID) {
	if len(ids) == 0 {
		return nil
	}
	c.tracker.mu.Lock()
	defer c.tracker.mu.Unlock()
	for i := range c.on {
		if on := &c.on[i]; on.state == inFlight && ids[on.id] {
			c.tracker.markLocked(on, outcomeUnknown)
			marked = append(marked, on.id)
		}
	}
	return marked
}

// markUnrecorded says that a command has ended, and that what it was answered could not be
// recorded. It returns the instances that it changed.
func (c *inflightCommand) markUnrecorded() (marked []instance.ID) {
	c.tracker.mu.Lock()
	defer c.tracker.mu.Unlock()
	for i := range c.on {
		if on := &c.on[i]; on.state == answered && on.change.Previous != on.change.Current {
			c.tracker.markLocked(on, unrecorded)
			marked = append(marked, on.id)
		}
	}
	return marked
}

func (t *tracker) markLocked(on *commandOnInstance, state commandState) {
	if on.sentAt.Before(t.restored) || len(t.tracks[on.id].unresolved) == maxUnresolved {
		state = untracked
	}
	on.ended = time.Now()
	t.moveLocked(on, state, on.at)
}

// resolve forgets the commands on an instance that had ended when the backend was asked
// what became of them: what they did is recorded, or they did nothing.
func (t *tracker) resolve(id instance.ID, asked time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	tr := t.tracks[id]
	if tr == nil {
		return
	}
	tr.unresolved = slices.DeleteFunc(tr.unresolved, func(on *commandOnInstance) bool { return !asked.Before(on.ended) })
	if len(tr.unresolved) == 0 && tr.active == 0 {
		delete(t.tracks, id)
	}
}

// forget forgets all commands that ended: the backend is about to be set to what the
// journal knows.
func (t *tracker) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.restored = time.Now()
	for id, tr := range t.tracks {
		if tr.unresolved = nil; tr.active == 0 {
			delete(t.tracks, id)
		}
	}
}

// unrecordedBefore returns what was done to an instance before a time, and may not be
// recorded: by commands in flight, but for one that records its answer itself, and by those
// that could not record theirs.
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
			list = append(list, on.candidate())
		}
	}
	for _, on := range tr.unresolved[:tr.unresolved.before(at)] {
		t.examined++
		if on.state == unrecorded {
			list = append(list, on.unresolvedLocked())
		}
	}
	slices.SortFunc(list, func(a, b causeCandidate) int { return a.change.At.Compare(b.change.At) })
	return list
}

// possibleCauses returns the commands that may have changed an instance between two times
// in a way that is not recorded: those that said that they did, of those that are still to
// be answered the first of each kind, and those whose outcome is not known.
func (t *tracker) possibleCauses(id instance.ID, after, at time.Time) (list []causeCandidate) {
	t.mu.Lock()
	defer t.mu.Unlock()
	tr := t.tracks[id]
	if tr == nil {
		return nil
	}
	for _, on := range tr.changed[tr.changed.through(after):max(tr.changed.through(after), tr.changed.through(at))] {
		if t.examined++; on.step.Load() == nil {
			list = append(list, on.candidate())
		}
	}
	for _, waiting := range tr.unanswered {
		for _, on := range waiting[:waiting.through(at)] {
			if t.examined++; on.step.Load() == nil {
				list = append(list, on.candidate())
				break
			}
		}
	}
	for _, on := range tr.unresolved[:tr.unresolved.through(at)] {
		if t.examined++; on.step.Load() == nil && !on.actedBefore(after) {
			list = append(list, on.unresolvedLocked())
		}
	}
	return list
}

// recordUnrecorded records what was done to an instance before a time. What turns out to be
// recorded already is left out.
func (s *Service) recordUnrecorded(r *recording, id instance.ID, at time.Time, except *inflightCommand) {
	for _, c := range s.tracker.unrecordedBefore(id, at, except) {
		if _, found := r.Get(id); found {
			s.recordAnswer(r, *c.change, c)
		}
	}
}
