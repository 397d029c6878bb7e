package server

import (
	"context"
	"time"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/lifecycle"
)

// waitMargin is how much longer than its timeout a wait may take, so that it can respond
// with the timeout rather than be cut off.
const waitMargin = 5 * time.Second

// withDeadline gives a unary call without a deadline one: the default, or what a wait asks
// for. The caller must call release if it is not nil.
func withDeadline(ctx context.Context, byDefault time.Duration, request any) (_ context.Context, release func()) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, nil
	}
	limit := byDefault
	if wait, ok := request.(*instancedv1.WaitInstancesRequest); ok {
		limit = waitLimit(wait) + waitMargin
	}
	return context.WithTimeout(ctx, limit)
}

// waitLimit returns how long a wait may take, whatever the request says.
func waitLimit(req *instancedv1.WaitInstancesRequest) time.Duration {
	if req.GetTimeout() == nil {
		return lifecycle.DefaultWait
	}
	return min(max(req.GetTimeout().AsDuration(), 0), lifecycle.MaxWait)
}
