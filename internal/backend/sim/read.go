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

// Read admits a read by callers that is answered from the journal. Faults for its action
// apply to it, and it takes a token from a request bucket of the callers, which is separate
// from the observer's. The returned function maps a recorded instance to what the read sees
// while Describe lags, which is nil if the instance is not visible yet; the function is nil
// if all instances look as recorded.
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

// seen returns a recorded instance as the read sees it.
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

// read returns the request bucket of a read by callers. Only two actions have a separate
// one for requests that are neither filtered nor paginated.
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
