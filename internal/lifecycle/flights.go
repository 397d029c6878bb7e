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

// patience is how long a command may hold up what else is known of its instances. A
// call that takes longer, because the backend is slow, must not blind everybody.
const patience = time.Second

// attribution says whose doing it is when an instance enters a state.
type attribution struct {
	cause instance.Cause
	// target is the state that the command leads to directly; unspecified for one that
	// changes no state.
	target instance.State
	// since is when the command began: it has not done what happened before.
	since time.Time
	// before is the end of the log when it began.
	before journal.Position
	// until is when it ended, if it has and nobody knows what it did; else zero.
	until time.Time
	// used is whether it turned out to be the cause of a step of the instance; nil for one
	// that may be of several.
	used *atomic.Bool
}

// endedBefore reports whether the command had ended before a time.
func (a attribution) endedBefore(at time.Time) bool { return !a.until.IsZero() && a.until.Before(at) }

// beliedBy reports whether an image shows that the start by which it differs from what was
// known was not this command.
func (a attribution) beliedBy(known, image *instance.Instance) bool {
	if a.target != instance.StatePending || a.until.IsZero() || !image.LaunchTime.After(known.LaunchTime) {
		return false
	}
	return image.LaunchTime.Before(a.since.Add(-lateness)) || image.LaunchTime.After(a.until.Add(lateness))
}

// targets are the states that the verbs lead to.
var targets = map[instance.Verb]instance.State{
	instance.VerbStart:     instance.StatePending,
	instance.VerbStop:      instance.StateStopping,
	instance.VerbTerminate: instance.StateShuttingDown,
}

// flights knows which instances have a command in flight, from before the backend is
// called until the answer is recorded. Two things follow from it:
//
// What is heard of an instance meanwhile, and may be the command's doing, is held back,
// so that a change is recorded with the command that caused it, and once.
//
// Of several commands in flight for one instance the answers are recorded in the order
// in which the backend made the changes; what was held back and happened before a change
// is recorded before it.
//
// The backend is waited for, and so is another command, for [patience] at most. What a
// command has answered by then is recorded together with what came later.
type flights struct {
	mu        sync.Mutex
	instances map[instance.ID]*traffic
	// held counts the notices that are held back.
	held int
	// freed are notices that need no longer be held back.
	freed []instance.Notice
	// free is signalled when an instance that somebody asked about becomes free, or when
	// there are freed notices.
	free chan struct{}
}

// traffic is what is in flight for one instance.
type traffic struct {
	commands []passage
	// held are notices of the instance, oldest first.
	held []instance.Notice
	// awaited is whether somebody wants to hear when the instance is free.
	awaited bool
}

// passage is a command at one instance.
type passage struct {
	*flight
	// used is whether it turned out to be the cause of a step of the instance.
	used *atomic.Bool
}

// does returns the command as what may have changed the instance.
func (p passage) does() attribution {
	c := p.command
	c.used = p.used
	return c
}

// flight is one command.
type flight struct {
	all     *flights
	ids     []instance.ID
	command attribution
	// answered is true once the backend has answered; changes are its answer.
	answered bool
	changes  []instance.StateChange
	// moved is closed, and forgotten, when the command is answered and when it ends; nil
	// while nobody waits for that.
	moved chan struct{}
}

func newFlights() *flights {
	return &flights{instances: make(map[instance.ID]*traffic), free: make(chan struct{}, 1)}
}

func (f *flights) begin(ids []instance.ID, command attribution) *flight {
	fl := &flight{all: f, ids: ids, command: command}
	used := make([]atomic.Bool, len(ids))
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, id := range ids {
		t := f.instances[id]
		if t == nil {
			t = &traffic{}
			f.instances[id] = t
		}
		t.commands = append(t.commands, passage{fl, &used[i]})
	}
	return fl
}

// at returns the command as what may have changed one of its instances.
func (fl *flight) at(id instance.ID) attribution {
	f := fl.all
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.instances[id]
	return t.commands[t.index(fl)].does()
}

// index returns which of the commands at an instance one is, -1 for none.
func (t *traffic) index(fl *flight) int {
	return slices.IndexFunc(t.commands, func(p passage) bool { return p.flight == fl })
}

// blocks reports whether what happened at a time may be a command's doing, and is held
// back for its sake.
func (t *traffic) blocks(at, now time.Time) bool {
	return slices.ContainsFunc(t.commands, func(fl passage) bool {
		c := fl.command
		return c.target != instance.StateUnspecified && !at.Before(c.since) && (fl.answered || now.Sub(c.since) < patience)
	})
}

// busy reports whether a description of the instance has to wait for a command. If so,
// free is signalled once it need not.
func (f *flights) busy(id instance.ID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.instances[id]
	now := time.Now()
	if t == nil || !t.blocks(now, now) {
		return false
	}
	t.awaited = true
	return true
}

// suspects returns the commands in flight that may have changed the instance between two
// times: those that have not said yet whether they did, and those that have said so.
func (f *flights) suspects(id instance.ID, after, at time.Time) (list []attribution) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := f.instances[id]; t != nil {
		for _, fl := range t.commands {
			c := fl.does()
			if c.target == instance.StateUnspecified || at.Before(c.since) {
				continue
			}
			if !fl.answered || slices.ContainsFunc(fl.changes, func(o instance.StateChange) bool {
				return o.ID == id && o.Previous != o.Current && o.At.After(after) && !at.Before(o.At)
			}) {
				list = append(list, c)
			}
		}
	}
	return list
}

// owed returns what commands in flight, but for one, have said that they did to an instance
// before a time.
func (f *flights) owed(id instance.ID, at time.Time, except *flight) (list []doubt) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := f.instances[id]; t != nil {
		for _, fl := range t.commands {
			if fl.flight == except {
				continue
			}
			for _, c := range fl.changes {
				if c.ID == id && c.Previous != c.Current && c.At.Before(at) {
					list = append(list, doubt{command: fl.does(), change: &c})
				}
			}
		}
	}
	return list
}

// admit returns the notices that can be recorded, those freed before among them, and
// holds the others back. Of one instance they stay in their order.
func (f *flights) admit(notices []instance.Notice) (ready []instance.Notice) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ready, f.freed = f.freed, nil
	now := time.Now()
	for _, n := range notices {
		t := f.instances[n.ID]
		if t == nil || (len(t.held) == 0 && !t.blocks(n.OccurredAt.Add(resolution(n)), now)) {
			ready = append(ready, n)
			continue
		}
		i, _ := slices.BinarySearchFunc(t.held, n, func(h, n instance.Notice) int {
			if h.OccurredAt.After(n.OccurredAt) {
				return 1
			}
			return -1
		})
		t.held = slices.Insert(t.held, i, n)
		f.held++
	}
	return ready
}

// holding reports whether any notice is held back.
func (f *flights) holding() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.held > 0
}

// expire frees the notices that were held back for long enough.
func (f *flights) expire() {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	for _, t := range f.instances {
		if len(t.held) > 0 && !t.blocks(now, now) {
			f.releaseLocked(t)
		}
	}
}

func (f *flights) releaseLocked(t *traffic) {
	f.held -= len(t.held)
	f.freed = append(f.freed, t.held...)
	t.held = nil
}

// end ends the command: its answer is recorded, or there is none.
func (fl *flight) end() {
	f := fl.all
	f.mu.Lock()
	defer f.mu.Unlock()
	fl.moveLocked()
	signal := false
	for _, id := range fl.ids {
		t := f.instances[id]
		i := t.index(fl)
		t.commands = slices.Delete(t.commands, i, i+1)
		if len(t.commands) == 0 {
			signal = signal || t.awaited || len(t.held) > 0
			f.releaseLocked(t)
			delete(f.instances, id)
		}
	}
	if signal {
		select {
		case f.free <- struct{}{}:
		default:
		}
	}
}

func (fl *flight) moveLocked() {
	if fl.moved != nil {
		close(fl.moved)
		fl.moved = nil
	}
}

// movesLocked returns a channel that is closed when the command moves on.
func (fl *flight) movesLocked() <-chan struct{} {
	if fl.moved == nil {
		fl.moved = make(chan struct{})
	}
	return fl.moved
}

// settle takes the backend's answer and returns when it is its turn to be recorded, with
// the notices that are to be recorded before it: those of the same instances that
// happened earlier. It does not wait for longer than [patience].
func (fl *flight) settle(ctx context.Context, changes []instance.StateChange) (heard []instance.Notice) {
	f := fl.all
	f.mu.Lock()
	fl.answered, fl.changes = true, changes
	fl.moveLocked()
	f.mu.Unlock()
	var enough <-chan time.Time
	for _, c := range changes {
		for {
			f.mu.Lock()
			t := f.instances[c.ID]
			ahead := fl.behind(t, c)
			if ahead == nil {
				heard = append(heard, f.takeHeldLocked(t, c.At)...)
				f.mu.Unlock()
				break
			}
			moves := ahead.movesLocked()
			f.mu.Unlock()
			if enough == nil {
				timer := time.NewTimer(patience)
				defer timer.Stop()
				enough = timer.C
			}
			select {
			case <-moves:
				continue
			case <-enough:
			case <-ctx.Done():
			}
			return append(heard, fl.takeAllHeld(changes)...)
		}
	}
	return heard
}

// behind returns a command in flight that can have changed the instance before this
// change: nil if there is none, so that it is this one's turn. Of those that have said
// when, it is the last, behind which the others are; so nobody wakes for each of many.
func (fl *flight) behind(t *traffic, c instance.StateChange) (ahead *flight) {
	var last time.Time
	for _, other := range t.commands {
		if other.flight == fl || other.command.target == instance.StateUnspecified {
			continue
		}
		if !other.answered {
			if ahead == nil && !other.command.since.After(c.At) {
				ahead = other.flight
			}
			continue
		}
		for _, o := range other.changes {
			if o.ID == c.ID && o.At.Before(c.At) && o.At.After(last) && !sameFinding(o, c) {
				ahead, last = other.flight, o.At
			}
		}
	}
	return ahead
}

// sameFinding reports whether two commands found an instance in one state and left it
// there: then it makes no difference which is recorded first.
func sameFinding(a, b instance.StateChange) bool {
	return a.Previous == a.Current && b.Previous == b.Current && a.Current == b.Current
}

// takeHeldLocked takes the notices of what happened before a time.
func (f *flights) takeHeldLocked(t *traffic, before time.Time) []instance.Notice {
	n := 0
	for n < len(t.held) && t.held[n].OccurredAt.Before(before) {
		n++
	}
	taken := slices.Clone(t.held[:n])
	t.held = slices.Delete(t.held, 0, n)
	f.held -= n
	return taken
}

func (fl *flight) takeAllHeld(changes []instance.StateChange) (heard []instance.Notice) {
	f := fl.all
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range changes {
		heard = append(heard, f.takeHeldLocked(f.instances[c.ID], c.At)...)
	}
	return heard
}
