package ec2

import (
	"context"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/expiring"
	"github.com/instanced/instanced/internal/instance"
)

// managedTTL is how long an instance counts as managed after EC2 described it as such.
const managedTTL = time.Minute

// managedCache has the instances that were recently described as managed.
type managedCache = expiring.Cache[instance.ID, struct{}]

// unmanaged returns the ids of instances that callers must not see. EC2 is asked about the ones
// that it has not recently described as managed. Without a filter all instances are managed, and
// EC2 itself rejects what does not exist.
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
	// Descriptions that cannot be decoded have been cached as managed.
	return slices.DeleteFunc(ask, func(id instance.ID) bool { return found[id].Instance != nil || b.managed.Has(id) }), nil
}
