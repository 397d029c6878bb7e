package observer

import (
	"slices"
	"time"
)

// timeline has commands on one instance in the order of their times.
type timeline []*commandOnInstance

// before returns how many commands have an earlier time, and through how many have no later
// one.
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

// lastBefore returns the last command with an earlier time, nil if there is none.
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
