// Package expiring has the one cache of entries that count for a while only. What must not
// be asked for again, answered differently or believed again a moment later is kept in it:
// ids that the backend did not know, instances that are managed, responses that an SDK may
// ask for twice, messages that were handled, earlier states of instances. It is a package
// of its own because the service layer, a backend and a server use it, and none of them may
// import another.
package expiring

import (
	"container/list"
	"sync"
	"time"
)

// Cache holds values by key, each for a limited time and within a limited total size: the
// oldest go first. A key may have several values. All methods are safe for concurrent use.
type Cache[K comparable, V any] struct {
	ttl     time.Duration
	maxSize int

	mu    sync.Mutex
	byKey map[K][]*list.Element // the oldest first
	queue list.List             // of *entry[K, V], the oldest first
	size  int
}

type entry[K comparable, V any] struct {
	key     K
	value   V
	expires time.Time
	size    int
}

// New returns an empty cache. Entries are kept for ttl, and for any length of time if it is
// 0; their sizes add up to at most maxSize, without a limit if it is 0.
func New[K comparable, V any](ttl time.Duration, maxSize int) *Cache[K, V] {
	return &Cache[K, V]{ttl: ttl, maxSize: maxSize, byKey: make(map[K][]*list.Element)}
}

// Set keeps a value of size 1 as the only one of its key.
func (c *Cache[K, V]) Set(key K, value V) { c.SetSized(key, value, 1) }

// SetSized keeps a value as the only one of its key.
func (c *Cache[K, V]) SetSized(key K, value V, size int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if elements := c.byKey[key]; len(elements) == 1 { // renewed in place, without garbage
		e := c.at(elements[0])
		c.size += size - e.size
		*e = entry[K, V]{key, value, time.Now().Add(c.ttl), size}
		c.queue.MoveToBack(elements[0])
	} else {
		c.deleteLocked(key)
		c.addLocked(key, value, size)
	}
	c.trimLocked()
}

// Add keeps another value of a key, of size 1.
func (c *Cache[K, V]) Add(key K, value V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.addLocked(key, value, 1)
	c.trimLocked()
}

// Get returns the latest value of a key.
func (c *Cache[K, V]) Get(key K) (value V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trimLocked()
	if elements := c.byKey[key]; len(elements) > 0 {
		return c.at(elements[len(elements)-1]).value, true
	}
	return value, false
}

// Has reports whether a key has a value.
func (c *Cache[K, V]) Has(key K) bool {
	_, ok := c.Get(key)
	return ok
}

// Any reports whether a key has a value with a property. matches must not call the cache.
func (c *Cache[K, V]) Any(key K, matches func(V) bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trimLocked()
	for _, element := range c.byKey[key] {
		if matches(c.at(element).value) {
			return true
		}
	}
	return false
}

// Delete drops all values of a key.
func (c *Cache[K, V]) Delete(key K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deleteLocked(key)
}

// Size returns the total size of what is kept.
func (c *Cache[K, V]) Size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trimLocked()
	return c.size
}

func (c *Cache[K, V]) at(e *list.Element) *entry[K, V] { return e.Value.(*entry[K, V]) }

func (c *Cache[K, V]) addLocked(key K, value V, size int) {
	c.byKey[key] = append(c.byKey[key], c.queue.PushBack(&entry[K, V]{key, value, time.Now().Add(c.ttl), size}))
	c.size += size
}

func (c *Cache[K, V]) deleteLocked(key K) {
	for _, element := range c.byKey[key] {
		c.size -= c.at(element).size
		c.queue.Remove(element)
	}
	delete(c.byKey, key)
}

// trimLocked drops what has expired or is too much. Of a key the first in the queue is also
// the first of its values.
func (c *Cache[K, V]) trimLocked() {
	for first := c.queue.Front(); first != nil; first = c.queue.Front() {
		e := c.at(first)
		tooOld := c.ttl > 0 && time.Now().After(e.expires)
		tooMuch := c.maxSize > 0 && c.size > c.maxSize
		if !tooOld && !tooMuch {
			return
		}
		c.queue.Remove(first)
		c.size -= e.size
		if elements := c.byKey[e.key]; len(elements) > 1 {
			elements[0] = nil
			c.byKey[e.key] = elements[1:]
		} else {
			delete(c.byKey, e.key)
		}
	}
}
