package ec2

import (
	"cmp"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// request is one call of Execute on its way. The lock of the backend guards it.
type request struct {
	cmd      instance.Command
	seq      uint64    // in the order of arrival
	deadline time.Time // zero for none
	tenant   *tenant
	queue    *queue
	// waiting are the ids that have not gone out: all or none of a whole call.
	waiting []instance.ID
	// gone is true for one that has left: nobody listens.
	gone bool

	// pending is how many units are without an outcome.
	pending  int
	changes  map[instance.ID]instance.StateChange
	failures map[instance.ID]*instance.Error
	err      *instance.Error // of a whole call
	done     chan struct{}   // closed when every unit has an outcome
}

func newCaller(cmd instance.Command, deadline time.Time) *request {
	c := &request{
		cmd:      cmd,
		deadline: deadline,
		waiting:  slices.Clone(cmd.IDs),
		pending:  1,
		changes:  make(map[instance.ID]instance.StateChange, len(cmd.IDs)),
		done:     make(chan struct{}),
	}
	if c.divisible() {
		c.pending = len(cmd.IDs)
		c.failures = make(map[instance.ID]*instance.Error)
	}
	return c
}

// divisible reports whether the ids of the call need not travel together.
func (c *request) divisible() bool { return c.cmd.PerInstance && !c.cmd.DryRun }

// key is what calls must share with this one to travel with it.
func (c *request) key() batchKey {
	k := batchKey{
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

// resolve gives some ids of the call their outcome.
func (c *request) resolve(changes []instance.StateChange, ids []instance.ID, refusal *instance.Error) {
	for _, change := range changes {
		c.changes[change.ID] = change
	}
	switch {
	case !c.divisible():
		c.err = refusal
		c.pending = 0
	default:
		for _, id := range ids {
			if refusal != nil {
				c.failures[id] = refusal
			}
		}
		c.pending -= len(ids)
	}
	if c.pending == 0 {
		close(c.done)
	}
}

// result returns the outcome once done is closed. A call about which nothing but the
// state of the service can be said ends in an error as a whole.
func (c *request) result() (instance.Result, error) {
	var result instance.Result
	var failed *instance.Error
	service := true
	for _, id := range c.cmd.IDs {
		if change, ok := c.changes[id]; ok {
			result.Changes = append(result.Changes, change)
		}
		if failure := c.failures[id]; failure != nil {
			result.Failures = append(result.Failures, instance.Failure{ID: id, Err: failure})
			failed, service = cmp.Or(failed, failure), service && isServiceWide(failure)
		}
	}
	switch {
	case c.err != nil:
		return result, c.err
	case failed != nil && service && len(result.Changes) == 0:
		return instance.Result{}, failed
	}
	return result, nil
}

// item is what of a call cannot be divided: a whole call, or one id of another.
type item struct {
	*request
	ids []instance.ID
}

// items returns what of a call is to go out with these ids.
func (c *request) items(ids []instance.ID) []item {
	if !c.divisible() {
		return []item{{request: c, ids: ids}}
	}
	list := make([]item, len(ids))
	for i := range ids {
		list[i] = item{request: c, ids: ids[i : i+1 : i+1]}
	}
	return list
}

// distinct returns the ids of units, each once, in their order.
func distinct(group []item) []instance.ID {
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
