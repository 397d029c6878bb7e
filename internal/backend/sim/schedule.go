package sim

import (
	"cmp"
	"container/heap"
	"time"
)

// schedule is a heap of the machines that will change by themselves, with the first due one
// on top. They share one timer, so that machines that are due together change in the order
// of their ids.
type schedule []*machine

func (s schedule) Len() int { return len(s) }

func (s schedule) Less(i, j int) bool {
	return cmp.Or(s[i].due.Compare(s[j].due), cmp.Compare(s[i].inst.ID, s[j].inst.ID)) < 0
}

func (s schedule) Swap(i, j int) {
	s[i], s[j] = s[j], s[i]
	s[i].slot, s[j].slot = i, j
}

// Push is for package heap.
func (s *schedule) Push(x any) {
	m := x.(*machine)
	m.slot = len(*s)
	*s = append(*s, m)
}

// Pop is for package heap.
func (s *schedule) Pop() any {
	last := len(*s) - 1
	m := (*s)[last]
	(*s)[last] = nil
	*s = (*s)[:last]
	m.slot = -1
	return m
}

// scheduleLocked schedules a machine, replacing its earlier schedule. A zero time removes
// it from the schedule.
func (b *Backend) scheduleLocked(m *machine, due time.Time) {
	m.due = due
	switch {
	case due.IsZero() && m.slot >= 0:
		heap.Remove(&b.schedule, m.slot)
	case due.IsZero():
	case m.slot >= 0:
		heap.Fix(&b.schedule, m.slot)
	default:
		heap.Push(&b.schedule, m)
	}
}

// advanceDueLocked makes all transitions that are due.
func (b *Backend) advanceDueLocked(now time.Time) {
	for len(b.schedule) > 0 && !b.schedule[0].due.After(now) {
		b.advanceLocked(heap.Pop(&b.schedule).(*machine))
	}
}

// armTimerLocked sets the timer to the first transition that is due.
func (b *Backend) armTimerLocked() {
	if len(b.schedule) == 0 || b.schedule[0].due.Equal(b.armed) {
		return
	}
	b.armed = b.schedule[0].due
	b.timer.Reset(time.Until(b.armed))
}

// tick runs when the timer fires. A superfluous tick is harmless.
func (b *Backend) tick() {
	now, closed := b.lock()
	if closed != nil {
		return
	}
	b.armed = time.Time{}
	b.unlock(now)
}
