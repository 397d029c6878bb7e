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

// deadline gives unary calls that bring no deadline one: most, or what a wait asks
// for. Streams have none.
func deadline(most time.Duration) around {
	return func(ctx context.Context, c call, next func(context.Context) error) error {
		if _, ok := ctx.Deadline(); ok {
			return next(ctx)
		}
		limit := most
		if wait, ok := c.request.(*instancedv1.WaitInstancesRequest); ok {
			limit = waitLimit(wait) + waitMargin
		}
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		return next(ctx)
	}
}

// waitLimit returns how long a wait may take, whatever nonsense was asked for.
func waitLimit(req *instancedv1.WaitInstancesRequest) time.Duration {
	if req.GetTimeout() == nil {
		return lifecycle.DefaultWait
	}
	return min(max(req.GetTimeout().AsDuration(), 0), lifecycle.MaxWait)
}
