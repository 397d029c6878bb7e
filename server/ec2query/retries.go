package ec2query

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// invocationHeader is the same on all tries that an SDK makes of one call.
const (
	invocationHeader   = "Amz-Sdk-Invocation-Id"
	maxInvocationBytes = 64
)

// What is remembered: so many lines of answers, each for as long as SDKs may be trying. A
// program that gives all its calls one id is not told for ever what was once.
const (
	maxRemembered = 1 << 16
	remembered    = 15 * time.Minute
)

// retries lets the tries that an SDK makes of one command have one outcome: a try joins
// an earlier one that is under way, and gets the answer of one that has succeeded. EC2
// has no client tokens on these commands, and SDKs repeat them when a connection breaks:
// else the second try would say that somebody else has done what the first one did, or
// do it again after somebody else has undone it.
//
// It is in memory, and holds the last answers only.
type retries struct {
	mu    sync.Mutex
	tries map[invocation]*try
	order []invocation // of those that have succeeded, the oldest first
	lines int
}

// try is a command under way, or its answer.
type try struct {
	done    chan struct{}
	ended   time.Time
	changes []instance.StateChange
	err     error
}

// invocation names a command of a caller.
type invocation [sha256.Size]byte

// invocationOf returns nil when there is nothing to name a command by.
func invocationOf(r *http.Request, principal, form string) *invocation {
	id := r.Header.Get(invocationHeader)
	if id == "" || len(id) > maxInvocationBytes {
		return nil
	}
	h := sha256.New()
	fmt.Fprintf(h, "%d:%s%d:%s%s\n%s", len(principal), principal, len(id), id, r.URL.RawQuery, form)
	return new(invocation(h.Sum(nil)))
}

// once runs a command, unless a try of it is under way or has succeeded. The command goes
// on when the caller leaves, who may be about to try again.
func (r *retries) once(ctx context.Context, key invocation, run func() ([]instance.StateChange, error)) ([]instance.StateChange, error) {
	for {
		r.mu.Lock()
		r.forget()
		earlier := r.tries[key]
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
	if r.tries == nil {
		r.tries = make(map[invocation]*try)
	}
	t := &try{done: make(chan struct{})}
	r.tries[key] = t
	r.mu.Unlock()

	defer close(t.done)
	t.err = errInterrupted
	defer r.settle(key, t)
	t.changes, t.err = run()
	return t.changes, t.err
}

// settle remembers an answer and forgets the oldest ones; a failure is forgotten at once.
func (r *retries) settle(key invocation, t *try) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t.err != nil {
		delete(r.tries, key)
		return
	}
	t.changes = slices.Clone(t.changes)
	for i := range t.changes {
		t.changes[i].After = nil // an image is not told, and would be kept in memory
	}
	r.order = append(r.order, key)
	r.lines += len(t.changes) + 1
	t.ended = time.Now()
	r.forget()
}

// forget forgets the answers that are too old or too many.
func (r *retries) forget() {
	for len(r.order) > 0 && (r.lines > maxRemembered || time.Since(r.tries[r.order[0]].ended) > remembered) {
		oldest := r.order[0]
		r.order = r.order[1:]
		r.lines -= len(r.tries[oldest].changes) + 1
		delete(r.tries, oldest)
	}
}

// errInterrupted is the outcome of a try that panicked.
var errInterrupted = &instance.Error{Kind: instance.KindInternal, Message: "the first try of the call did not end"}
