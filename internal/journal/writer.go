package journal

import (
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/instanced/instanced/internal/instance"
)

// writer is the group commit of a term. It runs the updates one after the other
// and gathers what they write in a batch; meanwhile the batch before is on its way
// to disk. When that has arrived, the next one leaves.
type writer struct {
	term *Term

	mu     sync.Mutex
	queue  []*update // guarded by mu
	closed error     // why no more updates are taken; guarded by mu
	wake   chan struct{}
	// ready hands a batch to whoever commits it, once the one before is written.
	ready chan *batch
	// updates are for reuse. They belong to one writer, not to the process, since a channel made
	// in the bubble of one test cannot be used in another.
	updates sync.Pool
	// finished is closed when the last update has been answered.
	finished chan struct{}
	// stalled is why the batch on its way is not written so far; nil when it is.
	stalled atomic.Pointer[instance.Error]
	// heart is that of the goroutine that commits.
	heart instance.Heartbeat

	// All below belongs to the goroutine of run.
	taken []*update
	tx    Tx
	// batch is gathered, to be at the position next. The one before may be on its way
	// still; it was at last, or is without changes.
	batch, before *batch
	last, next    Position
	// size is how many changes the last batch had.
	size int
}

func newWriter(t *Term) *writer {
	w := &writer{
		term:     t,
		wake:     make(chan struct{}, 1),
		ready:    make(chan *batch),
		finished: make(chan struct{}),
		batch:    newPendingBatch(),
		before:   newPendingBatch(),
		updates:  sync.Pool{New: newUpdate},
	}
	w.tx = Tx{writer: w, known: map[instance.ID]*Record{}, tokens: map[string]tokenChange{}}
	return w
}

// start begins to write behind the head of the log.
func (w *writer) start() {
	w.last = w.term.journal.view.tip().head
	w.next = Position{Epoch: w.term.epoch, Seq: w.last.Seq + 1}
	w.term.work.Go(func() {
		defer close(w.finished)
		var committer sync.WaitGroup
		committer.Go(w.commitAll)
		w.run()
		close(w.ready)
		committer.Wait()
	})
}

// run gathers batches until the writer is closed and all is handed over, or the
// term has ended.
func (w *writer) run() {
	for open := true; open; {
		var ready chan<- *batch
		if len(w.batch.waiting) > 0 {
			ready = w.ready
		}
		select {
		case ready <- w.batch:
			w.rotate()
		case _, open = <-w.wake:
			w.gather()
		case <-w.term.ctx.Done():
			w.failAll()
			return
		}
	}
	if err := w.flush(); err != nil {
		w.failAll()
	}
}

// gather applies what is queued.
func (w *writer) gather() {
	w.mu.Lock()
	w.taken, w.queue = w.queue, w.taken[:0]
	w.mu.Unlock()
	for i, u := range w.taken {
		w.taken[i] = nil
		if u.state.CompareAndSwap(queued, taken) { // else its caller has left
			w.apply(u)
		}
	}
}

// flush hands the batch over, which waits until the one before is written. An
// error is that of the term, which is over.
func (w *writer) flush() error {
	if len(w.batch.waiting) == 0 && !w.batch.writes() {
		return nil
	}
	select {
	case w.ready <- w.batch:
		w.rotate()
		return nil
	case <-w.term.ctx.Done():
		return w.term.Err()
	}
}

// handed begins the next batch. The one before the one that was handed over has
// been written, and is used anew.
func (w *writer) rotate() {
	if r := w.batch.record; r != nil {
		w.size = len(r.Events)
		w.last = w.next
		w.next.Seq++
	}
	w.batch, w.before = w.before, w.batch
	w.batch.reset()
}

// abandon answers all that is not handed over, and whatever comes, with the error
// of the term.
func (w *writer) failAll() {
	err := w.term.Err()
	w.close(err)
	w.batch.answer(err)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, u := range w.queue {
		if u.state.CompareAndSwap(queued, taken) {
			u.fail(err, false)
		}
	}
	w.queue = nil
}

// head is the position of the last change so far, whether or not it is written.
func (w *writer) head() Position {
	if w.batch.record != nil {
		return w.next
	}
	return w.last
}

// lookup returns the last record of an instance, one without an Instance when it
// was removed just now, nil when there is none.
func (w *writer) lookup(id instance.ID) *Record {
	for _, b := range [...]*batch{w.batch, w.before} {
		if record, ok := b.known[id]; ok {
			return record
		}
	}
	record, _ := w.term.journal.view.get(id)
	return record
}

// apply runs the function of an update and adds what it wrote to the batch.
func (w *writer) apply(u *update) {
	// The position of an update is part of what it may write, and depends on how
	// much that is: most updates are in the batch that is being gathered, but one
	// that records nothing, does not fit, or needs several batches, is run again.
	const attempts = 5
	position := w.next
	for range attempts {
		w.tx.reset(position)
		if err := w.call(u.fn); err != nil {
			w.wait(waiting{update: u, position: w.head(), err: err})
			return
		}
		if !w.batch.fits(&w.tx, w.term.journal.store.maxOps) {
			if err := w.flush(); err != nil {
				u.fail(err, false)
				return
			}
			position = w.next
			continue
		}
		actual := w.head()
		if parts := w.tx.parts(); parts > 0 {
			actual = w.next
			actual.Seq += uint64(parts - 1)
		}
		if w.tx.asked && actual != position {
			position = actual
			continue
		}
		w.accept(u)
		return
	}
	w.wait(waiting{update: u, position: w.head(), err: &instance.Error{
		Kind:    instance.KindInternal,
		Message: "an update of the journal writes something else each time it is run",
	}})
}

func (w *writer) wait(x waiting) { w.batch.waiting = append(w.batch.waiting, x) }

// call runs the function of an update. A panic becomes its error: the writer is
// everybody's.
func (w *writer) call(fn func(*Tx) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &instance.Error{
				Kind:    instance.KindInternal,
				Message: "an update of the journal failed",
				Cause:   fmt.Errorf("panic: %v\n%s", p, debug.Stack()),
			}
		}
	}()
	if err := fn(&w.tx); err != nil {
		return err
	}
	return w.tx.err
}

// accept adds to the batch what an update wrote. One that is larger than a batch
// finds it empty, and leaves its last part there.
func (w *writer) accept(u *update) {
	tx, start := &w.tx, 0
	flush := func(end int) bool {
		err := w.flush()
		if err != nil {
			u.fail(err, true)
		}
		start = end
		return err == nil
	}
	for i, e := range tx.entries {
		begin, end := tx.entryStart(i), tx.ends[i]
		if end-start > maxRequestBytes && begin > start && !flush(begin) {
			return
		}
		w.batch.add(e, tx.encoded[begin:end], w.next, max(w.size, len(tx.entries)-i))
	}
	if size := len(tx.encoded); size-start+tx.tokenBytes > maxRequestBytes && size > start && !flush(size) {
		return
	}
	w.batch.addTokens(tx, w.term.journal.store, w.term.tokens)
	w.wait(waiting{update: u, position: w.head(), begun: start > 0})
}
