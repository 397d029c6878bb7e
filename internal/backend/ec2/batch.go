package ec2

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

const (
	// maxUnknownAttempts is how often the outcome of a batch may be unknown before its callers are
	// told so.
	maxUnknownAttempts = 4
	// minBackoff is how long a round waits before it repeats a call that came to nothing;
	// it doubles.
	minBackoff = 100 * time.Millisecond
	// checkTimeout is how long it may take to see what became of a call that EC2 did not
	// answer in time. Together they take less than the deadline of callers that bring none.
	checkTimeout = 7 * time.Second
)

// batchRun is a batch on its way: the calls that it takes until every caller has an outcome.
type batchRun struct {
	b    *Backend
	d    *dispatcher
	kind batchKey
	// paid is true while the tokens of the next call are taken already.
	paid bool
	// acquired are the instances that this round keeps busy.
	acquired []instance.ID
	// sent is when the last call went out.
	sent time.Time
	// appliedUnclaimed are changes that a call made although it failed, which no caller was told of.
	appliedUnclaimed map[instance.ID]instance.StateChange
	// unchangedAfterFailure are the instances that a failed call had not changed, as far as could be
	// seen.
	unchangedAfterFailure map[instance.ID]unchanged
	unknownAttempts       int // calls of unknown outcome
	// mayHaveActed is whether a failed call may have changed instances.
	mayHaveActed bool
	// answered counts the units that have an answer, not an error.
	answered int
}

// unchanged is what was seen of an instance after a call that may have changed it.
type unchanged struct {
	state instance.State
	sent  time.Time
}

// run gives every unit its outcome.
func (r *batchRun) run(ctx context.Context, group []item) {
	for len(group) > 0 {
		rest, f := r.attempt(ctx, group)
		switch {
		case f == nil:
			return
		case f.reaction == noCapacity:
			r.searchCapacity(ctx, rest, f)
			return
		}
		group = r.bisect(ctx, rest, f)
	}
}

// attempt makes calls until what is left of the group is answered, or is refused for a
// reason that names nobody: that is returned.
func (r *batchRun) attempt(ctx context.Context, group []item) (rest []item, f *failure) {
	for {
		var got map[instance.ID]instance.StateChange
		group, got, f = r.call(ctx, group)
		if len(group) == 0 {
			return nil, nil
		}
		if f == nil {
			r.deliverResponse(group, got)
			return nil, nil
		}
		switch f.reaction {
		case rejected, partial:
			if f.reaction == partial && len(group) > 1 {
				group = r.retryPartialTerminate(ctx, group, f)
				continue
			}
			if f.reaction == partial {
				group = r.checkOutcome(ctx, group, f)
			}
			if len(f.named) == 0 && !r.b.hooks.failEveryone {
				if len(group) > 1 {
					r.reportRejected(group)
				}
				return group, f
			}
			group = r.failNamed(group, f)
			r.reportRejected(group)
		case noCapacity:
			return group, f
		case unknownOutcome:
			group = r.resolveUnknown(ctx, group, f)
		case tooMany:
			r.splitTooLarge(ctx, group, f)
			return nil, nil
		case failAll, throttled:
			for _, u := range group {
				if f.answered {
					r.fail(u, f.errorFor(u.ids))
				} else {
					r.failUnsent(u, f.errorFor(u.ids))
				}
			}
			return nil, nil
		}
	}
}

// call makes one call, and the same again for as long as EC2 throttles. It returns those
// of the group that are still there, whom the answer or the failure concerns.
func (r *batchRun) call(ctx context.Context, group []item) ([]item, map[instance.ID]instance.StateChange, *failure) {
	var f *failure
	for throttles := 0; ; throttles++ {
		group = r.b.present(group)
		ids := distinct(group)
		if len(ids) == 0 {
			return nil, nil, nil
		}
		if wait := r.takeTokens(len(ids)); wait > 0 {
			r.release()
			group = r.failLate(group, wait, f)
			if err := r.pause(ctx, wait); err != nil {
				r.failEachUnsent(group, err)
				return nil, nil, nil
			}
			group = r.b.present(group)
			left := distinct(group)
			r.refund(len(ids) - len(left))
			if ids = left; len(ids) == 0 {
				return nil, nil, nil
			}
		}
		if !r.acquire(ids) {
			r.failEachUnsent(group, errClosing())
			return nil, nil, nil
		}
		if group = r.reportSent(group); len(group) == 0 {
			r.refund(len(ids))
			return nil, nil, nil
		}
		left := distinct(group)
		r.refund(len(ids) - len(left))
		ids = left
		r.sent = time.Now()
		var got map[instance.ID]instance.StateChange
		got, f = r.b.client.mutate(ctx, r.kind, ids)
		switch {
		case f == nil && r.kind.verb == instance.VerbReboot && r.kind.dryRun == 0:
			got = r.rebooted(ctx, ids)
		case f == nil && r.kind.dryRun != 0:
			f = &failure{reaction: failAll, err: &instance.Error{Kind: instance.KindInternal, Message: "EC2 did not answer a dry run with an error"}}
		case f == nil && len(missingIn(got, ids)) > 0:
			group, f = r.deliverPartial(group, got)
		}
		if f == nil {
			return group, got, nil
		}
		if f.reaction != unknownOutcome {
			r.refund(len(ids))
		}
		if f.reaction != throttled {
			f = r.adjust(f, len(ids))
			r.mayHaveActed = r.mayHaveActed || f.reaction == unknownOutcome || f.reaction == noCapacity || f.reaction == partial
			return group, nil, f
		}
		r.reportRejected(group)
		r.onThrottle(throttles, len(ids))
	}
}

// adjust says what a failure means for a call of this kind.
func (r *batchRun) adjust(f *failure, asked int) *failure {
	switch {
	case r.kind.dryRun != 0:
		// It changes nothing, and is for one caller.
		f.reaction = failAll
	case r.kind.verb == instance.VerbTerminate && f.err.Code == instance.CodeOperationNotPermitted && asked > 1:
		// EC2 spares the Availability Zones of protected instances only.
		f.reaction = partial
	case f.reaction == noCapacity && r.kind.verb != instance.VerbStart:
		f.reaction = rejected
	}
	return f
}

// missingIn returns the ids that an answer has no line for.
func missingIn(got map[instance.ID]instance.StateChange, ids []instance.ID) (missing []instance.ID) {
	for _, id := range ids {
		if _, ok := got[id]; !ok {
			missing = append(missing, id)
		}
	}
	return missing
}

// takeTokens takes the tokens of a call and returns when they will have been there.
func (r *batchRun) takeTokens(n int) time.Duration {
	if r.paid {
		r.paid = false
		return 0
	}
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	now := time.Now()
	wait := r.d.requests.take(now, 1)
	if r.d.instances != nil && r.kind.dryRun == 0 {
		wait = max(wait, r.d.instances.take(now, float64(n)))
	}
	return wait
}

// refund gives the tokens of instances back that EC2 has not used.
func (r *batchRun) refund(n int) {
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	if r.d.instances != nil && r.kind.dryRun == 0 {
		r.d.instances.give(float64(n))
	}
}

// onThrottle corrects a bucket after EC2 throttled a call for n instances. EC2 does not say
// which of its two buckets was empty: first it was that of requests, then by turns; and
// that of instances is short of ever more.
func (r *batchRun) onThrottle(throttles, n int) {
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	now := time.Now()
	if throttles%2 == 0 || r.d.instances == nil || r.kind.dryRun != 0 {
		r.d.requests.onThrottle(now, 1, 1)
		return
	}
	short := min(float64(n), float64(uint64(1)<<min(throttles/2, 20)))
	r.d.instances.onThrottle(now, float64(n), short)
}

// acquire keeps the instances busy, once no other round does. It is false when the backend
// is closing.
func (r *batchRun) acquire(ids []instance.ID) bool {
	if r.kind.dryRun != 0 {
		return true
	}
	b := r.b
	b.mu.Lock()
	defer b.mu.Unlock()
	taken := func(id instance.ID) bool { return b.busy[id] != nil && b.busy[id] != r }
	for slices.ContainsFunc(ids, taken) && !b.closed {
		b.freed.Wait()
	}
	if b.closed {
		return false
	}
	grown := false
	for _, id := range ids {
		if b.busy[id] == nil {
			b.busy[id] = r
			r.acquired = append(r.acquired, id)
			grown = true
		}
	}
	if grown {
		for _, d := range b.desks {
			d.stale = true
		}
	}
	return true
}

// release lets others change the instances of the round.
func (r *batchRun) release() {
	b := r.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(r.acquired) == 0 {
		return
	}
	for _, id := range r.acquired {
		delete(b.busy, id)
	}
	r.acquired = nil
	b.freed.Broadcast()
	for _, d := range b.desks {
		b.pump(d)
	}
}

// reportSent says that a request for a group is about to be written, and returns those of the
// group who have not left by then.
func (r *batchRun) reportSent(group []item) []item {
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	group = presentLocked(group)
	if r.kind.dryRun == 0 {
		report(group, func(c *instance.Command) func([]instance.ID) { return c.Sent })
	}
	return group
}

// reportRejected says that the last call changed none of a group, which is to be sent again.
// After a call that may have acted nobody can say so.
func (r *batchRun) reportRejected(group []item) {
	if r.mayHaveActed || r.kind.dryRun != 0 {
		return
	}
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	report(group, func(c *instance.Command) func([]instance.ID) { return c.Rejected })
}

// report calls a callback of each caller in a group with its instances.
func report(group []item, callback func(*instance.Command) func([]instance.ID)) {
	for len(group) > 0 {
		c, ids, n := group[0].request, group[0].ids, 1
		for ; n < len(group) && group[n].request == c; n++ {
			ids = append(ids, group[n].ids...)
		}
		if tell := callback(&c.cmd); tell != nil {
			tell(ids)
		}
		group = group[n:]
	}
}

// present leaves out the units of callers who have gone.
func (b *Backend) present(group []item) []item {
	b.mu.Lock()
	defer b.mu.Unlock()
	return presentLocked(group)
}

func presentLocked(group []item) []item {
	return slices.DeleteFunc(slices.Clone(group), func(u item) bool { return u.gone })
}

// pause waits; it returns why not when the round, or the term, ends first.
func (r *batchRun) pause(ctx context.Context, d time.Duration) *instance.Error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-r.kind.ended():
		return instance.CheckTerm(r.kind.term)
	case <-ctx.Done():
		return errClosing()
	}
}

// pause waits; it is false when ctx is done first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// jitter draws a pause around d, so that those who failed together do not come back
// together.
func jitter(d time.Duration) time.Duration {
	return d/2 + rand.N(d) //nolint:gosec // nothing secret
}
