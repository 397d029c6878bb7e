package server

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/tap"

	"github.com/instanced/instanced/internal/instance"
)

// cancelReceiveKey is the context key of the function that cancels a call whose request
// does not arrive.
type cancelReceiveKey struct{}

// onHeaders returns the tap handle: it runs when the headers of a call have arrived, before
// the call has a goroutine. It counts the calls of existing methods, which reach admission
// next, and those that the transport is about to reject, and makes it possible to cancel a call while its request is received: grpc-go
// reads with the context returned here, and no other.
func onHeaders(metrics *metrics) tap.ServerInHandle {
	return func(ctx context.Context, info *tap.Info) (context.Context, error) {
		if metrics.methods[info.FullMethodName] != nil {
			connectionOf(ctx).begun++
		} else {
			metrics.unknownMethod()
		}
		ctx, cancel := context.WithCancelCause(ctx)
		return context.WithValue(ctx, cancelReceiveKey{}, cancel), nil
	}
}

// receiveTimeout is how long a request may take to arrive after the headers of its call.
type receiveTimeout time.Duration

// receive receives a request within the timeout. Without one, a call whose request never
// arrives would hold its place forever.
func (t receiveTimeout) receive(ctx context.Context, receive func() error) error {
	cancel := ctx.Value(cancelReceiveKey{}).(context.CancelCauseFunc)
	var late atomic.Bool
	timer := time.AfterFunc(time.Duration(t), func() {
		late.Store(true)
		cancel(t.expired())
	})
	defer timer.Stop()
	err := receive()
	if err != nil && late.Load() {
		return t.expired()
	}
	return err
}

// expired returns the error for the log. Callers usually see a bare CANCELED instead, which
// grpc-go sends when receiving fails.
func (t receiveTimeout) expired() error {
	return &instance.Error{
		Kind:       instance.KindUnavailable,
		Reason:     instance.ReasonRequestLate,
		Message:    fmt.Sprintf("the request did not arrive within %v of the start of the call; nothing was changed", time.Duration(t)),
		RetryAfter: time.Second,
	}
}
