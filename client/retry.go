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

	// The delays between tries grow from the first to the last of these.
	baseDelay = 200 * time.Millisecond
	maxDelay  = 5 * time.Second

	// maxAsked is the longest delay that a service may ask for: beyond it is nonsense.
	maxAsked = 24 * time.Hour

	// maxDetours is how often a command goes on at once to another process that may be
	// the owner, before it waits. With several processes behind one name, which of them is
	// next is a matter of chance.
	maxDetours = 4

	// takeover is for how long a command looks for the owner: a little longer than it takes
	// until another process follows one that has died.
	takeover = 15 * time.Second
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
	most := c.maxAttempts()
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
		if e.Reason == reasonNotOwner && e.Metadata["owner"] != "" && c.oneProcess {
			// It would say the same again, for as long as it is asked.
			var none Resp
			return none, e
		}
		if e.Reason == reasonNotOwner && most > 1 {
			attempt--
			again, delay = search.refused(e.Metadata["owner"], server.Addr, delay)
			again = again || c.reachedOwner.Load() && search.within()
		} else {
			search.news = true // perhaps it was the owner that failed
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

// retryable reports whether the same call may succeed soon: the service cannot be
// reached or is busy, or it says itself that a short wait will do.
func retryable(e *Error) bool {
	return !e.final && (e.Code == codes.Unavailable ||
		e.Code == codes.ResourceExhausted && e.RetryDelay > 0 && e.RetryDelay <= maxDelay)
}

// ownerSearch is the search of a command for the process that owns the backend. It goes in
// rounds: tries one right after the other, which reach one process after the other, and then
// a pause.
type ownerSearch struct {
	// since is when a process first refused because it is not the owner.
	since time.Time
	// detours counts the refusals since the last pause.
	detours int
	// owner is the one that was named last, and named has the addresses that named it.
	owner string
	named map[string]bool
	// news is whether something was learned since the last pause.
	news bool
}

// refused reports whether to try again, and after which delay, now that the process at an
// address has refused and has named the owner, or nobody. While one is named, the next try
// probably gets there, and is made at once. A whole round in which processes say again what
// they have said before shows that the owner is not among those that can be reached. Where
// nobody is named, another one is about to take over.
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

// retryDelay is how long to wait after the given number of failures in a row: at the
// least what the service asks for, and a time that doubles with each failure. A part of
// it is left to chance, so that those who failed together do not come back together.
func retryDelay(e *Error, failures int) time.Duration {
	asked := min(e.RetryDelay, maxAsked)
	spread := min(asked/4, maxDelay)
	return max(asked+rand.N(spread+1), backoffDelay(failures)) //nolint:gosec // chance spreads the retries; it guards nothing
}

// backoffDelay is the time that doubles; up to one half of it is left to chance.
func backoffDelay(failures int) time.Duration {
	d := maxDelay
	if shift := failures - 1; shift < 16 {
		d = min(d, baseDelay<<shift)
	}
	return d/2 + rand.N(d/2+1) //nolint:gosec // as above
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
