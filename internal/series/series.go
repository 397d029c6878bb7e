// Package series keeps the number of a metric's series bounded, and finds each of them without
// an allocation or a lock.
package series

import (
	"maps"
	"sync"
	"sync/atomic"
)

// Other is the value of a label for everything that has no series of its own.
const Other = "_OTHER"

// CallBuckets returns the buckets of how long calls take at the endpoints, in seconds: from 1 ms,
// about what a start of one instance takes beyond EC2's own time, to 60 s, which is beyond the
// deadline of all calls but waits and watches. One bound is 1 s, the objective for a start.
func CallBuckets() []float64 {
	return []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
}

// Bound bounds the values of a label: the first few different ones keep their name, all later
// ones become [Other]. It is safe for concurrent use.
type Bound struct {
	limit int
	known Table[string, struct{}]
}

// NewBound returns a bound that keeps up to limit values.
func NewBound(limit int) *Bound { return &Bound{limit: limit} }

// Value returns the value of the label.
func (b *Bound) Value(value string) string {
	if _, ok := b.known.find(value); ok || b.known.tryAdd(value, struct{}{}, b.limit) {
		return value
	}
	return Other
}

// Table has the series of a metric by its labels, each of which is made when it is first asked
// for. Reading it takes no lock, adding copies it: it is for tables that are soon complete and
// that have a bounded number of keys. It is safe for concurrent use.
type Table[K comparable, S any] struct {
	create func(K) S
	mu     sync.Mutex // for adding
	made   atomic.Pointer[map[K]S]
}

// NewTable returns an empty table. The function makes a series; it may be called more than once
// for the same labels and must return the same series then.
func NewTable[K comparable, S any](create func(K) S) *Table[K, S] {
	return &Table[K, S]{create: create}
}

// Get returns the series with these labels.
func (t *Table[K, S]) Get(labels K) S {
	if found, ok := t.find(labels); ok {
		return found
	}
	made := t.create(labels)
	t.tryAdd(labels, made, -1)
	return made
}

func (t *Table[K, S]) find(key K) (S, bool) {
	if made := t.made.Load(); made != nil {
		found, ok := (*made)[key]
		return found, ok
	}
	var none S
	return none, false
}

// tryAdd adds a key unless the table has limit keys already; there is none if that is
// negative. It reports whether the table has the key.
func (t *Table[K, S]) tryAdd(key K, value S, limit int) bool {
	if made := t.made.Load(); made != nil && len(*made) == limit {
		return false // nothing is ever removed
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	next := make(map[K]S)
	if made := t.made.Load(); made != nil {
		if _, ok := (*made)[key]; ok {
			return true
		}
		maps.Copy(next, *made)
	}
	if len(next) == limit {
		return false
	}
	next[key] = value
	t.made.Store(&next)
	return true
}
