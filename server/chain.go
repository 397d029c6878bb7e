package server

import (
	"context"
	"log/slog"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/selector"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// chain returns the interceptors in their order, outermost first: the log sees the
// status, the status sees what recovery made of a panic. Unary calls have come through
// the gate already, streams do so here.
func chain(log *slog.Logger, d *drain, g gate, defaultDeadline time.Duration) []grpc.ServerOption {
	logged := interceptors.CommonReportableFunc(callLog{log}.report)
	recovered := recovery.WithRecoveryHandler(panicked)
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(
			selector.UnaryServerInterceptor(interceptors.UnaryServerInterceptor(logged), selector.MatchFunc(worthLogging)),
			around(mapStatus).unary,
			recovery.UnaryServerInterceptor(recovered),
			around(admit).unary,
			deadline(defaultDeadline).unary,
			around(d.end).unary,
		),
		grpc.ChainStreamInterceptor(
			around(identifyStream).stream,
			selector.StreamServerInterceptor(interceptors.StreamServerInterceptor(logged), selector.MatchFunc(worthLogging)),
			around(mapStatus).stream,
			recovery.StreamServerInterceptor(recovered),
			around(admit).stream,
			g.stream,
			around(d.end).stream,
			d.interruptReceive,
		),
	}
}

// worthLogging leaves out what probes and tools ask for.
func worthLogging(_ context.Context, c interceptors.CallMeta) bool {
	return c.Service != grpc_health_v1.Health_ServiceDesc.ServiceName && !isReflection(c.Service)
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
