package server

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"google.golang.org/grpc"
)

// chain returns the interceptors in their order, outermost first: the log sees the
// status, the status sees what recovery made of a panic. Unary calls have come through
// the gate already, streams do so here.
func chain(log *slog.Logger, d *drain, g gate, defaultDeadline time.Duration) []grpc.ServerOption {
	toError := recovery.WithRecoveryHandler(panicked)
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(
			joined(callLog{log}.line, mapStatus).unary,
			recovery.UnaryServerInterceptor(toError),
			joined(admit, deadline(defaultDeadline), d.end).unary,
		),
		grpc.ChainStreamInterceptor(
			joined(identifyStream, callLog{log}.line, mapStatus).stream,
			recovery.StreamServerInterceptor(toError),
			around(admit).stream,
			g.stream,
			around(d.end).stream,
			d.interruptReceive,
		),
	}
}

// joined returns interceptors as one, the first outermost. They could be given to gRPC
// one by one, but each would take the stack and the allocations of several calls, for
// as long as a stream lasts.
func joined(list ...around) around {
	return func(ctx context.Context, c call, next func(context.Context) error) error {
		for _, a := range slices.Backward(list) {
			inner := next
			next = func(ctx context.Context) error { return a(ctx, c, inner) }
		}
		return next(ctx)
	}
}

// call is what an interceptor knows of a call.
type call struct {
	method string
	// request is nil for a stream.
	request any
}

// around is an interceptor for unary calls and streams alike: it calls next once, or
// not at all, with its context or one derived from it.
type around func(ctx context.Context, c call, next func(context.Context) error) error

func (a around) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	var resp any
	err := a(ctx, call{method: info.FullMethod, request: req}, func(ctx context.Context) (err error) {
		resp, err = handler(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (a around) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return a(ss.Context(), call{method: info.FullMethod}, func(ctx context.Context) error {
		return handler(srv, streamIn{ServerStream: ss, ctx: ctx})
	})
}

// streamIn is a stream in another context.
type streamIn struct {
	grpc.ServerStream
	ctx context.Context
}

func (s streamIn) Context() context.Context { return s.ctx }
