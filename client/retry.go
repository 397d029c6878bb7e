package client

import (
	"context"
	crand "crypto/rand"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
)

const (
	defaultMaxAttempts = 4

	// The delays between tries grow from the first to the last of these.
	baseDelay = 200 * time.Millisecond
	maxDelay  = 5 * time.Second
)

// newToken returns a client token of 26 characters that nobody else has.
func newToken() string { return crand.Text() }

// tries are those of one call.
type tries struct {
	// until is when a call that has once got through is given up; the zero time if it
	// is no reason to go on.
	until time.Time
	// through is whether the call is known to have got through to the service.
	through bool
	// lost is whether any try may have been carried out although it failed.
	lost bool
}

// retry makes a call until it succeeds, fails for good, or has been made often
// enough. Its error is an *[Error].
func retry[Resp any](ctx context.Context, c *Client, made *tries, call func(ctx context.Context, opts ...grpc.CallOption) (Resp, error)) (Resp, error) {
	most := c.opts.MaxAttempts
	if most == 0 {
		most = defaultMaxAttempts
	}
	ctx = c.outgoing(ctx)
	for attempt := 1; ; attempt++ {
		var server peer.Peer
		resp, err := call(ctx, grpc.Peer(&server))
		if err == nil {
			return resp, nil
		}
		e := newError(err)
		// Without an address the call never left.
		sent := server.Addr != nil
		made.through = made.through || sent
		made.lost = made.lost || e.OutcomeUnknown || answerLost(e) && (sent || !c.peers)
		delay, again := retryDelay(e, attempt), attempt < most
		if made.through && !made.until.IsZero() {
			// The last try is at the very end.
			left := time.Until(made.until)
			delay, again = min(delay, left), left > 0
		}
		if !again || !retryable(e) || !c.pause(ctx, e, delay) {
			var none Resp
			return none, e
		}
	}
}

// retryable reports whether the same call may succeed soon: the service cannot be
// reached or is busy, or it says itself that a short wait will do.
func retryable(e *Error) bool {
	return e.Code == codes.Unavailable ||
		e.Code == codes.ResourceExhausted && e.RetryDelay > 0 && e.RetryDelay <= maxDelay
}

// retryDelay is how long to wait after the given number of failures in a row: what
// the service asks for, and at the least a time that doubles with each failure and
// of which up to one half is left to chance.
func retryDelay(e *Error, failures int) time.Duration {
	return max(e.RetryDelay, backoffDelay(failures))
}

func backoffDelay(failures int) time.Duration {
	d := maxDelay
	if shift := failures - 1; shift < 16 {
		d = min(d, baseDelay<<shift)
	}
	return d/2 + rand.N(d/2+1) //nolint:gosec // chance spreads the retries; it guards nothing
}

// pause tells of a retry and waits for it. It is false, at once where possible, when
// the context ends first.
func (c *Client) pause(ctx context.Context, cause error, delay time.Duration) bool {
	if ctx.Err() != nil {
		return false
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= delay {
		return false
	}
	if c.opts.OnRetry != nil {
		c.opts.OnRetry(cause, delay)
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
