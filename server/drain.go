package server

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/instanced/instanced/internal/admission"
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

// refusal returns the error for calls that draining ends.
func (d *drain) refusal(retryAfter time.Duration) error {
	return admission.ErrDraining(retryAfter)
}

// interrupt returns a context for a stream or wait that is canceled when draining begins.
// The caller must release it.
func (d *drain) interrupt(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(d.begun, cancel)
	return ctx, func() { stop(); cancel() }
}

// explain returns the error of a long-lived call: that of draining, if draining interrupted
// it.
func (d *drain) explain(err error) error {
	if err != nil && d.draining() && isCanceled(err) {
		return d.refusal(d.retryDelay())
	}
	return err
}
