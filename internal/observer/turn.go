package observer

import (
	"context"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// awaitTurn returns when the answers to a command may be recorded: when those that acted on
// the same instances before are recorded, and after at most [maxHold]. It returns the notices
// that were held back and are older; they have to be recorded first.
func (c *inflightCommand) awaitTurn(ctx context.Context, changes []instance.StateChange) (older []instance.Notice) {
	t := c.tracker
	t.mu.Lock()
	defer t.mu.Unlock()
	var timeout <-chan time.Time
	for i := 0; i < len(changes); {
		predecessor, waiting := t.waitBehindLocked(c, changes[i])
		if predecessor == nil {
			i++
			continue
		}
		t.mu.Unlock()
		if timeout == nil {
			timer := time.NewTimer(maxHold)
			defer timer.Stop()
			timeout = timer.C
		}
		over := false
		select {
		case <-predecessor:
		case <-timeout:
			over = true
		case <-ctx.Done():
			over = true
		}
		t.mu.Lock()
		if over {
			if waiting {
				t.stopWaitingLocked(c, changes[i].ID)
			}
			break
		}
	}
	for _, change := range changes {
		older = append(older, t.heldBeforeLocked(change.ID, change.At)...)
	}
	return older
}

// waitBehindLocked returns what to wait for before a change of a command is recorded, nil
// if it is its turn. First come the commands that may turn out to have acted earlier: the
// command waits on the track until none of them is unanswered. Then come those that have
// acted earlier. If several have, it returns the latest, which itself waits for the earlier
// ones, so each waiter wakes once.
func (t *tracker) waitBehindLocked(c *inflightCommand, change instance.StateChange) (predecessor <-chan struct{}, waiting bool) {
	tr := t.tracks[change.ID]
	switch {
	case tr == nil:
		return nil, false
	case tr.unansweredThroughLocked(change.At):
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
		// Which of two that found the same is recorded first makes no difference.
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

// unansweredThroughLocked reports whether a command was sent at a time or before, is unanswered, and
// so may have acted on the instance then.
func (tr *track) unansweredThroughLocked(at time.Time) bool {
	for _, list := range tr.unanswered {
		if len(list) > 0 && !list[0].at.After(at) {
			return true
		}
	}
	return false
}

// wakeWaitersLocked takes the commands off the waiters for which nothing unanswered is left.
func (tr *track) wakeWaitersLocked() {
	ready := 0
	for ready < len(tr.waiters) && !tr.unansweredThroughLocked(tr.waiters[ready].turnAt) {
		tr.waiters[ready].turn <- struct{}{}
		ready++
	}
	tr.waiters = slices.Delete(tr.waiters, 0, ready)
}

// stopWaitingLocked takes a command off the waiters of a track.
func (t *tracker) stopWaitingLocked(c *inflightCommand, id instance.ID) {
	if tr := t.tracks[id]; tr != nil {
		tr.waiters = slices.DeleteFunc(tr.waiters, func(w *inflightCommand) bool { return w == c })
	}
	select {
	case <-c.turn:
	default:
	}
}
