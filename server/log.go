package server

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors"
)

// callLog writes one line a call.
type callLog struct{ log *slog.Logger }

// report is called at the beginning of a call; what it returns, at its end.
func (l callLog) report(ctx context.Context, meta interceptors.CallMeta) (interceptors.Reporter, context.Context) {
	return &callReport{log: l.log, ctx: ctx, meta: meta}, ctx
}

// callReport is one call in the log. The context that it holds is that of the call,
// which outlives it.
type callReport struct {
	interceptors.NoopReporter
	log  *slog.Logger
	ctx  context.Context
	meta interceptors.CallMeta
	ids  int
}

// namesInstances is implemented by the requests that name instances.
type namesInstances interface{ GetInstanceIds() []string }

// PostMsgReceive looks at a request.
func (r *callReport) PostMsgReceive(request any, err error, _ time.Duration) {
	if named, ok := request.(namesInstances); ok && err == nil {
		r.ids = len(named.GetInstanceIds())
	}
}

// PostCall writes the line.
func (r *callReport) PostCall(err error, took time.Duration) {
	level, code, reason, failed := verdict(err)
	if !r.log.Enabled(r.ctx, level) {
		return
	}
	caller := callerOf(r.ctx)
	// Made by hand, without looking up from where: it is always from here.
	line := slog.NewRecord(time.Now(), level, "call", 0)
	line.AddAttrs(
		slog.String("service", r.meta.Service),
		slog.String("method", r.meta.Method),
		slog.String("code", code),
		slog.String("principal_unverified", caller.Principal),
		slog.String("request_id", caller.RequestID),
		slog.Duration("took", took),
	)
	if r.ids > 0 {
		line.AddAttrs(slog.Int("instance_ids", r.ids))
	}
	if reason != "" {
		line.AddAttrs(slog.String("reason", reason))
	}
	if failed {
		line.AddAttrs(slog.String("error", err.Error()))
	}
	// A log that cannot be written has nobody to be told.
	_ = r.log.Handler().Handle(r.ctx, line)
}

// panicked turns a panic into an error for the log; the caller sees no more of it
// than of any other bug.
func panicked(p any) error {
	return fmt.Errorf("panic: %v\n%s", p, debug.Stack())
}
