package server

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/instanced/instanced/internal/admission"
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

// draining reports whether the server is shutting down.
func (d *drain) draining() bool { return d.begun.Err() != nil }

// retryDelay returns when a caller should come back. It differs from call to call,
// so that not all come back at once.
func (d *drain) retryDelay() time.Duration {
	return d.delay/4 + rand.N(d.delay-d.delay/4) //nolint:gosec // to spread load takes no secret
}

// refusal is what callers are told that are sent away.
func (d *drain) refusal(retryAfter time.Duration) error {
	return admission.ErrDraining(retryAfter)
}

// interrupt returns a context that ends when the draining begins, for what lasts: streams
// and waits. It is to be released.
func (d *drain) interrupt(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(d.begun, cancel)
	return ctx, func() { stop(); cancel() }
}

// explain returns the error of what lasted, which is that of the draining if it was
// interrupted.
func (d *drain) explain(err error) error {
	if err != nil && d.draining() && isCanceled(err) {
		return d.refusal(d.retryDelay())
	}
	return err
}
