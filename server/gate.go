package server

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/admission"
	"github.com/instanced/instanced/internal/instance"
)

const (
	// What is larger than this is decoded by a few calls at a time: a request takes up
	// to some hundred times its size once it is decoded.
	largeRequestBytes = 64 << 10
	largeRequests     = 4
)

// gate is where calls come in, before their requests are received: what is refused
// here costs no more than the headers that it came with.
type gate struct {
	arrival arrival
	large   *instance.Places
	codec   codec
}

func newGate(arrives arrival) gate {
	return gate{arrival: arrives, large: instance.NewPlaces(largeRequests), codec: newCodec()}
}

// guard returns a registrar of services whose methods are all behind the gate.
func (g gate) guard(r grpc.ServiceRegistrar) grpc.ServiceRegistrar { return registrar{r, g} }

type registrar struct {
	grpc.ServiceRegistrar
	gate gate
}

// RegisterService registers a service.
func (r registrar) RegisterService(desc *grpc.ServiceDesc, impl any) {
	guarded := *desc
	guarded.Methods = make([]grpc.MethodDesc, len(desc.Methods))
	for i, m := range desc.Methods {
		guarded.Methods[i] = grpc.MethodDesc{MethodName: m.MethodName, Handler: r.gate.unary("/"+desc.ServiceName+"/"+m.MethodName, m.Handler)}
	}
	r.ServiceRegistrar.RegisterService(&guarded, impl)
}

// unary guards a method. A refusal goes through the interceptors like any other error.
func (g gate) unary(method string, handler grpc.MethodHandler) grpc.MethodHandler {
	command := isCommand(method)
	lasts := method == instancedv1.InstanceService_WaitInstances_FullMethodName
	return func(srv any, ctx context.Context, receive func(any) error, chain grpc.UnaryServerInterceptor) (any, error) {
		refused := func(why error) (any, error) {
			return chain(ctx, nil, &grpc.UnaryServerInfo{Server: srv, FullMethod: method}, func(context.Context, any) (any, error) { return nil, why })
		}
		ctx = identify(ctx)
		conn := connectionOf(ctx)
		t, err := conn.admit(ctx)
		if err != nil {
			defer conn.arrived.Add(1)
			return refused(err)
		}
		conn.arrived.Add(1)
		defer t.Leave()
		in := request{enter: g.enterLarge(ctx), command: command}
		defer in.forget()
		resp, err := handler(srv, ctx, func(into any) error {
			in.into = into.(proto.Message)
			if err := g.arrival.receive(ctx, func() error { return receive(&in) }); err != nil {
				if e, ok := errors.AsType[*instance.Error](err); ok {
					in.problem = e
				}
				return err
			}
			if in.problem == nil && lasts {
				// What is large for so long would keep all large requests out.
				in.forget()
				in.problem = conn.promote(&t)
			}
			return in.problem
		}, chain)
		if in.problem != nil {
			return refused(in.problem)
		}
		if err != nil {
			return nil, err
		}
		data, err := g.codec.Marshal(resp)
		if err != nil {
			return nil, status.Errorf(codes.Internal, "the response cannot be encoded: %v", err)
		}
		return conn.queue(ctx, data)
	}
}

// receive receives a request of a stream, which lasts from the first one on.
func (s *streamIn) receive(into any) error {
	in := request{enter: s.gate.enterLarge(s.ctx), into: into.(proto.Message)}
	defer in.forget()
	receive := func() error { return s.ServerStream.RecvMsg(&in) }
	if s.ticket.Kind() == admission.LongLived {
		if err := receive(); err != nil {
			return err
		}
		return in.problem
	}
	if err := s.gate.arrival.receive(s.ctx, receive); err != nil {
		return err
	}
	if in.problem == nil {
		return connectionOf(s.ctx).promote(&s.ticket)
	}
	return in.problem
}

// enterLarge returns what gives a large request of a caller its place.
func (g gate) enterLarge(ctx context.Context) func() (leave func(), err error) {
	return func() (func(), error) {
		holders := []any{connectionOf(ctx)}
		if principal := callerOf(ctx).Principal; principal != anonymous {
			holders = append(holders, principal)
		}
		return g.large.Enter(ctx, holders...)
	}
}

// request is a request while it is decoded.
type request struct {
	into  proto.Message
	enter func() (leave func(), err error)
	// command is whether it may not have fields that are not known.
	command bool
	// leave gives up the place of a large request; nil for none.
	leave   func()
	problem error
}

// forget gives up the place of a large request.
func (r *request) forget() {
	if r.leave != nil {
		r.leave()
		r.leave = nil
	}
}

// malformed is what a caller is told whose request cannot be decoded.
func malformed(cause error) error {
	return &instance.Error{
		Kind:    instance.KindInvalid,
		Reason:  instance.ReasonInvalidRequest,
		Message: "the request is not the message that it should be: it cannot be decoded",
		Cause:   cause,
	}
}

// errTooManyElements is what a caller is told whose request would take far more memory
// than anything sensible.
var errTooManyElements error = &instance.Error{
	Kind:    instance.KindInvalid,
	Reason:  instance.ReasonInvalidRequest,
	Message: fmt.Sprintf("the request has more than %d fields in all", maxElements),
}
