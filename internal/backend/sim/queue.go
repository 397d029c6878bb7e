package sim

import (
	"container/heap"
	"container/list"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// maxNotices is the maximum length of the queue, with or without a consumer.
const maxNotices = 16384

// queue holds notices until they are acknowledged.
type queue struct {
	log        *slog.Logger
	bestEffort bool // a notice leaves the queue when it is delivered

	mu      sync.Mutex
	waiting *list.List    // of instance.Notice, oldest first; delivered ones too
	next    *list.Element // the first that the consumer has not got
	late    lateQueue
	// overtaken are the late notices that the next notice of their instance overtakes.
	overtaken map[instance.ID][]*lateNotice
	consumer  *consumer
	dropping  bool // the last push dropped a notice
	closed    bool
}

type lateNotice struct {
	instance.Notice
	due   time.Time
	place int // in the queue
}

// lateQueue is a heap, the first due one on top.
type lateQueue []*lateNotice

func (q lateQueue) Len() int           { return len(q) }
func (q lateQueue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }

func (q lateQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

// Push is for package heap.
func (q *lateQueue) Push(x any) {
	l := x.(*lateNotice)
	l.place = len(*q)
	*q = append(*q, l)
}

// Pop is for package heap.
func (q *lateQueue) Pop() any {
	last := len(*q) - 1
	l := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return l
}

// consumer is the current range over the notices.
type consumer struct {
	wake  chan struct{} // holds one token when there may be something new
	ended chan struct{} // closed when the consumer has no business any more
}

func newQueue(log *slog.Logger, bestEffort bool) *queue {
	q := &queue{log: log, bestEffort: bestEffort}
	q.clear()
	return q
}

// clear drops all notices. Acknowledging them then has no effect.
func (q *queue) clear() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting, q.next, q.late = list.New(), nil, nil
	q.overtaken = map[instance.ID][]*lateNotice{}
}

// close ends the consumer, and all later ones at once.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		q.closed = true
		q.replaceConsumerLocked(nil)
	}
}

// attach makes the caller the consumer, from the oldest notice on.
func (q *queue) attach() *consumer {
	q.mu.Lock()
	defer q.mu.Unlock()
	c := &consumer{wake: make(chan struct{}, 1), ended: make(chan struct{})}
	if q.closed {
		close(c.ended)
		return c
	}
	q.replaceConsumerLocked(c)
	q.next = q.waiting.Front()
	return c
}

func (q *queue) replaceConsumerLocked(c *consumer) {
	if q.consumer != nil {
		close(q.consumer.ended)
	}
	q.consumer = c
}

// push queues a notice, followed by the ones that it overtakes.
func (q *queue) push(n instance.Notice) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.appendLocked(n)
	passed := q.overtaken[n.ID]
	delete(q.overtaken, n.ID)
	for _, l := range passed {
		heap.Remove(&q.late, l.place)
		q.appendLocked(l.Notice)
	}
}

// pushLate queues a notice for later: until a time or, if it is to be overtaken, until the
// next one of its instance if that comes first.
func (q *queue) pushLate(n instance.Notice, due time.Time, overtaken bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	l := &lateNotice{Notice: n, due: due}
	heap.Push(&q.late, l)
	if overtaken {
		q.overtaken[n.ID] = append(q.overtaken[n.ID], l)
	}
	q.boundLocked()
	q.wakeConsumerLocked()
}

func (q *queue) appendLocked(n instance.Notice) {
	e := q.waiting.PushBack(n)
	if q.next == nil {
		q.next = e
	}
	q.boundLocked()
	q.wakeConsumerLocked()
}

// boundLocked drops the oldest notice if there are too many.
func (q *queue) boundLocked() {
	if q.waiting.Len()+len(q.late) <= maxNotices {
		q.dropping = false
		return
	}
	if !q.dropping {
		q.dropping = true
		q.log.Warn("too many notices wait to be acknowledged; the oldest are dropped", slog.Int("limit", maxNotices))
	}
	if oldest := q.waiting.Front(); oldest != nil {
		q.removeLocked(oldest)
	} else {
		q.popLateLocked()
	}
}

// popLateLocked removes and returns the first late notice that is due.
func (q *queue) popLateLocked() instance.Notice {
	l := heap.Pop(&q.late).(*lateNotice)
	if of := q.overtaken[l.ID]; len(of) > 0 {
		if of = slices.DeleteFunc(of, func(o *lateNotice) bool { return o == l }); len(of) == 0 {
			delete(q.overtaken, l.ID)
		} else {
			q.overtaken[l.ID] = of
		}
	}
	return l.Notice
}

// removeLocked removes a notice from the queue, unless it is already gone.
func (q *queue) removeLocked(e *list.Element) {
	if e == q.next {
		q.next = e.Next()
	}
	q.waiting.Remove(e)
}

func (q *queue) wakeConsumerLocked() {
	if q.consumer == nil {
		return
	}
	select {
	case q.consumer.wake <- struct{}{}:
	default:
	}
}

// take returns the next notice for the consumer. If there is none it returns the time until
// a late one is due, or zero if none is late.
func (q *queue) take(c *consumer) (n instance.Notice, ok bool, wait time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.consumer != c {
		return instance.Notice{}, false, 0
	}
	now := time.Now()
	for len(q.late) > 0 && !q.late[0].due.After(now) {
		q.appendLocked(q.popLateLocked())
	}
	e := q.next
	if e == nil {
		if len(q.late) > 0 {
			wait = q.late[0].due.Sub(now)
		}
		return instance.Notice{}, false, wait
	}
	q.next = e.Next()
	n = e.Value.(instance.Notice)
	if q.bestEffort {
		q.waiting.Remove(e)
		n.Ack = func() {}
		return n, true, 0
	}
	n.Ack = func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.removeLocked(e)
	}
	return n, true, 0
}

// sleep waits for a new or late notice. It returns false if the consumer must end.
func (c *consumer) sleep(ctx context.Context, wait time.Duration) bool {
	var late <-chan time.Time
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-ctx.Done():
		return false
	case <-c.ended:
		return false
	case <-c.wake:
	case <-late:
	}
	return true
}
