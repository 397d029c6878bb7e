package observer

import (
	"fmt"
	"maps"
	"sync"

	"github.com/instanced/instanced/internal/instance"
)

// unreadable holds the instances that the backend describes in a way that cannot be
// understood, and what is wrong. They keep their last state, and each is named once in the
// log, however often it is described.
type unreadable struct {
	mu        sync.Mutex
	instances map[instance.ID]error
}

// update takes over what a page says, and returns the instances that were readable before,
// and those that are readable again.
func (u *unreadable) update(page instance.DescribePage) (bad map[instance.ID]error, again []instance.ID) {
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

// remove drops an instance that does not exist.
func (u *unreadable) remove(id instance.ID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.instances, id)
}

// keepOnly drops all instances but those that exist.
func (u *unreadable) keepOnly(existing map[instance.ID]struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	maps.DeleteFunc(u.instances, func(id instance.ID, _ error) bool { _, ok := existing[id]; return !ok })
}

// logUnreadable names the instances of a page that cannot be understood any more, or can be
// again.
func (o *Observer) logUnreadable(page instance.DescribePage) {
	bad, again := o.unreadable.update(page)
	for id, problem := range bad {
		o.log.Warn("an instance is described in a way that cannot be understood; it keeps its last state", "instance_id", string(id), "error", problem)
	}
	for _, id := range again {
		o.log.Info("an instance is described in a way that can be understood again", "instance_id", string(id))
	}
}

// Unreadable returns an error for an instance that the journal does not know although it
// exists: its description cannot be understood. It returns nil for any other id.
func (o *Observer) Unreadable(id instance.ID) error {
	o.unreadable.mu.Lock()
	problem := o.unreadable.instances[id]
	o.unreadable.mu.Unlock()
	if problem == nil {
		return nil
	}
	return &instance.Error{
		Kind:        instance.KindUnavailable,
		Reason:      instance.ReasonInstanceUnreadable,
		Message:     fmt.Sprintf("%s is described in a way that cannot be understood, and was not known before: %v", id, problem),
		InstanceIDs: []instance.ID{id},
		RetryAfter:  retryInterval,
	}
}
