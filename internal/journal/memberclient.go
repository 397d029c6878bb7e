package journal

import (
	"context"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// readFrom reads from the current member, and again from another one when that fails or is
// taken out, for as long as ctx lasts and it takes to notice a silent member.
func readFrom[T any](ctx context.Context, m *members, read func(*clientv3.Client) (T, error)) (T, error) {
	for began := time.Now(); ; {
		conn, asked := m.conn(), time.Now()
		result, err := read(conn.Client)
		if ctx.Err() == nil || time.Since(asked) >= probeTimeout { // else the caller's hurry says nothing of the member
			m.failed(conn, err)
		}
		if !unanswered(err) || ctx.Err() != nil || time.Since(began) > readRetryTimeout {
			return result, err
		}
		select {
		case <-time.After(minRetryPause):
		case <-ctx.Done():
			return result, err
		}
	}
}

// membersKV sends requests to the current member. Reads outlast that one; whether a write
// took place that it did not answer is for the caller to find out. What the journal does not
// use of a KV is missing.
type membersKV struct {
	clientv3.KV
	m *members
}

func (kv membersKV) Get(ctx context.Context, key string, options ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	return readFrom(ctx, kv.m, func(c *clientv3.Client) (*clientv3.GetResponse, error) { return c.Get(ctx, key, options...) })
}

func (kv membersKV) Compact(ctx context.Context, revision int64, options ...clientv3.CompactOption) (*clientv3.CompactResponse, error) {
	conn := kv.m.conn()
	resp, err := conn.Compact(ctx, revision, options...)
	kv.m.failed(conn, err)
	return resp, err
}

func (kv membersKV) Txn(ctx context.Context) clientv3.Txn { return &membersTxn{m: kv.m, ctx: ctx} }

// membersTxn is a transaction that is sent to the current member when it is complete.
type membersTxn struct {
	m       *members
	ctx     context.Context //nolint:containedctx // of one request, as in etcd's own
	compare []clientv3.Cmp
	then    []clientv3.Op
	others  []clientv3.Op // if what is compared differs
}

func (t *membersTxn) If(compare ...clientv3.Cmp) clientv3.Txn { t.compare = compare; return t }

func (t *membersTxn) Then(ops ...clientv3.Op) clientv3.Txn { t.then = ops; return t }

func (t *membersTxn) Else(ops ...clientv3.Op) clientv3.Txn { t.others = ops; return t }

func (t *membersTxn) Commit() (*clientv3.TxnResponse, error) {
	commit := func(c *clientv3.Client) (*clientv3.TxnResponse, error) {
		return c.Txn(t.ctx).If(t.compare...).Then(t.then...).Else(t.others...).Commit()
	}
	writes := func(op clientv3.Op) bool { return !op.IsGet() }
	if !slices.ContainsFunc(t.then, writes) && !slices.ContainsFunc(t.others, writes) {
		return readFrom(t.ctx, t.m, commit)
	}
	conn := t.m.conn()
	resp, err := commit(conn.Client)
	t.m.failed(conn, err)
	return resp, err
}

// membersWatcher watches at the current member; a watch ends when that is taken out.
type membersWatcher struct {
	clientv3.Watcher
	m *members
}

func (w membersWatcher) Watch(ctx context.Context, key string, options ...clientv3.OpOption) clientv3.WatchChan {
	return w.m.conn().Watch(ctx, key, options...)
}

func (membersWatcher) Close() error { return nil } // members are closed on their own

// membersLease sends requests about leases to the current member.
type membersLease struct {
	clientv3.Lease
	m *members
}

func (l membersLease) Grant(ctx context.Context, ttl int64) (*clientv3.LeaseGrantResponse, error) {
	conn := l.m.conn()
	resp, err := conn.Grant(ctx, ttl)
	l.m.failed(conn, err)
	return resp, err
}

func (l membersLease) Revoke(ctx context.Context, id clientv3.LeaseID) (*clientv3.LeaseRevokeResponse, error) {
	conn := l.m.conn()
	resp, err := conn.Revoke(ctx, id)
	l.m.failed(conn, err)
	return resp, err
}

// KeepAliveOnce makes one attempt: the client's own goes on without a pause while etcd cannot
// be reached.
func (l membersLease) KeepAliveOnce(ctx context.Context, id clientv3.LeaseID) (*clientv3.LeaseKeepAliveResponse, error) {
	conn := l.m.conn()
	resp, err := keepAlive(ctx, conn.Client, id)
	if tokenRejected(err) { // the next attempt logs in
		resp, err = keepAlive(ctx, conn.Client, id)
	}
	l.m.failed(conn, err)
	return resp, err
}

func (membersLease) Close() error { return nil } // members are closed on their own

func keepAlive(ctx context.Context, client *clientv3.Client, id clientv3.LeaseID) (*clientv3.LeaseKeepAliveResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream
	stream, err := pb.NewLeaseClient(client.ActiveConnection()).LeaseKeepAlive(clientv3.WithRequireLeader(ctx))
	if err != nil {
		return nil, err
	}
	if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(id)}); err != nil {
		return nil, err
	}
	resp, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	if resp.GetTTL() <= 0 {
		return nil, rpctypes.ErrLeaseNotFound
	}
	return &clientv3.LeaseKeepAliveResponse{ResponseHeader: resp.GetHeader(), ID: id, TTL: resp.GetTTL()}, nil
}
