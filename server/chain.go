package server

import (
	"context"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/admission"
)

// chain is what every call passes through on its way in and out, whether unary or a stream.
// Unary calls were admitted before; streams are admitted here.
type chain struct {
	log     callLog
	metrics *metrics
	drain   *drain
	early   earlyAdmission
	// tracer is nil if calls are not traced.
	tracer trace.Tracer
	// deadline is for unary calls that have none.
	deadline time.Duration
	slow     *slowCalls
}

// options returns the interceptors: the chain and, inside it, recovery from panics, so that
// they are logged and mapped like any other error. The chain is a single interceptor,
// because each one adds stack frames that a stream keeps for its whole life: see
// BenchmarkIdleSubscriber.
func (c chain) options() []grpc.ServerOption {
	toError := recovery.WithRecoveryHandler(panicked)
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(c.unary, recovery.UnaryServerInterceptor(toError)),
		grpc.ChainStreamInterceptor(c.stream, recovery.StreamServerInterceptor(toError)),
	}
}

// call is what the chain knows of a call.
type call struct {
	method string
	// request is nil for a stream and for a call that was not admitted.
	request any
	// longLived is whether the call lasts as long as its caller likes.
	longLived bool
	begun     time.Time
	metrics   *methodMetrics
	// release cancels the context that the chain made; nil if it made none.
	release func()
	// span is nil if the call is not traced.
	span trace.Span
}

// enter returns the context for the handler, or the error that rejects the call.
func (c chain) enter(ctx context.Context, of *call) (context.Context, error) {
	of.begun, of.metrics = time.Now(), c.metrics.begin(of.method)
	if err := refusalOf(ctx); err != nil {
		return ctx, err
	}
	if of.request != nil {
		ctx, of.release = withDeadline(ctx, c.deadline, of.request)
	}
	if of.longLived {
		interrupted, release := c.drain.interrupt(ctx)
		limit := of.release
		ctx, of.release = interrupted, func() {
			release()
			if limit != nil {
				limit()
			}
		}
	}
	return ctx, nil
}

// leave returns the error as the caller sees it, and counts and logs the call.
func (c chain) leave(ctx context.Context, of *call, err error) error {
	if of.longLived {
		err = c.drain.explain(ctx, err)
	}
	if of.release != nil {
		of.release()
	}
	err = mapStatus(ctx, err)
	took := time.Since(of.begun)
	of.metrics.end(ctx, of.span, took, err)
	c.log.line(ctx, of, took, err)
	c.slow.note(ctx, of, took, err)
	of.endSpan(err)
	return err
}

func (c chain) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	of := call{method: info.FullMethod, request: req, longLived: isWait(req)}
	ctx = c.startSpan(ctx, &of)
	within, err := c.enter(ctx, &of)
	var resp any
	if err == nil {
		resp, err = handler(within, req)
	}
	if err = c.leave(ctx, &of, err); err != nil {
		return nil, err
	}
	return resp, nil
}

func isWait(request any) bool {
	_, ok := request.(*instancedv1.WaitInstancesRequest)
	return ok
}

func (c chain) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	in, err := c.enterStream(ss, info)
	if err == nil {
		err = handler(srv, in)
	}
	return c.leaveStream(in, err)
}

// streamIn is a stream inside the chain. It has a context of its own, and a place that it
// exchanges for a long-lived one when its first request has arrived.
type streamIn struct {
	grpc.ServerStream
	ctx   context.Context
	call  call
	early earlyAdmission
	// ticket is zero if the stream was not admitted.
	ticket admission.Ticket
	unsent unsentMessages
	// clientStreams is whether the caller may send more than one request.
	clientStreams bool
}

func (c chain) enterStream(ss grpc.ServerStream, info *grpc.StreamServerInfo) (*streamIn, error) {
	in := &streamIn{
		ServerStream:  ss,
		call:          call{method: info.FullMethod, longLived: true},
		early:         c.early,
		clientStreams: info.IsClientStream,
	}
	var err error
	if in.ctx, err = c.enter(c.startSpan(identify(ss.Context()), &in.call), &in.call); err == nil {
		conn := connectionOf(in.ctx)
		if in.ticket, err = conn.admit(in.ctx); err == nil {
			conn.arrived.Add(1)
		}
	}
	return in, err
}

func (c chain) leaveStream(in *streamIn, err error) error {
	// Until here the handler has its place, or counts as arriving if it was not admitted.
	if in.ticket.Admitted() {
		defer in.ticket.Leave()
	} else {
		defer connectionOf(in.ctx).arrived.Add(1)
	}
	err = c.leave(in.ctx, &in.call, err)
	in.unsent.settle(in.ServerStream.Context(), connectionOf(in.ctx))
	return err
}

// Context returns the context of the handler.
func (s *streamIn) Context() context.Context { return s.ctx }

// SendMsg sends a message.
func (s *streamIn) SendMsg(m any) error {
	data, err := s.early.codec.Marshal(m)
	if err != nil {
		return err
	}
	return s.ServerStream.SendMsg(s.unsent.mark(data))
}

// RecvMsg receives a request. It returns when the context ends, even for handlers that do
// not watch it while they wait for a request, such as reflection's. The goroutine left
// behind in that case ends with the stream, since the handler is about to return.
func (s *streamIn) RecvMsg(into any) error {
	if !s.clientStreams {
		return s.receive(into)
	}
	received := make(chan error, 1)
	go func() { received <- s.receive(into) }()
	select {
	case err := <-received:
		return err
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
}
