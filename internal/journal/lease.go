package journal

import (
	"context"
	"errors"
	"math"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
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
	for {
		last := t.renewed.Load()
		pause := min(last.ttl/4, maxRenewInterval)
		asked := time.Now()
		ctx, cancel := context.WithTimeout(t.ctx, renewTimeout)
		ttl, err := j.store.renew(ctx, t.lease)
		cancel()
		switch {
		case t.ctx.Err() != nil:
			return
		case err == nil:
			last = &renewal{asked, ttl}
			t.renewed.Store(last)
			j.hear()
		case errors.Is(err, rpctypes.ErrLeaseNotFound) || last.remaining() <= 0:
			_ = t.end(errNotOwner(errors.New("etcd was not reached for so long that another process may own the log")))
			return
		default:
			pause = retryFirst
		}
		select {
		case <-time.After(min(pause, last.remaining())):
		case <-t.ctx.Done():
			return
		}
	}
}

// renew renews a lease once and returns for how long. The error is
// [rpctypes.ErrLeaseNotFound] when the lease is over. The client's own KeepAliveOnce goes
// on without a pause while etcd cannot be reached.
func (s *store) renew(ctx context.Context, lease clientv3.LeaseID) (time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream
	stream, err := pb.NewLeaseClient(s.client.ActiveConnection()).LeaseKeepAlive(clientv3.WithRequireLeader(ctx))
	if err != nil {
		return 0, err
	}
	if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(lease)}); err != nil {
		return 0, err
	}
	resp, err := stream.Recv()
	if err != nil {
		return 0, err
	}
	if resp.GetTTL() <= 0 {
		return 0, rpctypes.ErrLeaseNotFound
	}
	return time.Duration(resp.GetTTL()) * time.Second, nil
}
