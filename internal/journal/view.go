package journal

import (
	"maps"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal/codec"
)

// view is what this process knows of the log: the fold of it, and a ring of the
// last batches. One writer or follower publishes to it; readers never hold that
// up, since they wait outside of its lock.
type view struct {
	mu sync.RWMutex
	// All below is guarded by mu; what is pointed to is never modified.
	id     logID
	epochs epochs
	// head is the last batch published, with its time, the revision at which it was
	// written, and the bytes of the log up to and including it.
	head       Position
	recordedAt time.Time
	revision   int64
	bytes      uint64
	// oldest is the place before the first batch that is kept, and oldestBytes are
	// the bytes of the log up to there.
	oldest      uint64
	oldestBytes uint64
	// oldestAt is when the first batch that is kept was recorded, zero if there is none.
	oldestAt time.Time
	records  map[instance.ID]*Record
	// states counts the records by state.
	states [instance.StateStopped + 1]int
	// ids is the sum of the ids of all records.
	ids  idSum
	ring *ring
	// unsaved has the records that changed since the checkpoint, nil for an instance that
	// was removed.
	unsaved map[instance.ID]*Record
	// recent has the records that changed since the last snapshot, nil for an
	// instance that was removed.
	recent map[instance.ID]*Record
	// changed is closed, and replaced, when anything above changed.
	changed chan struct{}
	closed  bool
	// waiters are the readers that wait for certain instances only. Changing them takes mu, or
	// its read lock.
	waiters waiters

	// snapshotMu serializes Snapshot; it is taken before mu.
	snapshotMu sync.Mutex
	snapshot   []*Record
}

func newView(ringLimit int64) *view {
	v := &view{changed: make(chan struct{})}
	v.ring = &ring{limit: ringLimit, guard: &v.mu}
	return v
}

// restore fills an unused view with the records of a checkpoint that reflects the log up to start.
// The revision counts only as long as nothing is published.
func (v *view) restore(id logID, g epochs, start uint64, revision int64, records map[instance.ID]*Record) {
	v.id, v.epochs, v.records = id, g, records
	v.head, _ = g.at(start)
	v.revision = revision
	v.ids = sumIDs(maps.Keys(records))
	for _, record := range records {
		v.countLocked(record.Instance, 1)
	}
	v.unsaved = map[instance.ID]*Record{}
	v.recent = make(map[instance.ID]*Record, len(records))
	maps.Copy(v.recent, records)
}

// adopt replaces all that is known by what a fresh view knows, at once for all
// readers.
func (v *view) adopt(fresh *view) {
	v.snapshotMu.Lock()
	defer v.snapshotMu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.id, v.epochs = fresh.id, fresh.epochs
	v.head, v.recordedAt, v.revision, v.bytes = fresh.head, fresh.recordedAt, fresh.revision, fresh.bytes
	v.oldest, v.oldestBytes, v.oldestAt = fresh.oldest, fresh.oldestBytes, fresh.oldestAt
	v.records, v.states, v.ids, v.unsaved, v.recent = fresh.records, fresh.states, fresh.ids, fresh.unsaved, fresh.recent
	v.ring = fresh.ring
	v.ring.guard = &v.mu
	v.snapshot = nil
	v.wakeLocked()
	v.waiters.wakeAll()
}

// published is a batch that is on disk.
type published struct {
	batch *Batch
	// revision is that at which the batch was written, and bytes is the size of the
	// log up to and including it.
	revision int64
	bytes    uint64
}

// publish folds the batches that follow the head and shows them to readers. It
// ignores those that are known, and reports false for one that does not follow.
func (v *view) publish(batches ...published) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, p := range batches {
		if p.batch.Position.Seq <= v.head.Seq {
			continue
		}
		if p.batch.Position.Seq != v.head.Seq+1 || !v.epochs.cover(p.batch.Position) {
			return false
		}
		v.foldLocked(p)
		v.waiters.wake(p.batch)
	}
	v.wakeLocked()
	return true
}

func (v *view) foldLocked(p published) {
	for i := range p.batch.Events {
		e := &p.batch.Events[i]
		record, change := e.record, e.Change
		id := change.ID()
		known := v.records[id]
		if known != nil && !record.after(known) {
			continue // the checkpoint has a later one
		}
		e.shareWith(known)
		record.inheritCause(change, known)
		if known != nil {
			v.countLocked(known.Instance, -1)
		}
		v.countLocked(record.Instance, 1)
		if record.Instance == nil {
			if known != nil {
				v.ids -= sumID(id)
			}
			delete(v.records, id)
			v.recent[id], v.unsaved[id] = nil, nil
		} else {
			if known == nil {
				v.ids += sumID(id)
			}
			v.records[id] = record
			v.recent[id], v.unsaved[id] = record, record
		}
	}
	v.head, v.recordedAt, v.revision, v.bytes = p.batch.Position, p.batch.RecordedAt, p.revision, p.bytes
	if v.oldestAt.IsZero() {
		v.oldestAt = p.batch.RecordedAt
	}
	v.ring.addLocked(p.batch)
}

// countLocked counts an instance by its state, nil for none.
func (v *view) countLocked(i *instance.Instance, n int) {
	if i != nil && int(i.State) < len(v.states) {
		v.states[i.State] += n
	}
}

func (v *view) wakeLocked() {
	close(v.changed)
	v.changed = make(chan struct{})
}

// next returns the batch after a position from the ring. Otherwise it returns a
// channel to wait on when the position is the head, and neither when the batch
// has to be read from the log.
func (v *view) next(after Position) (*Batch, <-chan struct{}, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.closed {
		return nil, nil, errClosed()
	}
	if err := v.checkLocked(after); err != nil {
		return nil, nil, err
	}
	if after.Seq == v.head.Seq {
		return nil, v.changed, nil
	}
	held := v.ring.batches
	if behind := v.head.Seq - after.Seq; behind <= uint64(len(held)) {
		return held[uint64(len(held))-behind], nil, nil
	}
	return nil, nil, nil
}

func (v *view) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	v.wakeLocked()
	v.waiters.wakeAll()
}

// wait waits for changes of some instances, for a reader that has come to the end of the
// log. Nil is returned when a batch was published meanwhile.
func (v *view) wait(i *waiter, after Position) <-chan struct{} {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.closed || after != v.head {
		return nil
	}
	return v.waiters.wait(i)
}

// stopWaiting ends that waiting. It returns the batch that has a change of the instances; or how
// far there is none, which is the place where the waiting began if everything has to be
// looked at anew.
func (v *view) stopWaiting(i *waiter, began Position) (*Batch, Position) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	batch, waited := v.waiters.stopWaiting(i)
	if waited {
		return nil, v.head
	}
	return batch, began
}

func (v *view) get(id instance.ID) (*Record, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	record, ok := v.records[id]
	return record, ok
}

func (v *view) logID() logID {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.id
}

// tip is the end of the log.
type tip struct {
	head       Position
	recordedAt time.Time
	revision   int64
	bytes      uint64
}

func (v *view) tip() tip {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return tip{v.head, v.recordedAt, v.revision, v.bytes}
}

func (v *view) oldestPosition() Position {
	v.mu.RLock()
	defer v.mu.RUnlock()
	p, _ := v.epochs.at(v.oldest)
	return p
}

func (v *view) listEpochs() epochs {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.epochs
}

// setEpochs replaces the list by one that agrees with it up to the head.
func (v *view) setEpochs(g epochs) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.epochs = g
	v.head, _ = g.at(v.head.Seq)
}

// setOldest says that batches up to seq are no longer kept. The header is that of the batch
// after them.
func (v *view) setOldest(seq uint64, first codec.Header) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if seq >= v.oldest {
		v.oldest, v.oldestBytes, v.oldestAt = seq, first.Preceding, first.RecordedAt
	}
}

// collectUnsaved returns the records that changed since the checkpoint, the last batch that
// they reflect, the sum of all ids by then, and begins to collect anew.
func (v *view) collectUnsaved() (map[instance.ID]*Record, logPoint, idSum) {
	v.mu.Lock()
	defer v.mu.Unlock()
	unsaved := v.unsaved
	v.unsaved = map[instance.ID]*Record{}
	return unsaved, logPoint{v.head.Seq, v.revision}, v.ids
}

// restoreUnsaved gives back what could not be saved.
func (v *view) restoreUnsaved(records map[instance.ID]*Record) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for id, record := range records {
		if _, later := v.unsaved[id]; !later {
			v.unsaved[id] = record
		}
	}
}
