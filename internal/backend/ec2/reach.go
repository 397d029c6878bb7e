package ec2

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

const (
	// lossSure is for how long calls must not have arrived before EC2 counts as out of reach:
	// one that does not says little.
	lossSure = 2 * time.Second
	// lossFresh is how long EC2 stays known to be out of reach after what was let through last
	// has taken all the time that a call may. Where calls hang, what is known must not be
	// forgotten between the failures of two comparisons, which are 35 seconds apart then.
	lossFresh = 20 * time.Second
	// probing is how often a command or a question about instances tries while EC2 is out of
	// reach, unless something else has. The comparison of everything always does.
	probing = 5 * time.Second
)

// reach is what is known of the way to EC2. While it is known to lead nowhere, calls are
// refused at once, in place of waiting for connections that do not come about. It is safe
// for concurrent use.
type reach struct {
	// lost is called while EC2 is out of reach, whenever a call did not arrive.
	lost func()
	// fresh is how long EC2 stays known to be out of reach after it was tried last.
	fresh time.Duration

	mu    sync.Mutex
	heard time.Time // when EC2 last answered
	since time.Time // when it was first noticed that a call did not arrive; zero after an answer
	what  string    // what did not answer
	tried time.Time // when it was noticed last, or something was let through
}

// note takes note of how a call ended that began at a time; f is nil if it went well.
// A call whose caller was in a hurry says nothing.
func (r *reach) note(ctx context.Context, began time.Time, f *failure) {
	now := time.Now()
	r.mu.Lock()
	switch {
	case f == nil || f.answered:
		r.heard, r.since = now, time.Time{}
	case f.unreached && ctx.Err() == nil && !began.Before(r.heard):
		if r.since.IsZero() || now.Sub(r.tried) >= r.fresh {
			r.since = now
		}
		r.tried, r.what = now, "EC2"
		if _, none := errors.AsType[*credentialsError](f.err.Cause); none {
			r.what = "the source of this service's own credentials"
		}
	}
	away := r.away(now) != nil
	r.mu.Unlock()
	if away && f.unreached {
		r.lost()
	}
}

// admit returns why nothing is worth a call. Once in a while something is all the same.
func (r *reach) admit() *instance.Error {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.away(now)
	if err != nil && now.Sub(r.tried) >= probing {
		r.tried = now
		return nil
	}
	return err
}

// known returns an error while EC2 is out of reach.
func (r *reach) known() *instance.Error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.away(time.Now())
}

// away is known for those who hold the lock. To return at different times spreads those
// who are refused together.
func (r *reach) away(now time.Time) *instance.Error {
	if r.since.IsZero() || now.Sub(r.since) < lossSure || now.Sub(r.tried) >= r.fresh {
		return nil
	}
	wait := max(retryUnavailable, probing-now.Sub(r.tried))
	return &instance.Error{
		Kind:       instance.KindUnavailable,
		Reason:     instance.ReasonBackendUnavailable,
		Message:    fmt.Sprintf("%s cannot be reached since %s; nothing was changed by this call", r.what, r.since.UTC().Format(time.DateTime+" GMT")),
		RetryAfter: wait + rand.N(wait), //nolint:gosec // to spread load takes no secret
	}
}

// turnAway refuses all who wait for a call.
func (b *Backend) turnAway() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, d := range b.desks {
		for _, l := range d.lanes {
			for l.live > 0 {
				away := b.client.reach.known()
				if away == nil {
					// An answer has come meanwhile.
					return
				}
				c := l.waiting[l.pos]
				units := c.units(c.waiting)
				d.leave(c)
				for _, u := range units {
					u.settle(nil, u.ids, away)
				}
			}
		}
	}
}
