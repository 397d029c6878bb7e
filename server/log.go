package server

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc/health/grpc_health_v1"
)

// callLog logs each call in one line.
type callLog struct{ log *slog.Logger }

// namesInstances is implemented by requests with instance ids.
type namesInstances interface{ GetInstanceIds() []string }

// line logs a call that has ended.
func (l callLog) line(ctx context.Context, c *call, took time.Duration, err error) {
	if service, method := path.Split(c.method); worthLogging(strings.Trim(service, "/")) {
		l.write(ctx, c, strings.Trim(service, "/"), method, err, took)
	}
}

// worthLogging excludes the calls of probes and tools.
func worthLogging(service string) bool {
	return service != grpc_health_v1.Health_ServiceDesc.ServiceName && !isReflection(service)
}

func (l callLog) write(ctx context.Context, c *call, service, method string, err error, took time.Duration) {
	level, code, reason, failed := logOutcome(err)
	if !l.log.Enabled(ctx, level) {
		return
	}
	caller := callerOf(ctx)
	principal := "principal_unverified"
	if caller.Authenticated {
		principal = "principal"
	}
	// Built by hand to save looking up the caller's source line, which is always this one.
	line := slog.NewRecord(time.Now(), level, "call", 0)
	line.AddAttrs(
		slog.String("service", service),
		slog.String("method", method),
		slog.String("code", code),
		slog.String(principal, caller.Principal),
		slog.String("request_id", caller.RequestID),
		slog.Duration("took", took),
	)
	if named, ok := c.request.(namesInstances); ok && len(named.GetInstanceIds()) > 0 {
		line.AddAttrs(slog.Int("instances", len(named.GetInstanceIds())))
	}
	if reason != "" {
		line.AddAttrs(slog.String("reason", reason))
	}
	if failed {
		line.AddAttrs(slog.String("error", err.Error()))
	}
	// There is nowhere to report a failure to log.
	_ = l.log.Handler().Handle(ctx, line)
}

// panicked turns a panic into an error for the log. The caller sees an internal error.
func panicked(p any) error {
	return fmt.Errorf("panic: %v\n%s", p, debug.Stack())
}
