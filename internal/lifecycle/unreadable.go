package lifecycle

import (
	"fmt"
	"maps"
	"sync"

	"github.com/instanced/instanced/internal/instance"
)

// unreadable holds the instances that the backend describes in a way that cannot be
// understood, and what is wrong. They keep the state that they had, and each is named once
// in the log, however often it is seen.
type unreadable struct {
	mu        sync.Mutex
	instances map[instance.ID]error
}

// of returns what is wrong with the description of an instance; nil if nothing is.
func (u *unreadable) of(id instance.ID) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.instances[id]
}

// note takes note of a page. It returns those of its instances that were readable before,
// and those that are again.
func (u *unreadable) note(page instance.DescribePage) (bad map[instance.ID]error, again []instance.ID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for id, problem := range page.Unreadable {
		if u.instances[id] != nil {
			continue
		}
		if u.instances == nil {
			u.instances = make(map[instance.ID]error)
		}
		if bad == nil {
			bad = make(map[instance.ID]error)
		}
		u.instances[id], bad[id] = problem, problem
	}
	if len(u.instances) == 0 {
		return bad, nil
	}
	for _, i := range page.Instances {
		if u.instances[i.ID] != nil {
			delete(u.instances, i.ID)
			again = append(again, i.ID)
		}
	}
	return bad, again
}

// remove forgets an instance that does not exist.
func (u *unreadable) remove(id instance.ID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.instances, id)
}

// keep forgets all but those that are there.
func (u *unreadable) keep(there map[instance.ID]struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	maps.DeleteFunc(u.instances, func(id instance.ID, _ error) bool { _, ok := there[id]; return !ok })
}

// noteUnreadable names the instances of a page that cannot be understood any more.
func (s *Service) noteUnreadable(page instance.DescribePage) {
	bad, again := s.unreadable.note(page)
	for id, problem := range bad {
		s.log.Warn("an instance is described in a way that cannot be understood; it keeps its last state", "instance_id", string(id), "error", problem)
	}
	for _, id := range again {
		s.log.Info("an instance is described in a way that can be understood again", "instance_id", string(id))
	}
}

// errUnreadable is for those who ask for an instance of which nothing is known but that it
// is there.
func errUnreadable(id instance.ID, problem error) error {
	return &instance.Error{
		Kind:        instance.KindUnavailable,
		Reason:      instance.ReasonInstanceUnreadable,
		Message:     fmt.Sprintf("%s is described in a way that cannot be understood, and was not known before: %v", id, problem),
		InstanceIDs: []instance.ID{id},
		RetryAfter:  retryLook,
	}
}
