package server

import (
	"context"
	"time"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/lifecycle"
)

// waitMargin is what a wait may take beyond its timeout, so that a timeout is
// answered rather than cut off.
const waitMargin = 5 * time.Second

// withDeadline gives a unary call that brings no deadline one: most, or what a wait asks
// for. It is to be released, if that is not nil.
func withDeadline(ctx context.Context, most time.Duration, request any) (_ context.Context, release func()) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, nil
	}
	limit := most
	if wait, ok := request.(*instancedv1.WaitInstancesRequest); ok {
		limit = waitLimit(wait) + waitMargin
	}
	return context.WithTimeout(ctx, limit)
}

// waitLimit returns how long a wait may take, whatever nonsense was asked for.
func waitLimit(req *instancedv1.WaitInstancesRequest) time.Duration {
	if req.GetTimeout() == nil {
		return lifecycle.DefaultWait
	}
	return min(max(req.GetTimeout().AsDuration(), 0), lifecycle.MaxWait)
}
