package observer

import (
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// pollDoublings is how often the delay until an instance in transition is described again
// doubles.
const pollDoublings = 3

// pollSchedule says when each instance in transition is described next. It is safe for
// concurrent use.
type pollSchedule struct {
	interval time.Duration

	mu sync.Mutex
	// next is when each instance in transition is described next.
	next map[instance.ID]time.Time
	// polls are in order of time, in one queue for each delay. One that next does not agree
	// with is outdated.
	polls [pollDoublings + 1][]poll
	// examined counts the polls that were examined to find those that are due.
	examined int
}

// poll is when an instance is to be described.
type poll struct {
	id instance.ID
	at time.Time
}

func newPollSchedule(interval time.Duration) *pollSchedule {
	return &pollSchedule{interval: interval, next: make(map[instance.ID]time.Time)}
}

func (p *pollSchedule) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.next)
	clear(p.polls[:])
}

// update schedules an instance that is in transition, and drops one that is not.
func (p *pollSchedule) update(i *instance.Instance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !i.State.Transitional() {
		delete(p.next, i.ID)
		return
	}
	p.scheduleLocked(i.ID, time.Now(), 0)
}

// scheduleLocked schedules an instance after a delay that was doubled a number of times.
func (p *pollSchedule) scheduleLocked(id instance.ID, now time.Time, doublings int) {
	at := now.Add(p.interval << doublings)
	p.next[id] = at
	p.polls[doublings] = append(p.polls[doublings], poll{id, at})
}

// due returns the instances that are to be described now, and schedules them again after
// twice the delay, up to a limit.
func (p *pollSchedule) due(now time.Time) (ids []instance.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for doublings := range p.polls {
		queue := &p.polls[doublings]
		for len(*queue) > 0 && !(*queue)[0].at.After(now) {
			first := (*queue)[0]
			*queue = (*queue)[1:]
			if p.examined++; !p.next[first.id].Equal(first.at) {
				continue
			}
			ids = append(ids, first.id)
			p.scheduleLocked(first.id, now, min(doublings+1, pollDoublings))
		}
	}
	return ids
}
