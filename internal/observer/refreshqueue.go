package observer

import (
	"container/heap"
	"fmt"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// queueOfLocked returns the queue that a refresh belongs to.
func (r *refresher) queueOfLocked(w *refresh) *refreshQueue {
	if len(w.waiters) > 0 {
		return &r.waited
	}
	return &r.background
}

func (r *refresher) queueLocked(w *refresh) {
	if w.queued {
		heap.Push(r.queueOfLocked(w), w)
	}
}

func (r *refresher) unqueueLocked(w *refresh) {
	if w.place >= 0 {
		heap.Remove(r.queueOfLocked(w), w.place)
	}
}

// refreshQueue is a heap of refreshes, the first due one on top.
type refreshQueue []*refresh

func (q refreshQueue) Len() int           { return len(q) }
func (q refreshQueue) Less(i, j int) bool { return q[i].notBefore.Before(q[j].notBefore) }

func (q refreshQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

// Push is for package heap.
func (q *refreshQueue) Push(x any) {
	w := x.(*refresh)
	w.place = len(*q)
	*q = append(*q, w)
}

// Pop is for package heap.
func (q *refreshQueue) Pop() any {
	last := len(*q) - 1
	w := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	w.place = -1
	return w
}

// maxLookUps is how many ids may wait to be looked up for all callers together.
const maxLookUps = 10_000

// lookUps are the ids that callers wait to have looked up. Principals take turns. It is not
// safe for concurrent use.
type lookUps struct {
	places  instance.Shares
	callers map[string]*lookUpCaller
	turns   []*lookUpCaller
}

// lookUpCaller is a principal and the ids that wait for its turn.
type lookUpCaller struct {
	principal string
	ids       []instance.ID
}

func newLookUps() lookUps {
	return lookUps{places: instance.NewShares(maxLookUps), callers: make(map[string]*lookUpCaller)}
}

// add enqueues ids behind those that a principal waits for, and reports whether there are
// places for all of them. Each place is held until it is released.
func (l *lookUps) add(principal string, ids []instance.ID) bool {
	if !l.places.Take(principal, len(ids)) {
		return false
	}
	c := l.callers[principal]
	if c == nil {
		c = &lookUpCaller{principal: principal}
		l.callers[principal] = c
		l.turns = append(l.turns, c)
	}
	c.ids = append(c.ids, ids...)
	return true
}

// release gives a place back.
func (l *lookUps) release(principal string) { l.places.Give(principal, 1) }

// next removes an id and returns it, of each principal in turn; false if there is none.
func (l *lookUps) next() (instance.ID, bool) {
	if len(l.turns) == 0 {
		return "", false
	}
	c := l.turns[0]
	l.turns = l.turns[1:]
	id := c.ids[0]
	if c.ids = c.ids[1:]; len(c.ids) > 0 {
		l.turns = append(l.turns, c)
	} else {
		delete(l.callers, c.principal)
	}
	return id, true
}

func errTooManyLookUps() error {
	return &instance.Error{
		Kind:       instance.KindExhausted,
		Reason:     instance.ReasonTooManyLookUps,
		Message:    fmt.Sprintf("too many unknown ids wait to be looked up at the backend: of %d places a caller may have as many as it leaves free; nothing was changed", maxLookUps),
		RetryAfter: time.Second,
	}
}
