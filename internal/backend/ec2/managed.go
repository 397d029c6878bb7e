package ec2

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// trusted is how long an instance counts as managed after EC2 described it so.
const trusted = time.Minute

// known remembers which instances were lately described as managed. It is safe for
// concurrent use.
type known struct {
	mu    sync.Mutex
	since map[instance.ID]time.Time
	swept time.Time
}

func (k *known) add(id instance.ID, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.since == nil {
		k.since = make(map[instance.ID]time.Time)
	}
	k.since[id] = now
	if now.Sub(k.swept) > trusted {
		k.swept = now
		for id, since := range k.since {
			if now.Sub(since) > trusted {
				delete(k.since, id)
			}
		}
	}
}

func (k *known) drop(id instance.ID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.since, id)
}

func (k *known) has(id instance.ID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	since, ok := k.since[id]
	return ok && time.Since(since) <= trusted
}

// strangers returns those of the ids that do not exist for callers: EC2 is asked about
// the ones that it has not lately described as managed. Without a filter there are none,
// and what does not exist at all is left for EC2 to say.
func (b *Backend) strangers(ctx context.Context, ids []instance.ID) ([]instance.ID, error) {
	if len(b.cfg.Manage) == 0 {
		return nil, nil
	}
	ask := slices.DeleteFunc(slices.Clone(ids), b.known.has)
	if len(ask) == 0 {
		return nil, nil
	}
	found, err := b.look(ctx, ask)
	if err != nil {
		return nil, err
	}
	// What cannot be read is known all the same.
	return slices.DeleteFunc(ask, func(id instance.ID) bool { return found[id].Instance != nil || b.known.has(id) }), nil
}
