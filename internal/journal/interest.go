package journal

import (
	"sync"

	"github.com/instanced/instanced/internal/instance"
)

// interests wakes those who wait for changes of some instances, and nobody else: with
// thousands of them, each batch would wake all.
type interests struct {
	mu sync.Mutex
	of map[instance.ID]map[*interest]struct{}
}

// interest is that of one reader. The interests' lock guards it.
type interest struct {
	ids []instance.ID
	// parked is whether the reader waits, at the end of the log as it was then.
	parked bool
	// woken is closed, once, when the reader that waits need not any more: touched is the
	// first batch since that has a change of one of the instances, nil when everything
	// has to be looked at anew.
	woken   chan struct{}
	touched *Batch
}

func (s *interests) add(i *interest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = make(map[instance.ID]map[*interest]struct{})
	}
	for _, id := range i.ids {
		if s.of[id] == nil {
			s.of[id] = make(map[*interest]struct{})
		}
		s.of[id][i] = struct{}{}
	}
}

func (s *interests) remove(i *interest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range i.ids {
		if delete(s.of[id], i); len(s.of[id]) == 0 {
			delete(s.of, id)
		}
	}
}

// park lets a reader wait, and returns what is closed when it need not any more. The
// caller keeps others from publishing meanwhile.
func (s *interests) park(i *interest) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	i.parked, i.touched, i.woken = true, nil, make(chan struct{})
	return i.woken
}

// leave ends the waiting of a reader. It returns the batch that it was woken for, and
// whether it still waited, so that nothing of interest to it has been published.
func (s *interests) leave(i *interest) (touched *Batch, waited bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	touched, waited = i.touched, i.parked
	i.parked, i.touched = false, nil
	return touched, waited
}

// touch wakes those who wait for changes of the instances in a batch.
func (s *interests) touch(b *Batch) {
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
func (s *interests) wakeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, of := range s.of {
		for i := range of {
			i.wakeLocked(nil)
		}
	}
}

func (i *interest) wakeLocked(b *Batch) {
	if i.parked {
		i.parked, i.touched = false, b
		close(i.woken)
	}
}
