package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
)

// startTimeout is how long etcd may take to become ready when the caller sets no
// limit. A large log takes seconds.
const startTimeout = 2 * time.Minute

// startEtcd runs an etcd of one member in this process. It listens nowhere: its
// only client is in the process, and it has no peers.
func startEtcd(ctx context.Context, dir string, quota int64, log *slog.Logger) (*embed.Etcd, error) {
	cfg := embed.NewConfig()
	cfg.Name = "instanced"
	cfg.Dir = dir
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newZap(log))
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = nil, nil
	cfg.ListenPeerUrls = nil
	// The peer address only names the member; it stays the same so that a data
	// directory can be copied and moved.
	cfg.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2380"}}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.EnableGRPCGateway = false

	// Without peers an election is over as soon as it begins.
	cfg.TickMs, cfg.ElectionMs = 10, 100
	// What has been applied is kept in memory, and read again at a start, until the
	// next snapshot; with batches of up to 1 MiB that must not be many.
	cfg.SnapshotCount, cfg.SnapshotCatchUpEntries = 1000, 1
	cfg.QuotaBackendBytes = quota
	cfg.MaxTxnOps = embeddedTxnOps

	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("etcd does not start in %s: %w", dir, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, errors.New("it was not ready in time"))
	defer cancel()
	select {
	case <-e.Server.ReadyNotify():
		return e, nil
	case err = <-e.Err():
	case <-e.Server.StopNotify():
		err = errors.New("it stopped at once")
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	e.Close()
	return nil, fmt.Errorf("etcd does not start in %s: %w", dir, err)
}

// embeddedStore is the store on an embedded etcd.
func embeddedStore(e *embed.Etcd, k keys) *store {
	return &store{client: v3client.New(e.Server), keys: k, embedded: true, maxOps: embeddedTxnOps}
}
