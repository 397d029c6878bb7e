package journal

import (
	"math/bits"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal/codec"
)

// The memory of a value is estimated from its size and the sizes of its strings and
// maps. What an image shares with the one before it, which share and [Tx.Append] see to, is
// counted once. A test compares the estimates with the heap.
var (
	entryBytes      = sizeOf[entry]() + sizeOf[Event]()
	batchBytes      = sizeOf[Batch]() + 8 // and its place in the ring
	imageBytes      = sizeOf[instance.Instance]()
	reasonBytes     = sizeOf[instance.StateReason]()
	attributesBytes = sizeOf[instance.SimulatorAttributes]()
	launchedBytes   = sizeOf[instance.Launched]()
)

const (
	// recordOverhead is what an instance takes beside its record: places in the maps of
	// the view, and in the snapshot.
	recordOverhead = 160
	// indexBytes is what the embedded etcd holds in memory for each key, whatever its value:
	// the key, and its revisions since etcd was last compacted.
	indexBytes = 180
	// tokenBytes is what this process holds of a client token, with a key of usual length.
	tokenBytes = 240
)

// Memory is about how much memory the journal takes in this process, in bytes, by what it is
// for. Etcd's cache of its database is not part of it: the system gives that away when it
// needs the memory.
type Memory struct {
	// Ring is the end of the log, with what it is encoded to for readers: at most MaxRing,
	// which is [Config.RingBytes], or one batch.
	Ring, MaxRing int64
	// Instances is the last change of each instance, with the images before and after.
	Instances int64
	// ClientTokens is which client tokens there are. Only the owner knows; elsewhere it is 0.
	ClientTokens int64
	// Index is what an embedded etcd holds of its keys: mostly one for each batch of history
	// and for each client token.
	Index int64
}

// Memory returns about how much memory the journal takes.
func (j *Journal) Memory() Memory {
	stats := j.Stats()
	m := Memory{Ring: stats.RingBytes, MaxRing: j.config.RingBytes, Instances: j.view.recordsSize(), ClientTokens: int64(stats.ClientTokens) * tokenBytes}
	if j.store.embedded {
		m.Index = (int64(stats.Batches) + int64(stats.ClientTokens) + int64(stats.Instances)) * indexBytes
	}
	return m
}

// sizeOf returns what a value of a type takes, rounded as the allocator does.
func sizeOf[T any]() int64 {
	size := int64(reflect.TypeFor[T]().Size())
	return size + size/16
}

// textSize returns what strings take.
func textSize[S ~string](texts ...S) (n int64) {
	for _, text := range texts {
		n += (int64(len(text)) + 15) &^ 15
	}
	return n
}

// tagsSize returns what a map of tags takes.
func tagsSize(tags map[string]string) int64 {
	if len(tags) == 0 {
		return 0
	}
	slots := int64(8)
	if len(tags) > 8 {
		slots = 1 << bits.Len(uint(len(tags)*8/7))
	}
	n := 48 + slots*33
	for key, value := range tags {
		n += textSize(key, value)
	}
	return n
}

// imageSize returns what an image takes beside another one that it shares with.
func imageSize(i, other *instance.Instance) int64 {
	if i == nil || i == other {
		return 0
	}
	if other == nil {
		other = &instance.Instance{}
	}
	n := imageBytes
	if i.ID != other.ID {
		n += textSize(i.ID)
	}
	var room [2 * imageTexts]*string
	others := codec.Texts(room[:0:imageTexts], other)
	for at, text := range codec.Texts(room[imageTexts:imageTexts], i) {
		if *text != *others[at] {
			n += textSize(*text)
		}
	}
	if !sameMap(i.Tags, other.Tags) {
		n += tagsSize(i.Tags)
	}
	if i.StateReason != other.StateReason {
		n += reasonSize(i.StateReason)
	}
	if s := i.Simulator; s != nil && s != other.Simulator {
		n += attributesBytes + reasonSize(s.NextReason)
		if l := s.Launched; l != nil && (other.Simulator == nil || l != other.Simulator.Launched) {
			n += launchedBytes + textSize(l.ReservationID, l.ImageID, l.ClientToken, l.Digest)
		}
	}
	return n
}

// imageTexts is enough for the strings of an image, so that counting them allocates nothing.
const imageTexts = 16

func reasonSize(r *instance.StateReason) int64 {
	if r == nil {
		return 0
	}
	return reasonBytes + textSize(r.Code, r.Message)
}

// sameMap reports whether two maps are one.
func sameMap(a, b map[string]string) bool {
	return len(a) == len(b) && reflect.ValueOf(a).UnsafePointer() == reflect.ValueOf(b).UnsafePointer()
}

// share returns an image that has in common with the one before all that is equal in both.
// The images of the simulator share strings by themselves.
func share(after, before *instance.Instance) *instance.Instance {
	if after == nil || before == nil || after.Simulator != nil && sameMap(after.Tags, before.Tags) {
		return after
	}
	shared := *after
	codec.Patch(&shared, before, codec.Diff(after, before))
	return &shared
}

// size returns what a change takes in memory with its record and its event, beside the
// image before it.
func (e *entry) size() int64 {
	c := &e.change
	return entryBytes + imageSize(c.After, c.Before) + textSize(c.Cause.Principal, c.Cause.RequestID, c.Cause.ClientToken)
}

// shareWith lets a change that was read from the log share with what is known of its
// instance, as one that was recorded by this process does from the start: those are left
// alone, as others may be reading them. Its strings are parts of one, of the whole change,
// which would stay in memory with each that is left.
func (e *Event) shareWith(known *Record) {
	c := e.Change
	if known == nil || c.Before == known.Instance || !known.Instance.Equal(c.Before) {
		return
	}
	c.Before, c.After = known.Instance, share(c.After, known.Instance)
	for _, text := range [...]*string{&c.Cause.Principal, &c.Cause.RequestID, &c.Cause.ClientToken, (*string)(&c.Cause.Verb)} {
		*text = strings.Clone(*text)
	}
	if c.After != nil {
		before := codec.Texts(nil, c.Before)
		for i, text := range codec.Texts(nil, c.After) {
			if *text != *before[i] {
				*text = strings.Clone(*text)
			}
		}
		if r := c.After.StateReason; r != nil && r != c.Before.StateReason {
			c.After.StateReason = &instance.StateReason{Code: strings.Clone(r.Code), Message: strings.Clone(r.Message)}
		}
	}
	e.record.Previous, e.record.Instance, e.record.Cause = c.Before, c.After, c.Cause
}

// recordsSize estimates what the records take, from some of them: the last change of each
// instance with the images before and after.
func (v *view) recordsSize() int64 {
	const sample = 256
	v.mu.RLock()
	defer v.mu.RUnlock()
	var looked, size int64
	for _, r := range v.records {
		size += entryBytes + recordOverhead + imageSize(r.Instance, nil) + imageSize(r.Previous, r.Instance)
		if looked++; looked == sample {
			break
		}
	}
	if looked == 0 {
		return 0
	}
	return size / looked * int64(len(v.records))
}

// ring holds the last batches in memory, without gaps. They take limit bytes at most, or
// one batch: what they are encoded to for readers is counted when it is made.
type ring struct {
	limit int64
	// guard guards batches. It is that of the view that has the ring.
	guard   *sync.RWMutex
	batches []*Batch
	used    atomic.Int64
}

// addLocked appends a batch.
func (r *ring) addLocked(b *Batch) {
	b.ring = r
	r.batches = append(r.batches, b)
	r.used.Add(b.size.Load())
	r.trimLocked()
}

// trimLocked drops the oldest batches until the rest fits.
func (r *ring) trimLocked() {
	for r.used.Load() > r.limit && len(r.batches) > 1 {
		b := r.batches[0]
		r.batches[0] = nil
		r.batches = r.batches[1:]
		r.used.Add(-b.size.Swap(dropped))
	}
}

// dropped is the size of a batch that is no longer in the ring: it stays below zero.
const dropped = -1

// grow counts what was made of a batch, as long as it is in the ring.
func (b *Batch) grow(n int64) {
	if b.ring == nil {
		return
	}
	for {
		size := b.size.Load()
		if size == dropped {
			return
		}
		if b.size.CompareAndSwap(size, size+n) {
			break
		}
	}
	if b.ring.used.Add(n) > b.ring.limit {
		b.ring.guard.Lock()
		defer b.ring.guard.Unlock()
		b.ring.trimLocked()
	}
}
