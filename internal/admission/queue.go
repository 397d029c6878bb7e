package admission

import "container/ring"

// Queue holds entries in the order in which they were added, as a whole and by owner, so that
// the first of all and the first of an owner are found at once. Its zero value is empty. It is
// not safe for concurrent use.
type Queue[T any] struct {
	all     ring.Ring             // head of the ring of all entries
	byOwner map[string]*ring.Ring // heads of the rings of the owners
}

// Entry is what a [Queue] holds. It may be added again after it was removed.
type Entry[T any] struct {
	Value      T
	all, owned ring.Ring
	queued     bool
}

// Add adds an entry at the end. It must not be in a queue.
func (q *Queue[T]) Add(e *Entry[T], owner string) {
	if q.byOwner == nil {
		q.byOwner = make(map[string]*ring.Ring)
	}
	owned := q.byOwner[owner]
	if owned == nil {
		owned = ring.New(1)
		q.byOwner[owner] = owned
	}
	e.queued = true
	e.all.Value, e.owned.Value = e, e
	q.all.Prev().Link(&e.all)
	owned.Prev().Link(&e.owned)
}

// Remove removes an entry, if it is in the queue. What the queue keeps of the owner stays,
// for the next entry, until [Queue.Forget].
func (q *Queue[T]) Remove(e *Entry[T]) {
	if !e.queued {
		return
	}
	e.queued = false
	e.all.Prev().Unlink(1)
	e.owned.Prev().Unlink(1)
}

// Forget forgets an owner without entries.
func (q *Queue[T]) Forget(owner string) { delete(q.byOwner, owner) }

// First returns the entry that was added first; nil if there is none.
func (q *Queue[T]) First() *Entry[T] { return first[T](&q.all) }

// FirstOf returns the entry of an owner that was added first; nil if there is none.
func (q *Queue[T]) FirstOf(owner string) *Entry[T] {
	if head := q.byOwner[owner]; head != nil {
		return first[T](head)
	}
	return nil
}

func first[T any](head *ring.Ring) *Entry[T] {
	if head.Next() == head {
		return nil
	}
	return head.Next().Value.(*Entry[T])
}
