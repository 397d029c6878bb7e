package journal

import (
	"bytes"
	"context"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal/codec"
)

// maxHistoryBytes is how much of the log one page of history looks at.
const maxHistoryBytes = 32 << 20

// HistoryPage is a page of events of some instances, oldest first.
type HistoryPage struct {
	Entries []HistoryEntry
	// Next is where the next page goes on.
	Next Position
	// Done is true when Next is the head of the log. A page that is not the last may
	// be empty, as each looks at 32 MiB of the log at most.
	Done bool
}

// HistoryEntry is one event of a page.
type HistoryEntry struct {
	Position   Position
	Index      uint32
	RecordedAt time.Time
	Change     *instance.Change
}

// History returns the events of some instances, or of all when there are no ids,
// after a position. A page ends with the batch that brings it to limit, so that
// it can be a little longer. It fails as [Reader.Next] does.
func (j *Journal) History(ctx context.Context, caller string, ids []instance.ID, after Position, limit int) (HistoryPage, error) {
	page := HistoryPage{Next: after}
	p := pager{store: j.store}
	of := make(map[instance.ID]bool, len(ids))
	for _, id := range ids {
		of[id] = true
	}
	for looked := 0; looked < maxHistoryBytes && len(page.Entries) < limit; {
		head := j.Head()
		if err := j.view.check(j.view.logID(), page.Next); err != nil {
			return HistoryPage{}, err
		}
		if page.Next == head {
			page.Done = true
			break
		}
		batches, err := j.readPage(ctx, caller, &p, page.Next)
		if err != nil {
			return HistoryPage{}, err
		}
		for i := range batches {
			if batches[i].seq > head.Seq || len(page.Entries) >= limit {
				break
			}
			size, err := j.take(&page, batches[i], of)
			if err != nil && page.Next != after {
				return page, nil // what comes before the damage; the next page tells
			}
			if err != nil {
				return HistoryPage{}, j.errDamagedHistory(batches[i].seq, err)
			}
			looked += size
		}
	}
	return page, nil
}

// take adds to a page the events of one batch that are of the instances, and returns how
// much it has looked at.
func (j *Journal) take(p *HistoryPage, s rawBatch, of map[instance.ID]bool) (size int, err error) {
	message, err := j.store.unseal(s.kv)
	if err != nil {
		return 0, err
	}
	h, changes, err := codec.Decompress(message)
	if err != nil {
		return 0, damagedValue(s.kv.Key, err)
	}
	if !mentions(changes, of) {
		p.Next = Position{Epoch: h.Epoch, Seq: s.seq}
		return len(changes), nil
	}
	b, err := decodeChanges(s.seq, h, changes)
	if err != nil {
		return 0, damagedValue(s.kv.Key, err)
	}
	for i := range b.Events {
		e := &b.Events[i]
		if len(of) == 0 || of[e.Change.ID()] {
			p.Entries = append(p.Entries, HistoryEntry{b.Position, e.Index, b.RecordedAt, e.Change})
		}
	}
	p.Next = b.Position
	return len(changes), nil
}

// maxSearched is for how many ids it is faster to search encoded changes than to decode them.
const maxSearched = 8

// mentions reports whether one of the ids may occur in encoded changes: ids are written as
// they are, and most batches have none of a few.
func mentions(changes []byte, of map[instance.ID]bool) bool {
	if len(of) == 0 || len(of) > maxSearched {
		return true
	}
	for id := range of {
		if bytes.Contains(changes, []byte(id)) {
			return true
		}
	}
	return false
}
