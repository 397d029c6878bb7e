// Package expiring has the cache for what counts for a while only: ids that the backend did not
// know, instances that are managed, messages that were handled, earlier states of instances. It is
// a package of its own because the observer and a backend use it, and neither may import the other.
package expiring

import (
	"container/list"
	"sync"
	"time"
)

// Cache holds values by key, each for a limited time, and a limited number of them: the
// oldest go first. A key may have several values. All methods are safe for concurrent use.
type Cache[K comparable, V any] struct {
	ttl    time.Duration
	maxLen int

	mu    sync.Mutex
	byKey map[K][]*list.Element // the oldest first
	queue list.List             // of *entry[K, V], the oldest first
}

type entry[K comparable, V any] struct {
	key     K
	value   V
	expires time.Time
}

// New returns an empty cache. Values are kept for ttl, and for any length of time if it is 0.
// There are at most maxLen of them, without a limit if it is 0.
func New[K comparable, V any](ttl time.Duration, maxLen int) *Cache[K, V] {
	return &Cache[K, V]{ttl: ttl, maxLen: maxLen, byKey: make(map[K][]*list.Element)}
}

// Set keeps a value as the only one of its key.
func (c *Cache[K, V]) Set(key K, value V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if elements := c.byKey[key]; len(elements) == 1 { // renewed in place, without garbage
		*c.at(elements[0]) = entry[K, V]{key, value, time.Now().Add(c.ttl)}
		c.queue.MoveToBack(elements[0])
	} else {
		c.deleteLocked(key)
		c.addLocked(key, value)
	}
	c.trimLocked()
}

// Add keeps another value of a key.
func (c *Cache[K, V]) Add(key K, value V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.addLocked(key, value)
	c.trimLocked()
}

// Has reports whether a key has a value.
func (c *Cache[K, V]) Has(key K) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trimLocked()
	return len(c.byKey[key]) > 0
}

// Get returns the last value of a key that was kept.
func (c *Cache[K, V]) Get(key K) (value V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trimLocked()
	elements := c.byKey[key]
	if len(elements) == 0 {
		return value, false
	}
	return c.at(elements[len(elements)-1]).value, true
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

// Len returns how many values are kept.
func (c *Cache[K, V]) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trimLocked()
	return c.queue.Len()
}

func (c *Cache[K, V]) at(e *list.Element) *entry[K, V] { return e.Value.(*entry[K, V]) }

func (c *Cache[K, V]) addLocked(key K, value V) {
	c.byKey[key] = append(c.byKey[key], c.queue.PushBack(&entry[K, V]{key, value, time.Now().Add(c.ttl)}))
}

func (c *Cache[K, V]) deleteLocked(key K) {
	for _, element := range c.byKey[key] {
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
		tooMuch := c.maxLen > 0 && c.queue.Len() > c.maxLen
		if !tooOld && !tooMuch {
			return
		}
		c.queue.Remove(first)
		if elements := c.byKey[e.key]; len(elements) > 1 {
			elements[0] = nil
			c.byKey[e.key] = elements[1:]
		} else {
			delete(c.byKey, e.key)
		}
	}
}
