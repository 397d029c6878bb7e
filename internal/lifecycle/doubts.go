package lifecycle

import (
	"slices"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// mostDoubts is how many commands are remembered for one instance: more than usually are in
// flight for it when answers begin to be lost. Beyond it the oldest is forgotten, and what it
// did has no cause.
const mostDoubts = 16

// lateness is how long after its end a command whose answer was lost may still have acted,
// by the clock of the backend.
const lateness = 3 * time.Second

// doubts remembers the commands that have ended, and of which nobody knows what they did,
// until the backend was asked what became of them.
type doubts struct {
	mu sync.Mutex
	// commands are in the order in which they began.
	commands map[instance.ID][]attribution
	// from is when the backend was last set to what the journal knew. What was done to it
	// before is undone.
	from time.Time
}

func newDoubts() *doubts { return &doubts{commands: make(map[instance.ID][]attribution)} }

// add remembers a command that has just ended.
func (d *doubts) add(ids []instance.ID, command attribution) {
	command.until = time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if command.since.Before(d.from) {
		return
	}
	for _, id := range ids {
		list := d.commands[id]
		i, _ := slices.BinarySearchFunc(list, command, func(a, b attribution) int { return a.since.Compare(b.since) })
		list = slices.Insert(list, i, command)
		d.commands[id] = list[max(0, len(list)-mostDoubts):]
	}
}

// suspects returns the commands that may have changed an instance between two times.
func (d *doubts) suspects(id instance.ID, after, at time.Time) (list []attribution) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.commands[id] {
		if !at.Before(c.since) && !c.endedBefore(after) {
			list = append(list, c)
		}
	}
	return list
}

// resolve forgets the commands that had ended when the backend was asked what became of
// them: what they did is recorded, or they did nothing.
func (d *doubts) resolve(id instance.ID, asked time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := slices.DeleteFunc(d.commands[id], func(c attribution) bool { return !asked.Before(c.until) })
	if len(list) == 0 {
		delete(d.commands, id)
		return
	}
	d.commands[id] = list
}

// forget forgets all commands: the backend is about to be set to what the journal knows.
func (d *doubts) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.commands)
	d.from = time.Now()
}

// suspect says that a command may have changed instances although its outcome is not
// known, and asks for a look at them.
func (s *Service) suspect(ids []instance.ID, command attribution) {
	if len(ids) == 0 || command.target == instance.StateUnspecified {
		return
	}
	s.doubts.add(ids, command)
	s.looker.request(ids...)
}

// suspects returns the commands that may have changed an instance between two times:
// those in flight, and those whose outcome is not known.
func (s *Service) suspects(id instance.ID, after, at time.Time) []attribution {
	return append(s.flights.suspects(id, at), s.doubts.suspects(id, after, at)...)
}
