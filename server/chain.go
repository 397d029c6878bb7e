package server

import (
	"context"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"google.golang.org/grpc"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/admission"
)

// chain is what every call goes through on its way in and out, unary calls and streams
// alike. Unary calls have come through the gate already, streams do so here.
type chain struct {
	log   callLog
	drain *drain
	gate  gate
	// deadline is that of unary calls that bring none.
	deadline time.Duration
}

// options returns the interceptors: the chain, and inside of it recovery from panics, so
// that they are logged and mapped like any other error. The chain is one interceptor and
// not several, each of which would take the stack of several calls for as long as a stream
// lasts: see BenchmarkIdleSubscriber.
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
	// request is nil for a stream, and for a call that was refused at the gate.
	request any
	// lasts is whether it goes on for as long as its caller likes.
	lasts bool
	begun time.Time
	// release ends the context that the chain made; nil for none.
	release func()
}

// enter returns the context in which the handler is to work, or why it is not to.
func (c chain) enter(ctx context.Context, of *call) (context.Context, error) {
	of.begun = time.Now()
	if err := refusalOf(ctx); err != nil {
		return ctx, err
	}
	if of.request != nil {
		ctx, of.release = withDeadline(ctx, c.deadline, of.request)
	}
	if of.lasts {
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

// leave returns the error of a call as its caller is to see it, and writes its line.
func (c chain) leave(ctx context.Context, of *call, err error) error {
	if of.lasts {
		err = c.drain.explain(err)
	}
	if of.release != nil {
		of.release()
	}
	err = mapStatus(ctx, err)
	c.log.line(ctx, of, err)
	return err
}

func (c chain) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	of := call{method: info.FullMethod, request: req, lasts: isWait(req)}
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

// streamIn is a stream on its way through the chain: in another context, and with a place
// that it changes for one among those that last when its first request has come.
type streamIn struct {
	grpc.ServerStream
	ctx  context.Context
	call call
	gate gate
	// ticket is zero for one that was not admitted.
	ticket admission.Ticket
	unsent unsentMessages
	// speaks is whether its caller may speak for as long as it lasts.
	speaks bool
}

func (c chain) enterStream(ss grpc.ServerStream, info *grpc.StreamServerInfo) (*streamIn, error) {
	in := &streamIn{
		ServerStream: ss,
		call:         call{method: info.FullMethod, lasts: true},
		gate:         c.gate,
		speaks:       info.IsClientStream,
	}
	var err error
	if in.ctx, err = c.enter(identify(ss.Context()), &in.call); err == nil {
		conn := connectionOf(in.ctx)
		if in.ticket, err = conn.admit(in.ctx); err == nil {
			conn.arrived.Add(1)
		}
	}
	return in, err
}

func (c chain) leaveStream(in *streamIn, err error) error {
	// Its place, or what it was counted as without one, is that of its handler, to the end.
	if in.ticket.Admitted() {
		defer in.ticket.Leave()
	} else {
		defer connectionOf(in.ctx).arrived.Add(1)
	}
	err = c.leave(in.ctx, &in.call, err)
	in.unsent.settle(in.ServerStream.Context(), connectionOf(in.ctx))
	return err
}

// Context returns the context in which the stream is handled.
func (s *streamIn) Context() context.Context { return s.ctx }

// SendMsg sends a message.
func (s *streamIn) SendMsg(m any) error {
	data, err := s.gate.codec.Marshal(m)
	if err != nil {
		return err
	}
	return s.ServerStream.SendMsg(s.unsent.mark(data))
}

// RecvMsg receives a request. It ends with the context, also for handlers that do not look
// at that while they wait for their caller to speak, as those of reflection do. A receiver
// may be left behind then; it ends with the stream, which the handler is about to leave.
func (s *streamIn) RecvMsg(into any) error {
	if !s.speaks {
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
