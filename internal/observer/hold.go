package observer

import (
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// blocksLocked reports whether a command in flight may have done what happened at a time, which is
// held back for that reason. A command that is slow to be answered is no reason.
func (tr *track) blocksLocked(at, now time.Time) bool {
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

// deferDescribe defers the description of an instance if it has to wait for a command, and
// reports whether it did. The instance becomes describable when the command ends.
func (t *tracker) deferDescribe(id instance.ID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	tr, now := t.tracks[id], time.Now()
	if tr == nil || !tr.blocksLocked(now, now) {
		return false
	}
	tr.describeDeferred = true
	return true
}

// nextDescribable returns the instances that have become describable since the last call.
func (t *tracker) nextDescribable() []instance.ID {
	t.mu.Lock()
	defer t.mu.Unlock()
	ids := t.describable
	t.describable = nil
	return ids
}

// holdBack returns the notices that can be recorded, together with those released before,
// and holds the others back. The notices of one instance stay in their order.
func (t *tracker) holdBack(notices []instance.Notice) (ready []instance.Notice) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ready, t.released = t.released, nil
	now := time.Now()
	for _, n := range notices {
		tr := t.tracks[n.ID]
		if tr == nil || (len(tr.held) == 0 && !tr.blocksLocked(lastSent(n), now)) {
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

// releaseExpired releases the notices that were held back for long enough. Commands that were
// sent after what a notice tells do not prolong that.
func (t *tracker) releaseExpired() {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	for id, tr := range t.holding {
		n := 0
		for n < len(tr.held) && !tr.blocksLocked(lastSent(tr.held[n]), now) {
			n++
		}
		t.releaseLocked(id, tr, n)
	}
}

// releaseLocked releases the first n held notices of an instance.
func (t *tracker) releaseLocked(id instance.ID, tr *track, n int) {
	t.released = append(t.released, tr.held[:n]...)
	if tr.held = slices.Delete(tr.held, 0, n); len(tr.held) == 0 {
		tr.held = nil
		delete(t.holding, id)
	}
}

// heldBeforeLocked removes the held notices of what happened before a time, and returns them.
func (t *tracker) heldBeforeLocked(id instance.ID, before time.Time) []instance.Notice {
	tr := t.holding[id]
	if tr == nil {
		return nil
	}
	n := 0
	for n < len(tr.held) && tr.held[n].OccurredAt.Before(before) {
		n++
	}
	older := slices.Clone(tr.held[:n])
	tr.held = slices.Delete(tr.held, 0, n)
	if len(tr.held) == 0 {
		delete(t.holding, id)
	}
	return older
}
