package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/admission"
	"github.com/instanced/instanced/internal/instance"
)

const (
	// Only a few requests larger than this are decoded at once: a decoded request takes up
	// to about a hundred times its encoded size.
	largeRequestBytes = 64 << 10
	largeRequests     = 4
)

// earlyAdmission admits calls before their requests are received, so a rejected call costs
// no more than its headers.
type earlyAdmission struct {
	receiveTimeout receiveTimeout
	large          *instance.Places
	codec          codec
	metrics        *metrics
}

func newEarlyAdmission(timeout receiveTimeout, metrics *metrics) earlyAdmission {
	return earlyAdmission{receiveTimeout: timeout, large: instance.NewPlaces(largeRequests), codec: newCodec(), metrics: metrics}
}

// wrap returns a registrar that registers services with all their methods behind the
// admission.
func (e earlyAdmission) wrap(r grpc.ServiceRegistrar) grpc.ServiceRegistrar { return registrar{r, e} }

type registrar struct {
	grpc.ServiceRegistrar
	early earlyAdmission
}

// RegisterService registers a service.
func (r registrar) RegisterService(desc *grpc.ServiceDesc, impl any) {
	wrapped := *desc
	wrapped.Methods = make([]grpc.MethodDesc, len(desc.Methods))
	for i, m := range desc.Methods {
		wrapped.Methods[i] = grpc.MethodDesc{MethodName: m.MethodName, Handler: r.early.unary("/"+desc.ServiceName+"/"+m.MethodName, m.Handler)}
	}
	r.ServiceRegistrar.RegisterService(&wrapped, impl)
}

// unary wraps a unary method. A rejection passes through the interceptors like any error.
func (e earlyAdmission) unary(method string, handler grpc.MethodHandler) grpc.MethodHandler {
	command := isCommand(method)
	longLived := method == instancedv1.InstanceService_WaitInstances_FullMethodName
	return func(srv any, ctx context.Context, receive func(any) error, chain grpc.UnaryServerInterceptor) (any, error) {
		begun := time.Now()
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
		in := request{enter: e.enterLarge(ctx), command: command}
		defer in.releasePlace()
		resp, err := handler(srv, ctx, func(into any) error {
			in.into = into.(proto.Message)
			if err := e.receiveTimeout.receive(ctx, func() error { return receive(&in) }); err != nil {
				if problem, ok := errors.AsType[*instance.Error](err); ok {
					in.problem = problem
				} else {
					// The chain, which would count it, is not entered.
					e.metrics.begin(method).end(ctx, nil, time.Since(begun), err)
				}
				return err
			}
			if in.problem == nil && longLived {
				// Held for as long as a wait, the place would keep other large requests out.
				in.releasePlace()
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
		data, err := e.codec.Marshal(resp)
		if err != nil {
			return nil, status.Errorf(codes.Internal, "the response cannot be encoded: %v", err)
		}
		return conn.queue(ctx, data)
	}
}

// receive receives a request of a stream. With the first, the stream becomes long-lived.
func (s *streamIn) receive(into any) error {
	in := request{enter: s.early.enterLarge(s.ctx), into: into.(proto.Message)}
	defer in.releasePlace()
	receive := func() error { return s.ServerStream.RecvMsg(&in) }
	if s.ticket.Kind() == admission.LongLived {
		if err := receive(); err != nil {
			return err
		}
		return in.problem
	}
	if err := s.early.receiveTimeout.receive(s.ctx, receive); err != nil {
		return err
	}
	if in.problem == nil {
		return connectionOf(s.ctx).promote(&s.ticket)
	}
	return in.problem
}

// enterLarge returns a function that waits for a place for a large request of the caller.
func (e earlyAdmission) enterLarge(ctx context.Context) func() (leave func(), err error) {
	return func() (func(), error) {
		holders := []any{connectionOf(ctx)}
		if principal := callerOf(ctx).Principal; principal != anonymous {
			holders = append(holders, principal)
		}
		return e.large.Enter(ctx, holders...)
	}
}

// request is a request while it is decoded.
type request struct {
	into  proto.Message
	enter func() (leave func(), err error)
	// command is whether unknown fields are an error.
	command bool
	// leaveLarge gives up the place of a large request; nil if it has none.
	leaveLarge func()
	problem    error
}

// releasePlace gives up the place of a large request.
func (r *request) releasePlace() {
	if r.leaveLarge != nil {
		r.leaveLarge()
		r.leaveLarge = nil
	}
}

// malformed returns the error for a request that cannot be decoded.
func malformed(cause error) error {
	return &instance.Error{
		Kind:    instance.KindInvalid,
		Reason:  instance.ReasonInvalidRequest,
		Message: "malformed request: it cannot be decoded",
		Cause:   cause,
	}
}

// errTooManyElements rejects a request that would take far more memory than any sensible
// one.
var errTooManyElements error = &instance.Error{
	Kind:    instance.KindInvalid,
	Reason:  instance.ReasonInvalidRequest,
	Message: fmt.Sprintf("the request has more than %d fields in all", maxElements),
}
