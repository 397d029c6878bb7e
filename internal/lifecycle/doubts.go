package lifecycle

import (
	"slices"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// mostDoubts is how many commands are remembered for one instance: more than usually are in
// flight for it when answers begin to be lost, or the journal goes away. What further ones did
// has no cause; of several of one verb it is most often the first that did something.
const mostDoubts = 16

// lateness is how long after its end a command whose answer was lost may still have acted,
// by the clock of the backend.
const lateness = 3 * time.Second

// doubts remembers the commands that have ended, and of which it is not recorded what they
// did, until the backend was asked what became of them.
type doubts struct {
	mu sync.Mutex
	// instances has those of each instance in the order in which they acted, or began.
	instances map[instance.ID][]doubt
	// from is when the backend was last set to what the journal knew. What was done to it
	// before is undone.
	from time.Time
}

// doubt is what one command did to one instance.
type doubt struct {
	command attribution
	// change is what it did, as it was answered but could not be recorded; nil when the
	// answer was lost, so that nobody knows.
	change *instance.StateChange
}

// at is the earliest time at which the command can have acted.
func (d doubt) at() time.Time {
	if d.change != nil {
		return d.change.At
	}
	return d.command.since
}

// endedBefore reports whether the command did before a time what it did.
func (d doubt) endedBefore(at time.Time) bool {
	if d.change != nil {
		return !d.change.At.After(at)
	}
	return d.command.endedBefore(at)
}

func newDoubts() *doubts { return &doubts{instances: make(map[instance.ID][]doubt)} }

// add remembers what a command that has just ended did to an instance.
func (d *doubts) add(id instance.ID, x doubt) {
	d.mu.Lock()
	defer d.mu.Unlock()
	x.command.until = time.Now()
	list := d.instances[id]
	if x.command.since.Before(d.from) || len(list) == mostDoubts {
		return
	}
	i, _ := slices.BinarySearchFunc(list, x, func(a, b doubt) int { return a.at().Compare(b.at()) })
	d.instances[id] = slices.Insert(list, i, x)
}

// owed returns what was done to an instance before a time, and could not be recorded.
func (d *doubts) owed(id instance.ID, at time.Time) (list []doubt) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, x := range d.instances[id] {
		if x.change != nil && x.change.At.Before(at) {
			list = append(list, x)
		}
	}
	return list
}

// suspects returns the commands that may have changed an instance between two times.
func (d *doubts) suspects(id instance.ID, after, at time.Time) (list []attribution) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, x := range d.instances[id] {
		if !at.Before(x.at()) && !x.endedBefore(after) {
			list = append(list, x.command)
		}
	}
	return list
}

// resolve forgets the commands that had ended when the backend was asked what became of
// them: what they did is recorded, or they did nothing.
func (d *doubts) resolve(id instance.ID, asked time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := slices.DeleteFunc(d.instances[id], func(x doubt) bool { return !asked.Before(x.command.until) })
	if len(list) == 0 {
		delete(d.instances, id)
		return
	}
	d.instances[id] = list
}

// forget forgets everything: the backend is about to be set to what the journal knows.
func (d *doubts) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.instances)
	d.from = time.Now()
}

// suspect says that a command may have changed instances although its outcome is not
// known, and asks for a look at them.
func (s *Service) suspect(ids []instance.ID, fl *flight) {
	if len(ids) == 0 || fl.command.target == instance.StateUnspecified {
		return
	}
	for _, id := range ids {
		s.doubts.add(id, doubt{command: fl.at(id)})
	}
	s.looker.request(ids...)
}

// owe says that what an answer changed could not be recorded. It is recorded before
// whatever is next recorded of the same instances and happened later; a look at them sees
// to it that it is.
func (s *Service) owe(fl *flight, a answer) {
	for _, change := range a.response.Changes {
		if change.Current != change.Previous {
			s.doubts.add(change.ID, doubt{command: fl.at(change.ID), change: &change})
			s.looker.request(change.ID)
		}
	}
}

// owed returns what was done to an instance before a time, and may not be recorded: by
// commands in flight, but for one that records its answer itself, and by those that could not.
func (s *Service) owed(id instance.ID, at time.Time, except *flight) []doubt {
	list := append(s.flights.owed(id, at, except), s.doubts.owed(id, at)...)
	slices.SortFunc(list, func(a, b doubt) int { return a.at().Compare(b.at()) })
	return list
}

// recordOwed records what was done to an instance before a time. What turns out to be
// recorded already is left out.
func (s *Service) recordOwed(r *recording, id instance.ID, at time.Time, except *flight) {
	for _, x := range s.owed(id, at, except) {
		if _, found := r.Get(id); found {
			s.recordAnswer(r, *x.change, x.command)
		}
	}
}

// suspects returns the commands that may have changed an instance between two times, in a
// way that is not known yet: those in flight, and those whose outcome is not known.
func (s *Service) suspects(id instance.ID, after, at time.Time) []attribution {
	list := append(s.flights.suspects(id, after, at), s.doubts.suspects(id, after, at)...)
	return slices.DeleteFunc(list, func(c attribution) bool { return c.used.Load() })
}
