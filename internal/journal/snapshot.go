package journal

import (
	"slices"
	"strings"

	"github.com/instanced/instanced/internal/instance"
)

// Snapshot returns the fold up to the head. Callers at one position share it.
func (j *Journal) Snapshot() Snapshot { return j.view.takeSnapshot() }

// Lookup returns what is known of some instances at the head, in the order of ids; those
// that are not known are left out. It costs no more than that, however many others there are.
func (j *Journal) Lookup(ids []instance.ID) Snapshot {
	v := j.view
	v.mu.RLock()
	defer v.mu.RUnlock()
	found := Snapshot{Position: v.head, Records: make([]*Record, 0, len(ids))}
	for _, id := range ids {
		if record, ok := v.records[id]; ok {
			found.Records = append(found.Records, record)
		}
	}
	return found
}

// takeSnapshot brings the last snapshot up to date. Under the lock that the writer
// needs it only takes what changed since.
func (v *view) takeSnapshot() Snapshot {
	v.snapshotMu.Lock()
	defer v.snapshotMu.Unlock()
	v.mu.Lock()
	head := v.head
	var recent map[instance.ID]*Record
	if len(v.recent) > 0 {
		recent, v.recent = v.recent, map[instance.ID]*Record{}
	}
	v.mu.Unlock()
	if recent != nil {
		v.snapshot = merge(v.snapshot, recent)
	}
	return Snapshot{Position: head, Records: v.snapshot}
}

// merge returns the records, sorted by id, with some replaced, added or, where
// they are nil, removed.
func merge(records []*Record, recent map[instance.ID]*Record) []*Record {
	ids := make([]instance.ID, 0, len(recent))
	for id := range recent {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	merged := make([]*Record, 0, len(records)+len(ids))
	for _, id := range ids {
		n, found := slices.BinarySearchFunc(records, id, func(r *Record, id instance.ID) int {
			return strings.Compare(string(r.Instance.ID), string(id))
		})
		merged = append(merged, records[:n]...)
		records = records[n:]
		if found {
			records = records[1:]
		}
		if record := recent[id]; record != nil {
			merged = append(merged, record)
		}
	}
	return append(merged, records...)
}
