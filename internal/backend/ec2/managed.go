package ec2

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// managedTTL is how long an instance counts as managed after EC2 described it so.
const managedTTL = time.Minute

// managedCache remembers which instances were lately described as managed. It is safe for
// concurrent use.
type managedCache struct {
	mu    sync.Mutex
	since map[instance.ID]time.Time
	swept time.Time
}

func (k *managedCache) add(id instance.ID, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.since == nil {
		k.since = make(map[instance.ID]time.Time)
	}
	k.since[id] = now
	if now.Sub(k.swept) > managedTTL {
		k.swept = now
		for id, since := range k.since {
			if now.Sub(since) > managedTTL {
				delete(k.since, id)
			}
		}
	}
}

func (k *managedCache) drop(id instance.ID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.since, id)
}

func (k *managedCache) has(id instance.ID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	since, ok := k.since[id]
	return ok && time.Since(since) <= managedTTL
}

// unmanaged returns those of the ids that do not exist for callers: EC2 is asked about
// the ones that it has not lately described as managed. Without a filter there are none,
// and what does not exist at all is left for EC2 to say.
func (b *Backend) unmanaged(ctx context.Context, ids []instance.ID) ([]instance.ID, error) {
	if len(b.cfg.Manage) == 0 {
		return nil, nil
	}
	ask := slices.DeleteFunc(slices.Clone(ids), b.managed.has)
	if len(ask) == 0 {
		return nil, nil
	}
	found, err := b.describeAll(ctx, ask)
	if err != nil {
		return nil, err
	}
	// What cannot be read is known all the same.
	return slices.DeleteFunc(ask, func(id instance.ID) bool { return found[id].Instance != nil || b.managed.has(id) }), nil
}
