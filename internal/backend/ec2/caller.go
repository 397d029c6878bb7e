package ec2

import (
	"cmp"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// caller is one call of Execute on its way. The lock of the backend guards it.
type caller struct {
	cmd      instance.Command
	seq      uint64    // in the order of arrival
	deadline time.Time // zero for none
	tenant   *tenant
	queue    *queue
	// waiting are the ids that have not gone out: all or none of a whole call.
	waiting []instance.ID
	// gone is true for one that has left: nobody listens.
	gone bool

	// open is how many units are without an outcome.
	open     int
	changes  map[instance.ID]instance.StateChange
	failures map[instance.ID]*instance.Error
	refusal  *instance.Error // of a whole call
	done     chan struct{}   // closed when every unit has an outcome
}

func newCaller(cmd instance.Command, deadline time.Time) *caller {
	c := &caller{
		cmd:      cmd,
		deadline: deadline,
		waiting:  slices.Clone(cmd.IDs),
		open:     1,
		changes:  make(map[instance.ID]instance.StateChange, len(cmd.IDs)),
		done:     make(chan struct{}),
	}
	if c.divisible() {
		c.open = len(cmd.IDs)
		c.failures = make(map[instance.ID]*instance.Error)
	}
	return c
}

// divisible reports whether the ids of the call need not travel together.
func (c *caller) divisible() bool { return c.cmd.PerInstance && !c.cmd.DryRun }

// kind is what calls must share with this one to travel with it.
func (c *caller) kind() kind {
	k := kind{
		verb:           c.cmd.Verb,
		additionalInfo: c.cmd.AdditionalInfo,
		hibernate:      c.cmd.Hibernate,
		force:          c.cmd.Force,
		skipOSShutdown: c.cmd.SkipOSShutdown,
		term:           c.cmd.Term,
	}
	if c.cmd.DryRun {
		k.dryRun = c.seq
	}
	return k
}

// settle gives some ids of the call their outcome.
func (c *caller) settle(changes []instance.StateChange, ids []instance.ID, refusal *instance.Error) {
	for _, change := range changes {
		c.changes[change.ID] = change
	}
	switch {
	case !c.divisible():
		c.refusal = refusal
		c.open = 0
	default:
		for _, id := range ids {
			if refusal != nil {
				c.failures[id] = refusal
			}
		}
		c.open -= len(ids)
	}
	if c.open == 0 {
		close(c.done)
	}
}

// result returns the outcome once done is closed. A call about which nothing but the
// state of the service can be said ends in an error as a whole.
func (c *caller) result() (instance.Result, error) {
	var result instance.Result
	var failed *instance.Error
	service := true
	for _, id := range c.cmd.IDs {
		if change, ok := c.changes[id]; ok {
			result.Changes = append(result.Changes, change)
		}
		if failure := c.failures[id]; failure != nil {
			result.Failures = append(result.Failures, instance.Failure{ID: id, Err: failure})
			failed, service = cmp.Or(failed, failure), service && wide(failure)
		}
	}
	switch {
	case c.refusal != nil:
		return result, c.refusal
	case failed != nil && service && len(result.Changes) == 0:
		return instance.Result{}, failed
	}
	return result, nil
}

// unit is what of a call cannot be divided: a whole call, or one id of another.
type unit struct {
	*caller
	ids []instance.ID
}

// units returns what of a call is to go out with these ids.
func (c *caller) units(ids []instance.ID) []unit {
	if !c.divisible() {
		return []unit{{caller: c, ids: ids}}
	}
	list := make([]unit, len(ids))
	for i := range ids {
		list[i] = unit{caller: c, ids: ids[i : i+1 : i+1]}
	}
	return list
}

// distinct returns the ids of units, each once, in their order.
func distinct(group []unit) []instance.ID {
	var ids []instance.ID
	seen := make(map[instance.ID]struct{})
	for _, u := range group {
		for _, id := range u.ids {
			if _, again := seen[id]; !again {
				seen[id] = struct{}{}
				ids = append(ids, id)
			}
		}
	}
	return ids
}
