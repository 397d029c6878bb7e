package journal

import (
	"sync"

	"github.com/instanced/instanced/internal/instance"
)

// waiters wakes the readers that wait for changes of certain instances, and no others: with
// thousands of them, each batch would wake all.
type waiters struct {
	mu sync.Mutex
	of map[instance.ID]map[*waiter]struct{}
}

// waiter is one reader. The lock of waiters guards it.
type waiter struct {
	ids []instance.ID
	// waiting is whether the reader waits, at the end of the log as it was then.
	waiting bool
	// woken is closed, once, when the reader that waits need not any more: batch is the
	// first batch since that has a change of one of the instances, nil when everything
	// has to be looked at anew.
	woken chan struct{}
	batch *Batch
}

func (s *waiters) add(i *waiter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = make(map[instance.ID]map[*waiter]struct{})
	}
	for _, id := range i.ids {
		if s.of[id] == nil {
			s.of[id] = make(map[*waiter]struct{})
		}
		s.of[id][i] = struct{}{}
	}
}

func (s *waiters) remove(i *waiter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range i.ids {
		if delete(s.of[id], i); len(s.of[id]) == 0 {
			delete(s.of, id)
		}
	}
}

// wait lets a reader wait, and returns what is closed when it need not any more. The
// caller keeps others from publishing meanwhile.
func (s *waiters) wait(i *waiter) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	i.waiting, i.batch, i.woken = true, nil, make(chan struct{})
	return i.woken
}

// stopWaiting ends the waiting of a reader. It returns the batch that it was woken for, and
// whether it still waited, so that nothing of interest to it has been published.
func (s *waiters) stopWaiting(i *waiter) (batch *Batch, waited bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	batch, waited = i.batch, i.waiting
	i.waiting, i.batch = false, nil
	return batch, waited
}

// wake wakes those who wait for changes of the instances in a batch.
func (s *waiters) wake(b *Batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.of) == 0 {
		return
	}
	for n := range b.Events {
		for i := range s.of[b.Events[n].Change.ID()] {
			i.wakeLocked(b)
		}
	}
}

// wakeAll has everybody look at everything anew.
func (s *waiters) wakeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, of := range s.of {
		for i := range of {
			i.wakeLocked(nil)
		}
	}
}

func (i *waiter) wakeLocked(b *Batch) {
	if i.waiting {
		i.waiting, i.batch = false, b
		close(i.woken)
	}
}
