package journal

import (
	"context"
	"errors"
	"math"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

const (
	// maxRenewInterval is the most that passes between two renewals of a lease; short
	// leases are renewed four times in their time to live.
	maxRenewInterval = time.Second
	// renewTimeout is how long one attempt to renew a lease may take.
	renewTimeout = 500 * time.Millisecond
)

// renewal is what etcd said of a lease: that it lasts for at least ttl from when it was
// asked, by the monotonic clock.
type renewal struct {
	asked time.Time
	ttl   time.Duration
}

func (r *renewal) remaining() time.Duration { return r.ttl - time.Since(r.asked) }

// Remaining is how long the term is certain to last, by the monotonic clock; zero or less
// once another process may own the log. With an embedded etcd, which belongs to this
// process alone, a term lasts until it is ended.
func (t *Term) Remaining() time.Duration {
	switch {
	case t.ctx.Err() != nil:
		return 0
	case t.lease == 0:
		return math.MaxInt64
	}
	return t.renewed.Load().remaining()
}

// keepLease renews the lease until the term ends, and ends it when the lease may be over.
func (t *Term) keepLease() {
	j := t.journal
	defer t.renewing.Rest()
	for {
		t.renewing.Beat()
		last := t.renewed.Load()
		pause := min(last.ttl/4, maxRenewInterval)
		asked := time.Now()
		ctx, cancel := context.WithTimeout(t.ctx, renewTimeout)
		resp, err := j.store.client.KeepAliveOnce(ctx, t.lease)
		cancel()
		switch {
		case t.ctx.Err() != nil:
			return
		case err == nil:
			last = &renewal{asked, time.Duration(resp.TTL) * time.Second}
			t.renewed.Store(last)
			j.noteContact()
		case errors.Is(err, rpctypes.ErrLeaseNotFound) || last.remaining() <= 0:
			_ = t.end(errNotOwner(errors.New("etcd could not be reached before the lease ended, so another process may own the log")))
			return
		default:
			pause = minRetryPause
		}
		select {
		case <-time.After(min(pause, last.remaining())):
		case <-t.ctx.Done():
			return
		}
	}
}
