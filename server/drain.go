package server

import (
	"context"
	"math/rand/v2"
	"time"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/admission"
	"github.com/instanced/instanced/internal/instance"
)

// drain ends long-lived calls on shutdown. grpc-go does not tell handlers about a graceful
// stop, and waits for them forever.
type drain struct {
	begun context.Context // canceled when draining begins; not the context of a call
	begin context.CancelFunc
	delay time.Duration
}

func newDrain(delay time.Duration) *drain {
	begun, begin := context.WithCancel(context.Background())
	return &drain{begun: begun, begin: begin, delay: delay}
}

// draining reports whether the server is shutting down.
func (d *drain) draining() bool { return d.begun.Err() != nil }

// retryDelay returns after what time a caller should retry. It is randomized, so that
// callers do not all come back at once.
func (d *drain) retryDelay() time.Duration {
	return d.delay/4 + rand.N(d.delay-d.delay/4) //nolint:gosec // to spread load takes no secret
}

// interrupt returns a context for a stream or wait that is canceled when draining begins, or
// when the client certificate is no longer valid. The caller must release it.
func (d *drain) interrupt(ctx context.Context) (context.Context, func()) {
	client := connectionOf(ctx).tls
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(d.begun, cancel)
	if client == nil {
		return ctx, func() { stop(); cancel() }
	}
	stopRevoked := context.AfterFunc(client.revoked, cancel)
	return ctx, func() { stop(); stopRevoked(); cancel() }
}

// interruption returns why a long-lived call that ended with an error was interrupted, for its
// goodbye, and its error; nil if it was not.
func (d *drain) interruption(ctx context.Context, err error) (instancedv1.GoodbyeReason, *instance.Error) {
	if err == nil || !isCanceled(err) {
		return instancedv1.GoodbyeReason_GOODBYE_REASON_UNSPECIFIED, nil
	}
	if d.draining() {
		return instancedv1.GoodbyeReason_GOODBYE_REASON_DRAIN, admission.ErrDraining(d.retryDelay())
	}
	if client := connectionOf(ctx).tls; client != nil && client.revoked.Err() != nil {
		return instancedv1.GoodbyeReason_GOODBYE_REASON_REAUTHENTICATE, errReauthenticate(idleInterval)
	}
	return instancedv1.GoodbyeReason_GOODBYE_REASON_UNSPECIFIED, nil
}

// explain returns the error of a long-lived call: why it was interrupted, if it was.
func (d *drain) explain(ctx context.Context, err error) error {
	if _, interrupted := d.interruption(ctx, err); interrupted != nil {
		return interrupted
	}
	return err
}
