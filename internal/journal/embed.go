package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// startTimeout is how long etcd may take to become ready when the caller sets no
// limit. A large log takes seconds.
const startTimeout = 2 * time.Minute

// startEtcd runs an etcd of one member in this process. It listens nowhere: its
// only client is in the process, and it has no peers.
func startEtcd(ctx context.Context, dir string, log *slog.Logger) (*embed.Etcd, error) {
	cfg := embed.NewConfig()
	cfg.Name = "instanced"
	cfg.Dir = dir
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
	cfg.QuotaBackendBytes = -1 // none: the budget is ours to keep, and etcd would refuse what makes room
	cfg.MaxTxnOps = maxEmbeddedTxnOps

	e, err := startOrExplain(ctx, cfg, log)
	if err != nil {
		return nil, err
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

// startOrExplain starts etcd, which panics or ends the process when it cannot read
// its files. Where that can be prevented it becomes an error, and what etcd had
// begun is left behind. A panic in one of its own goroutines cannot be.
func startOrExplain(ctx context.Context, cfg *embed.Config, log *slog.Logger) (*embed.Etcd, error) {
	hook := &fatalHook{log: log, fatal: make(chan error, 1)}
	hook.starting.Store(true)
	defer hook.starting.Store(false)
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newZap(log).WithOptions(zap.WithFatalHook(hook), zap.WithPanicHook(hook)))

	type result struct {
		etcd *embed.Etcd
		err  error
	}
	results := make(chan result, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				log.DebugContext(ctx, "etcd panics", slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
				cause, ok := p.(error)
				if !ok {
					cause = fmt.Errorf("%v", p)
				}
				results <- result{err: explainEtcd(filepath.Dir(cfg.Dir), fmt.Errorf("etcd cannot read it: %w", cause))}
			}
		}()
		e, err := embed.StartEtcd(cfg)
		if err != nil { // the configuration is always the same
			err = explainEtcd(filepath.Dir(cfg.Dir), err)
		}
		results <- result{e, err}
	}()
	select {
	case r := <-results:
		return r.etcd, r.err
	case err := <-hook.fatal:
		return nil, explainEtcd(filepath.Dir(cfg.Dir), err)
	}
}

// fatalHook is what follows when etcd has logged something fatal: while it starts,
// that is sent to fatal, and the goroutine ends; later the process does.
type fatalHook struct {
	log      *slog.Logger
	starting atomic.Bool
	fatal    chan error
}

// OnWrite implements zapcore.CheckWriteHook.
func (h *fatalHook) OnWrite(entry *zapcore.CheckedEntry, fields []zapcore.Field) {
	err := errors.New(entry.Message)
	for _, f := range fields {
		if cause, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			err = fmt.Errorf("%w: %w", err, cause)
			break
		}
	}
	if h.starting.Load() {
		select {
		case h.fatal <- err:
		default:
		}
		runtime.Goexit()
	}
	h.log.Error("etcd cannot go on, so this process ends; the next start verifies the files of the journal", slog.Any("error", err))
	os.Exit(1)
}

// embeddedStore is the store on an embedded etcd.
func embeddedStore(e *embed.Etcd, k keys) *store {
	return &store{client: v3client.New(e.Server), keys: k, embedded: true, maxOps: maxEmbeddedTxnOps}
}
