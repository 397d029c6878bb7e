package server

import (
	"context"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/instance"
)

// drain is how the server gets rid of calls that would otherwise last as long as
// their callers like: grpc-go tells handlers nothing of a graceful stop, and waits
// for them for ever.
type drain struct {
	begun context.Context // ends when the draining begins; it is no call's context
	begin context.CancelFunc
	delay time.Duration
}

func newDrain(delay time.Duration) *drain {
	begun, begin := context.WithCancel(context.Background())
	return &drain{begun: begun, begin: begin, delay: delay}
}

// reasonDraining is that of calls which are sent away.
const reasonDraining = "DRAINING"

// draining reports whether the server is shutting down.
func (d *drain) draining() bool { return d.begun.Err() != nil }

// retryDelay returns when a caller should come back. It differs from call to call,
// so that not all come back at once.
func (d *drain) retryDelay() time.Duration {
	return d.delay/4 + rand.N(d.delay-d.delay/4) //nolint:gosec // to spread load takes no secret
}

// refusal is what callers are told that are sent away.
func (d *drain) refusal(retryAfter time.Duration) error {
	return &instance.Error{
		Kind:       instance.KindUnavailable,
		Reason:     reasonDraining,
		Message:    "the server is shutting down; nothing was changed by this call",
		RetryAfter: retryAfter,
	}
}

// end ends what lasts when the draining begins: streams, whose request is nil, and
// waits. It does so by their contexts.
func (d *drain) end(ctx context.Context, c call, next func(context.Context) error) error {
	if c.request != nil && c.method != instancedv1.InstanceService_WaitInstances_FullMethodName {
		return next(ctx)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.begun, cancel)()
	err := next(ctx)
	if err != nil && d.draining() && isCanceled(err) {
		return d.refusal(d.retryDelay())
	}
	return err
}

// interruptReceive ends streams that wait for their caller to speak, as those of
// reflection do: their handlers do not look at the context meanwhile.
func (d *drain) interruptReceive(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if info.IsClientStream {
		ss = interruptible{ss}
	}
	return handler(srv, ss)
}

// interruptible is a stream on which receiving ends with the context.
type interruptible struct{ grpc.ServerStream }

// RecvMsg leaves a receiver behind when the context ends first; it ends with the
// stream, which the handler is about to leave.
func (s interruptible) RecvMsg(m any) error {
	received := make(chan error, 1)
	go func() { received <- s.ServerStream.RecvMsg(m) }()
	select {
	case err := <-received:
		return err
	case <-s.Context().Done():
		return context.Cause(s.Context())
	}
}
