package client

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"math/rand/v2"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

const (
	defaultMaxAttempts = 4

	// baseDelay and maxDelay bound the backoff between attempts.
	baseDelay = 200 * time.Millisecond
	maxDelay  = 5 * time.Second

	// maxAsked bounds the retry delay that a service can ask for.
	maxAsked = 24 * time.Hour

	// maxDetours is how often a command that did not reach the owner is retried at once,
	// before it backs off. With several processes behind one name, chance decides which of
	// them is next.
	maxDetours = 4

	// takeover is for how long a command searches for the owner: a little longer than it takes
	// another process to take over from one that died.
	takeover = 15 * time.Second
)

// newToken returns a unique client token of 26 characters.
func newToken() string { return crand.Text() }

// attempts is the state of one call over its attempts.
type attempts struct {
	// until is until when a call that once reached the service is retried, whatever the
	// number of attempts; zero if only the number counts.
	until time.Time
	// through is whether the call is known to have reached the service.
	through bool
	// lost is whether any attempt may have been executed although it failed.
	lost bool
}

// retry repeats a call until it succeeds, fails permanently, or has used up its attempts. Its
// error is an *[Error].
func retry[Resp any](ctx context.Context, c *Client, made *attempts, call func(ctx context.Context, opts ...grpc.CallOption) (Resp, error)) (Resp, error) {
	maxAttempts := c.maxAttempts()
	ctx = c.outgoing(ctx)
	var search ownerSearch
	for attempt := 1; ; attempt++ {
		var server peer.Peer
		var trailer metadata.MD
		resp, err := call(ctx, grpc.Peer(&server), grpc.Trailer(&trailer))
		if err == nil {
			return resp, nil
		}
		e := newError(err, trailer)
		// Without an address the request was never sent.
		sent := server.Addr != nil
		made.through = made.through || sent
		made.lost = made.lost || e.OutcomeUnknown || answerLost(e) && (sent || !c.peers)
		delay, again := retryDelay(e, attempt), attempt < maxAttempts
		if made.through && !made.until.IsZero() {
			// The last attempt is at the very end.
			left := time.Until(made.until)
			delay, again = min(delay, left), left > 0
		}
		if e.Reason == reasonNotOwner && e.Metadata["owner"] != "" && c.oneProcess {
			// A retry would reach the same process.
			var none Resp
			return none, e
		}
		if e.Reason == reasonNotOwner && maxAttempts > 1 {
			attempt--
			again, delay = search.refused(e.Metadata["owner"], server.Addr, delay)
			again = again || c.reachedOwner.Load() && search.within()
		} else {
			search.news = true // the owner itself may have failed
		}
		if !again || !retryable(e) || !c.pause(ctx, e, delay) {
			var none Resp
			return none, e
		}
	}
}

func (c *Client) maxAttempts() int {
	return cmp.Or(c.opts.MaxAttempts, defaultMaxAttempts)
}

// retryable reports whether the same call may succeed soon: the service is unreachable or
// busy, or asks for a short delay.
func retryable(e *Error) bool {
	return !e.final && (e.Code == codes.Unavailable ||
		e.Code == codes.ResourceExhausted && e.RetryDelay > 0 && e.RetryDelay <= maxDelay)
}

// ownerSearch is a command's search for the process that owns the backend. It goes in rounds:
// immediate retries, which reach one process after the other, and then a backoff.
type ownerSearch struct {
	// since is when a process first rejected the command as not the owner.
	since time.Time
	// detours counts the rejections since the last backoff.
	detours int
	// owner is the owner named last, and named has the addresses of the processes that named it.
	owner string
	named map[string]bool
	// news is whether something was learned since the last backoff.
	news bool
}

// refused reports whether to retry, and after which delay, after the process at an address has
// rejected the command and named the owner, if any. If one is named, the next attempt will
// probably reach it and is made at once. A round without news shows that the owner is not
// among the reachable processes. If none is named, a process is about to take over.
func (s *ownerSearch) refused(owner string, address net.Addr, delay time.Duration) (bool, time.Duration) {
	if s.since.IsZero() {
		s.since = time.Now()
	}
	if owner != s.owner {
		s.owner, s.named = owner, nil
	}
	if owner == "" || address == nil {
		s.news = true
	} else if !s.named[address.String()] {
		if s.named == nil {
			s.named = make(map[string]bool)
		}
		s.named[address.String()], s.news = true, true
	}
	if owner != "" && s.detours < maxDetours {
		s.detours++
		return true, 0
	}
	again := s.news && s.within()
	s.detours, s.news = 0, false
	return again, delay
}

// within reports whether there is time left to search.
func (s *ownerSearch) within() bool { return time.Since(s.since) < takeover }

// retryDelay returns how long to wait after a number of consecutive failures: at least what
// the service asks for, and an exponential backoff. It is jittered, so that clients that
// failed together do not come back together.
func retryDelay(e *Error, failures int) time.Duration {
	asked := min(e.RetryDelay, maxAsked)
	spread := min(asked/4, maxDelay)
	return max(asked+rand.N(spread+1), backoffDelay(failures)) //nolint:gosec // jitter needs no secure randomness
}

// backoffDelay is the exponential backoff, of which up to one half is jitter.
func backoffDelay(failures int) time.Duration {
	d := maxDelay
	if shift := failures - 1; shift < 16 {
		d = min(d, baseDelay<<shift)
	}
	return d/2 + rand.N(d/2+1) //nolint:gosec // as above
}

// pause reports a retry and waits for it. It returns false if the context ends first, at once
// if the deadline is too close.
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
