package server

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/tap"

	"github.com/instanced/instanced/internal/instance"
)

// arrivalKey is the key of the function that ends a call whose request does not come.
type arrivalKey struct{}

// begin returns what a call goes through when its headers have come, before it has a
// goroutine. It counts those of methods that there are, which come to the gate then, and
// lets each be ended while its request is received: grpc-go reads with the context that is
// returned here, and with no other.
func begin(methods map[string]bool) tap.ServerInHandle {
	return func(ctx context.Context, info *tap.Info) (context.Context, error) {
		if methods[info.FullMethodName] {
			connectionOf(ctx).begun++
		}
		ctx, cancel := context.WithCancelCause(ctx)
		return context.WithValue(ctx, arrivalKey{}, cancel), nil
	}
}

// arrival is how long a request may take from the headers of its call on.
type arrival time.Duration

// receive receives a request, unless it takes too long. A call that could wait for ever
// would hold its place for as long.
func (a arrival) receive(ctx context.Context, receive func() error) error {
	cancel := ctx.Value(arrivalKey{}).(context.CancelCauseFunc)
	var late atomic.Bool
	timer := time.AfterFunc(time.Duration(a), func() {
		late.Store(true)
		cancel(a.late())
	})
	defer timer.Stop()
	err := receive()
	if err != nil && late.Load() {
		return a.late()
	}
	return err
}

// late is what the log is told, and the caller where grpc-go has not told it CANCELED
// already, as it does when a receive fails.
func (a arrival) late() error {
	return &instance.Error{
		Kind:       instance.KindUnavailable,
		Reason:     instance.ReasonRequestLate,
		Message:    fmt.Sprintf("the request did not come within %v of the beginning of the call; nothing was changed by this call", time.Duration(a)),
		RetryAfter: time.Second,
	}
}
