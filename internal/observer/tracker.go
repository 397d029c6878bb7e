package observer

import (
	"slices"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

const (
	// maxHold is how long a command may hold back what else is known of its instances, and
	// how long its answer waits for earlier ones to be recorded. A slow call must not keep
	// everybody else from seeing what happens.
	maxHold = time.Second
	// maxUnresolved is how many commands that ended without a record are remembered for one
	// instance: more than are usually in flight for it when responses begin to be lost, or
	// the journal goes away. What further ones did has no cause; of several commands of one
	// verb it is mostly the first that did something.
	maxUnresolved = 16
)

// tracker knows all commands that may have changed an instance in a way that is not
// recorded: those in flight, from before the backend sends a request until the response is
// recorded, and those that ended without that. One that waits in the backend to be sent is
// queued: it has changed nothing, and nothing below concerns it. The tracker ensures that
//
//   - a notice that may tell of what a command in flight did is held back, so that a change
//     is recorded once, and with the command that caused it;
//   - answers about one instance are recorded in the order in which the backend made the
//     changes, and notices that were held back and are older come first;
//   - a step that is discovered later is attributed to the command that may have made it.
//
// Nothing waits for the backend, or for another command, for longer than [maxHold].
//
// Each instance has a track of its own: the work for one instance of a command depends on
// the commands that changed that instance, and on nothing else. All methods are safe for
// concurrent use; mu is a leaf lock.
type tracker struct {
	mu     sync.Mutex
	tracks map[instance.ID]*track
	// holding are the tracks with held notices.
	holding map[instance.ID]*track
	// released are notices that need no longer be held back.
	released []instance.Notice
	// describable are instances whose description was deferred, and need no longer be.
	describable []instance.ID
	// wake is signalled when there are released notices or describable instances.
	wake chan struct{}
	// restored is when the backend was last set to what the journal knew. What was done to
	// it before is undone.
	restored time.Time
	// unresolved counts the entries of all tracks' unresolved by their state.
	unresolved [outcomeUnknown + 1]int
	// origins has a lock of its own.
	origins origins
	// examined counts the entries of tracks that were examined one by one.
	examined int
}

// track is what is known of the commands on one instance.
type track struct {
	// unanswered are the commands in flight without an answer, by the state that they lead to.
	unanswered [len(trackedTargets)]timeline
	// changed are those in flight that changed the instance by their answer, and found are
	// those that left it as they found it, by its state.
	changed timeline
	found   [instance.StateStopped + 1]timeline
	// rejected are those in flight that were not carried out.
	rejected timeline
	// unresolved are those that ended and whose changes are not recorded, or whose outcome
	// is unknown: at most [maxUnresolved].
	unresolved timeline
	// active counts the entries of unanswered, changed, found and rejected.
	active int
	// waiters are answered commands that wait until all that were sent before they acted are
	// answered, by when they acted.
	waiters []*inflightCommand
	// held are notices of the instance, oldest first.
	held []instance.Notice
	// describeDeferred is whether the instance is to be described once no command is in flight.
	describeDeferred bool
}

// trackedTargets are the states that commands lead to.
var trackedTargets = [...]instance.State{instance.StatePending, instance.StateStopping, instance.StateShuttingDown}

func newTracker() *tracker {
	return &tracker{
		tracks:  make(map[instance.ID]*track),
		holding: make(map[instance.ID]*track),
		wake:    make(chan struct{}, 1),
		origins: newOrigins(),
	}
}

// dropResolved drops the unresolved commands on an instance that had ended when the backend
// was asked about it: what they did is recorded, or they did nothing.
func (t *tracker) dropResolved(id instance.ID, asked time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	tr := t.tracks[id]
	if tr == nil {
		return
	}
	tr.unresolved = slices.DeleteFunc(tr.unresolved, func(on *commandOnInstance) bool {
		resolved := !asked.Before(on.ended)
		if resolved {
			t.unresolved[on.state]--
		}
		return resolved
	})
	t.dropIfIdleLocked(id, tr)
}

// dropUnresolved drops all commands that ended: the backend is about to be set to what the
// journal knows.
func (t *tracker) dropUnresolved() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.restored = time.Now()
	clear(t.unresolved[:])
	for id, tr := range t.tracks {
		tr.unresolved = nil
		t.dropIfIdleLocked(id, tr)
	}
}

func (t *tracker) dropIfIdleLocked(id instance.ID, tr *track) {
	if tr.active == 0 && len(tr.unresolved) == 0 {
		delete(t.tracks, id)
	}
}

// startLocked puts a queued command in flight, on the track of its instance.
func (t *tracker) startLocked(on *commandOnInstance, now time.Time) {
	tr := t.tracks[on.id]
	if tr == nil {
		tr = &track{}
		t.tracks[on.id] = tr
	}
	on.state, on.at = inFlight, now
	tr.listOfLocked(on).insert(on)
	tr.active++
}

// listOfLocked returns the list of a track that an entry belongs to by its state.
func (tr *track) listOfLocked(on *commandOnInstance) *timeline {
	switch {
	case on.state == inFlight:
		return &tr.unanswered[slices.Index(trackedTargets[:], on.command.target)]
	case on.state == rejected:
		return &tr.rejected
	case on.state != answered:
		return &tr.unresolved
	case on.changed():
		return &tr.changed
	}
	return &tr.found[on.change.Current]
}

// moveLocked gives an active entry of a track another state, and the time that goes with it.
// It signals whoever waited for the command.
func (t *tracker) moveLocked(on *commandOnInstance, state commandState, at time.Time) {
	tr := t.tracks[on.id]
	tr.listOfLocked(on).remove(on)
	on.state, on.at = state, at
	if state == unrecorded || state == outcomeUnknown {
		t.unresolved[state]++
	}
	if state != untracked && state != queued {
		tr.listOfLocked(on).insert(on)
	}
	if !on.activeLocked() {
		tr.active--
	}
	tr.wakeWaitersLocked()
	if tr.active > 0 {
		return
	}
	if tr.describeDeferred {
		tr.describeDeferred = false
		t.describable = append(t.describable, on.id)
		t.signalLocked()
	}
	if len(tr.held) > 0 {
		t.releaseLocked(on.id, tr, len(tr.held))
		t.signalLocked()
	}
	t.dropIfIdleLocked(on.id, tr)
}

func (t *tracker) signalLocked() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}
