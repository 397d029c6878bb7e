package ec2query

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/admission"
	"github.com/instanced/instanced/internal/instance"
)

// invocationHeader has the same value in all attempts that an SDK makes of one call.
const (
	invocationHeader   = "Amz-Sdk-Invocation-Id"
	maxInvocationBytes = 64
)

const (
	// maxRemembered is how many lines of answers are remembered, shared by principal.
	maxRemembered = 1 << 16
	// rememberedFor is how long an answer is remembered: as long as SDKs may be retrying. So a
	// program that uses one id for all its calls does not get the same answer forever.
	rememberedFor = 15 * time.Minute
)

// dedup gives all attempts that an SDK makes of one command the same outcome: an attempt
// joins an earlier one in flight, and gets the answer of one that succeeded. EC2 has no client
// tokens for these commands, and SDKs repeat them when a connection breaks. Without dedup, the
// second attempt would report that another caller did what the first one did, or would do it
// again after another caller undid it.
//
// It is in memory and bounded: when a principal has its share of the lines, its oldest answers
// make room for its next ones.
type dedup struct {
	mu       sync.Mutex
	attempts map[invocation]*attempt
	answers  admission.Queue[*attempt] // attempts that have succeeded, by principal
	lines    instance.Shares           // of answers, by principal
}

func newDedup(lines int) *dedup {
	return &dedup{attempts: make(map[invocation]*attempt), lines: instance.NewShares(lines)}
}

// attempt is a command in flight, or its answer.
type attempt struct {
	key       invocation
	principal string
	done      chan struct{}
	changes   []instance.StateChange
	err       error
	// ended and entry are only used for answers.
	ended time.Time
	entry admission.Entry[*attempt]
}

// lines returns how many lines the answer takes.
func (t *attempt) lines() int { return len(t.changes) + 1 }

// invocation identifies a command of a caller.
type invocation [sha256.Size]byte

// invocationOf returns nil if the request has no invocation id.
func invocationOf(r *http.Request, principal, form string) *invocation {
	id := r.Header.Get(invocationHeader)
	if id == "" || len(id) > maxInvocationBytes {
		return nil
	}
	h := sha256.New()
	fmt.Fprintf(h, "%d:%s%d:%s%s\n%s", len(principal), principal, len(id), id, r.URL.RawQuery, form)
	return new(invocation(h.Sum(nil)))
}

// once runs a command, unless an attempt of it is in flight or has succeeded. The command
// goes on after its caller has left, who may be about to retry.
func (r *dedup) once(ctx context.Context, principal string, key invocation, run func() ([]instance.StateChange, error)) ([]instance.StateChange, error) {
	for {
		r.mu.Lock()
		r.expireLocked()
		earlier := r.attempts[key]
		if earlier == nil {
			break
		}
		r.mu.Unlock()
		select {
		case <-earlier.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if earlier.err == nil {
			return earlier.changes, nil
		}
	}
	t := &attempt{key: key, principal: principal, done: make(chan struct{})}
	r.attempts[key] = t
	r.mu.Unlock()

	defer close(t.done)
	t.err = errInterrupted
	defer r.remember(t)
	t.changes, t.err = run()
	return t.changes, t.err
}

// remember remembers an answer, for which the oldest answers of its principal make room. A
// failure, and an answer too long for its principal's share, are forgotten at once.
func (r *dedup) remember(t *attempt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t.err != nil {
		delete(r.attempts, t.key)
		return
	}
	t.changes = slices.Clone(t.changes)
	for i := range t.changes {
		t.changes[i].After = nil // the response has no room for images, which take memory
	}
	for !r.lines.Take(t.principal, t.lines()) {
		oldest := r.answers.FirstOf(t.principal)
		if oldest == nil {
			delete(r.attempts, t.key)
			return
		}
		r.forgetLocked(oldest.Value)
	}
	t.ended = time.Now()
	t.entry.Value = t
	r.answers.Add(&t.entry, t.principal)
}

// expireLocked forgets answers that are too old.
func (r *dedup) expireLocked() {
	for oldest := r.answers.First(); oldest != nil && time.Since(oldest.Value.ended) > rememberedFor; oldest = r.answers.First() {
		r.forgetLocked(oldest.Value)
	}
}

func (r *dedup) forgetLocked(t *attempt) {
	delete(r.attempts, t.key)
	r.answers.Remove(&t.entry)
	r.lines.Give(t.principal, t.lines())
	if r.lines.Held(t.principal) == 0 {
		r.answers.Forget(t.principal)
	}
}

// errInterrupted is the error of an attempt that panicked.
var errInterrupted = &instance.Error{Kind: instance.KindInternal, Message: "the first attempt of the call did not end"}
