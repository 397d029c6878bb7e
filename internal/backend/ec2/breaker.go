package ec2

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

const (
	// openAfter is for how long calls must not have arrived before EC2 counts as out of reach:
	// one that does not says little.
	openAfter = 2 * time.Second
	// openMargin is how long EC2 stays known to be out of reach after what was let through last
	// has taken all the time that a call may. Where calls hang, what is known must not be
	// forgotten between the failures of two comparisons, which are 35 seconds apart then.
	openMargin = 20 * time.Second
	// probeInterval is how often a command or a question about instances tries while EC2 is out of
	// reach, unless something else has. The comparison of everything always does.
	probeInterval = 5 * time.Second
)

// breaker is what is known of the way to EC2. While it is known to lead nowhere, calls are
// refused at once, in place of waiting for connections that do not come about. It is safe
// for concurrent use.
type breaker struct {
	// onFailure is called while EC2 is out of reach, whenever a call did not arrive.
	onFailure func()
	// openFor is how long EC2 stays known to be out of reach after it was tried last.
	openFor time.Duration

	mu           sync.Mutex
	lastResponse time.Time // when EC2 last answered
	failingSince time.Time // when it was first noticed that a call did not arrive; zero after an answer
	target       string    // what did not answer
	lastAttempt  time.Time // when it was noticed last, or something was let through
}

// record takes note of how a call ended that began at a time; f is nil if it went well.
// A call whose caller was in a hurry says nothing.
func (r *breaker) record(ctx context.Context, began time.Time, f *failure) {
	now := time.Now()
	r.mu.Lock()
	switch {
	case f == nil || f.answered:
		r.lastResponse, r.failingSince = now, time.Time{}
	case f.unreachable && ctx.Err() == nil && !began.Before(r.lastResponse):
		if r.failingSince.IsZero() || now.Sub(r.lastAttempt) >= r.openFor {
			r.failingSince = now
		}
		r.lastAttempt, r.target = now, "EC2"
		if _, none := errors.AsType[*credentialsError](f.err.Cause); none {
			r.target = "the source of this service's own credentials"
		}
	}
	away := r.openErrLocked(now) != nil
	r.mu.Unlock()
	if away && f.unreachable {
		r.onFailure()
	}
}

// allow returns why nothing is worth a call. Once in a while something is all the same.
func (r *breaker) allow() *instance.Error {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.openErrLocked(now)
	if err != nil && now.Sub(r.lastAttempt) >= probeInterval {
		r.lastAttempt = now
		return nil
	}
	return err
}

// openErr returns an error while EC2 is out of reach.
func (r *breaker) openErr() *instance.Error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.openErrLocked(time.Now())
}

// openErrLocked is known for those who hold the lock. To return at different times spreads those
// who are refused together.
func (r *breaker) openErrLocked(now time.Time) *instance.Error {
	if r.failingSince.IsZero() || now.Sub(r.failingSince) < openAfter || now.Sub(r.lastAttempt) >= r.openFor {
		return nil
	}
	wait := max(retryUnavailable, probeInterval-now.Sub(r.lastAttempt))
	return &instance.Error{
		Kind:       instance.KindUnavailable,
		Reason:     instance.ReasonBackendUnavailable,
		Message:    fmt.Sprintf("%s cannot be reached since %s; nothing was changed by this call", r.target, r.failingSince.UTC().Format(time.DateTime+" GMT")),
		RetryAfter: wait + rand.N(wait), //nolint:gosec // to spread load takes no secret
	}
}
