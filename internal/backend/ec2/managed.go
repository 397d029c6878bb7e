package ec2

import (
	"context"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/expiring"
	"github.com/instanced/instanced/internal/instance"
)

// managedTTL is how long an instance counts as managed after EC2 described it so.
const managedTTL = time.Minute

// managedCache has the instances that were recently described as managed.
type managedCache = expiring.Cache[instance.ID, struct{}]

// unmanaged returns those of the ids that do not exist for callers: EC2 is asked about
// the ones that it has not lately described as managed. Without a filter there are none,
// and what does not exist at all is left for EC2 to say.
func (b *Backend) unmanaged(ctx context.Context, ids []instance.ID) ([]instance.ID, error) {
	if len(b.cfg.Manage) == 0 {
		return nil, nil
	}
	ask := slices.DeleteFunc(slices.Clone(ids), b.managed.Has)
	if len(ask) == 0 {
		return nil, nil
	}
	found, err := b.describeAll(ctx, ask)
	if err != nil {
		return nil, err
	}
	// What cannot be read is known all the same.
	return slices.DeleteFunc(ask, func(id instance.ID) bool { return found[id].Instance != nil || b.managed.Has(id) }), nil
}
