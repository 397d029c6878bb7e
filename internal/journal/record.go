package journal

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// Position is a place in the log: just after the batch with that sequence number. Seq 0
// is the place before the first batch. The epoch tells apart batches of the same number
// written by owners that did not know of each other, as after etcd was restored from an
// older copy.
type Position struct {
	Epoch uint64
	Seq   uint64
}

// Record is the current state of one instance.
type Record struct {
	// Instance is the instance as after its last change.
	Instance *instance.Instance
	// Previous is the instance as before its last change; nil when that added it.
	Previous *instance.Instance
	// Cause is who brought the instance into its state. A change of its attributes
	// leaves it as it was.
	Cause instance.Cause
	// Source and ChangedAt describe the last change; ChangedAt is when it happened,
	// not when it was recorded.
	Source    instance.Source
	ChangedAt time.Time
	// Position and Index say which event of the log the last change is.
	Position Position
	Index    uint32

	// memo is shared by the copies of a record; nil for a record that was made by hand.
	memo *memo[[]byte]
}

// Memo returns what the first caller's function made, for all callers of this record as it
// stands in a snapshot: one encoding, which all snapshots share until the instance changes.
// It must not be modified.
func (r *Record) Memo(encode func() []byte) []byte {
	if r.memo == nil {
		return encode()
	}
	return r.memo.get(encode)
}

// Batch is one record of the log: changes that were recorded together, and that
// no position divides. It is shared between readers and never modified.
type Batch struct {
	Position Position
	// RecordedAt never decreases from one batch to the next.
	RecordedAt time.Time
	// Events are the changes in order, at least one.
	Events []Event
	// Bytes is the size of the batch before it was packed: at most 1 MiB, and a few bytes.
	Bytes int

	memo memo[[][]byte]
	// ring is where the batch is or was, nil for one that never was in a ring. size is
	// what it takes there, in bytes of memory.
	ring *ring
	size atomic.Int64
}

// Memo returns what the first caller's function made, for all callers of this batch: one
// encoding, which all subscribers share. It must not be modified. Batches that are read
// from pages of the log are not shared.
func (b *Batch) Memo(encode func() [][]byte) [][]byte {
	return b.memo.get(func() [][]byte {
		made := encode()
		size := int64(0)
		for _, piece := range made {
			size += int64(cap(piece)) + 24
		}
		b.grow(size)
		return made
	})
}

// Event is one change in a batch. Refer to it by pointer; it must not be copied.
type Event struct {
	// Index is the place of the event in its batch, from 0.
	Index  uint32
	Change *instance.Change

	batch  *Batch
	record *Record
	memo   memo[[]byte]
}

// Memo is to an event what [Batch.Memo] is to a batch.
func (e *Event) Memo(encode func() []byte) []byte {
	return e.memo.get(func() []byte {
		made := encode()
		e.batch.grow(int64(cap(made)))
		return made
	})
}

// memo holds what its first caller made, for all callers.
type memo[T any] struct {
	once sync.Once
	made T
}

func (m *memo[T]) get(produce func() T) T {
	m.once.Do(func() { m.made = produce() })
	return m.made
}

// entry is a change with the record that follows from it, in one allocation.
type entry struct {
	change instance.Change
	record Record
	memo   memo[[]byte]
}

func newBatch(p Position, size int) *Batch {
	b := &Batch{Position: p, Events: make([]Event, 0, size)}
	b.size.Store(batchBytes)
	return b
}

// newEntry makes the record that follows from a change, but for its place and for what
// it has from the record before.
func newEntry(c instance.Change) *entry {
	e := &entry{change: c, record: Record{
		Instance:  c.After,
		Previous:  c.Before,
		Cause:     c.Cause,
		Source:    c.Source,
		ChangedAt: c.OccurredAt,
	}}
	e.record.memo = &e.memo
	return e
}

// place notes that the change is the index-th of the batch at a position.
func (e *entry) place(p Position, index int) {
	e.record.Position, e.record.Index = p, uint32(index)
}

// follow completes the record of a change by that before it, nil if there was none. One
// that is complete already, which others may be reading, is not written to.
func (r *Record) inheritCause(c *instance.Change, before *Record) {
	if c.Type == instance.ChangeAttributes && before != nil && r.Cause != before.Cause {
		r.Cause = before.Cause
	}
}

// add appends a change to a batch that is not published yet.
func (b *Batch) add(e *entry) {
	e.place(b.Position, len(b.Events))
	b.Events = append(b.Events, Event{Index: e.record.Index, Change: &e.change, batch: b, record: &e.record})
	b.size.Add(e.size())
}

// after reports whether the record is of a later change than another one.
func (r *Record) after(o *Record) bool {
	if r.Position.Seq != o.Position.Seq {
		return r.Position.Seq > o.Position.Seq
	}
	return r.Index > o.Index
}

// Snapshot is exactly the fold of all batches up to its position. It is shared
// and never modified.
type Snapshot struct {
	Position Position
	// Records has one record per instance, sorted by id.
	Records []*Record
}
