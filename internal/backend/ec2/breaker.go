package ec2

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

const (
	// openAfter is how long calls must keep failing before the circuit opens; one failure proves
	// little.
	openAfter = 2 * time.Second
	// openMargin is how long the circuit stays open after the last attempt has had its full
	// timeout. Where calls hang, it must not close between two failed comparisons, which are 35
	// seconds apart then.
	openMargin = 20 * time.Second
	// probeInterval is how often a command or a query is let through while the circuit is open,
	// unless something else was. The comparison of everything always is.
	probeInterval = 5 * time.Second
)

// breaker is a circuit breaker for EC2. While EC2 is known to be unreachable, calls fail at once
// instead of waiting for connections that cannot be made. It is safe for concurrent use.
type breaker struct {
	// onFailure is called when a call could not reach EC2 and the circuit is open.
	onFailure func()
	// openFor is how long the circuit stays open after the last attempt.
	openFor time.Duration

	mu           sync.Mutex
	lastResponse time.Time
	failingSince time.Time // the first failure since the last response; zero for none
	target       string    // what could not be reached
	lastAttempt  time.Time // the last failure, or when something was let through
}

// record notes how a call ended that began at a time; f is nil if it succeeded. A call whose own
// context ended proves nothing.
func (b *breaker) record(ctx context.Context, began time.Time, f *failure) {
	now := time.Now()
	b.mu.Lock()
	switch {
	case f == nil || f.answered:
		b.lastResponse, b.failingSince = now, time.Time{}
	case f.unreachable && ctx.Err() == nil && !began.Before(b.lastResponse):
		if b.failingSince.IsZero() || now.Sub(b.lastAttempt) >= b.openFor {
			b.failingSince = now
		}
		b.lastAttempt, b.target = now, "EC2"
		if f.withoutCredentials() {
			b.target = "the source of this service's own credentials"
		}
	}
	open := b.openLocked(now)
	b.mu.Unlock()
	if open && f.unreachable {
		b.onFailure()
	}
}

// allow returns an error while the circuit is open, except once every probeInterval.
func (b *breaker) allow() *instance.Error {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.openErrLocked(now)
	if err != nil && now.Sub(b.lastAttempt) >= probeInterval {
		b.lastAttempt = now
		return nil
	}
	return err
}

// openErr returns an error while the circuit is open.
func (b *breaker) openErr() *instance.Error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.openErrLocked(time.Now())
}

// state returns whether the circuit is open, and when EC2 last answered.
func (b *breaker) state(now time.Time) (open bool, lastResponse time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.openLocked(now), b.lastResponse
}

func (b *breaker) openLocked(now time.Time) bool {
	return !b.failingSince.IsZero() && now.Sub(b.failingSince) >= openAfter && now.Sub(b.lastAttempt) < b.openFor
}

// openErrLocked is openErr for holders of the lock. Its RetryAfter is random, to spread the
// retries of callers that fail together.
func (b *breaker) openErrLocked(now time.Time) *instance.Error {
	if !b.openLocked(now) {
		return nil
	}
	wait := max(retryUnavailable, probeInterval-now.Sub(b.lastAttempt))
	return &instance.Error{
		Kind:       instance.KindUnavailable,
		Reason:     instance.ReasonBackendUnavailable,
		Message:    fmt.Sprintf("%s cannot be reached since %s; nothing was changed by this call", b.target, b.failingSince.UTC().Format(time.DateTime+" GMT")),
		RetryAfter: wait + rand.N(wait), //nolint:gosec // not a secret
	}
}
