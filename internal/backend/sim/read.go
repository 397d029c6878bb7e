package sim

import (
	"context"

	"github.com/instanced/instanced/internal/instance"
)

// readBucket names the request bucket of a read by callers.
type readBucket struct {
	action     instance.Verb
	unfiltered bool
}

// Read admits a read by callers that is answered from what was recorded: faults that
// name its action strike it, and it takes from a request bucket that callers have beside
// that of the observer, so that neither empties the other's. What it returns is how an
// instance looks to this read while Describe may lag, nil where it is not to be seen yet;
// it is nil itself when all are seen as they are recorded.
func (b *Backend) Read(ctx context.Context, read instance.Read) (func(*instance.Instance) *instance.Instance, error) {
	if err := b.stall(ctx, read.Action, read.IDs); err != nil {
		return nil, err
	}
	now, closed := b.lock()
	if closed != nil {
		return nil, closed
	}
	defer b.unlock(now)
	o := op{verb: read.Action, number: b.nextCallLocked(), now: now}
	byID := len(read.IDs) > 0 && !b.config.Options.FilteredByID
	bucket := b.buckets.read(read.Action, !read.Filtered && (byID || len(read.IDs) == 0))
	if err := b.admit(o, read.IDs, b.machinesLocked(read.IDs), bucket); err != nil {
		return nil, err
	}
	if b.lag == 0 {
		return nil, nil
	}
	return func(recorded *instance.Instance) *instance.Instance { return b.seen(o, recorded) }, nil
}

// seen returns how a recorded instance looks to a read.
func (b *Backend) seen(o op, recorded *instance.Instance) *instance.Instance {
	now, closed := b.lock()
	if closed != nil {
		return recorded
	}
	defer b.unlock(now)
	m := b.machines[recorded.ID]
	if m == nil {
		return recorded
	}
	if shown := b.view(o, recorded.ID); shown != m.inst {
		return shown
	}
	return recorded
}

// read returns the request bucket of a read by callers. Only two actions have one of
// their own for what is neither filtered nor paginated.
func (b *buckets) read(action instance.Verb, unfiltered bool) *bucket {
	if action != verbDescribe && action != verbDescribeStatus {
		unfiltered = false
	}
	name := readBucket{action, unfiltered}
	if b.reads[name] == nil {
		b.reads[name] = newBucket(100, 20)
		if unfiltered {
			b.reads[name] = newBucket(50, 10)
		}
	}
	return b.reads[name]
}
