package ec2

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/instanced/instanced/internal/backend/ec2/dispatch"
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

// batchRun carries a batch out: it makes the calls that it takes until every item has an
// outcome. One goroutine owns it.
type batchRun struct {
	b     *Backend
	batch *dispatch.Batch
	work  workList
	// sent is when the last call went out.
	sent time.Time
	// appliedUnclaimed are changes that a call made although it failed, and that no caller was
	// told of.
	appliedUnclaimed map[instance.ID]instance.StateChange
	// unchangedAfterFailure are the instances that a failed call had not changed, as far as
	// could be seen.
	unchangedAfterFailure map[instance.ID]unchanged
	unknownAttempts       int // calls of unknown outcome
	// mayHaveActed is whether a failed call may have changed instances.
	mayHaveActed bool
	// answered counts the items that have a result, not an error.
	answered int
}

func newBatchRun(b *Backend, batch *dispatch.Batch) *batchRun {
	return &batchRun{
		b: b, batch: batch,
		appliedUnclaimed:      make(map[instance.ID]instance.StateChange),
		unchangedAfterFailure: make(map[instance.ID]unchanged),
	}
}

// unchanged is what was seen of an instance after a call that may have changed it.
type unchanged struct {
	state instance.State
	sent  time.Time
}

// attempt makes calls until what is left of the group is answered, or is refused for a
// reason that names nobody: that is returned.
func (r *batchRun) attempt(ctx context.Context, group []*dispatch.Item) (rest []*dispatch.Item, f *failure) {
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
				rest := r.retryPartialTerminate(ctx, group, f)
				if len(rest) == len(group) {
					return rest, f // it names none of them
				}
				group = rest
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
			r.splitTooLarge(group, f)
			return nil, nil
		case failAll, throttled:
			for _, u := range group {
				if f.answered {
					r.fail(u, f.errorFor(u.IDs))
				} else {
					r.failUnsent(u, f.errorFor(u.IDs))
				}
			}
			return nil, nil
		}
	}
}

// call makes one call, and the same again for as long as EC2 throttles. It returns those
// of the group that are still there, whom the answer or the failure concerns.
func (r *batchRun) call(ctx context.Context, group []*dispatch.Item) ([]*dispatch.Item, map[instance.ID]instance.StateChange, *failure) {
	var f *failure
	for throttles := 0; ; throttles++ {
		group = r.b.dispatcher.Present(group)
		ids := dispatch.DistinctIDs(group)
		if len(ids) == 0 {
			return nil, nil, nil
		}
		if wait := r.b.dispatcher.TakeTokens(r.batch, len(ids)); wait > 0 {
			r.b.dispatcher.Release(r.batch)
			group = r.failLate(group, wait, f)
			if err := r.pause(ctx, wait); err != nil {
				r.failEachUnsent(group, err)
				return nil, nil, nil
			}
			group = r.b.dispatcher.Present(group)
			left := dispatch.DistinctIDs(group)
			r.b.dispatcher.Refund(r.batch, len(ids)-len(left))
			if ids = left; len(ids) == 0 {
				return nil, nil, nil
			}
		}
		if !r.b.dispatcher.Acquire(r.batch, ids) {
			r.failEachUnsent(group, dispatch.ErrClosing())
			return nil, nil, nil
		}
		if group = r.b.dispatcher.ReportSent(r.batch, group); len(group) == 0 {
			r.b.dispatcher.Refund(r.batch, len(ids))
			return nil, nil, nil
		}
		left := dispatch.DistinctIDs(group)
		r.b.dispatcher.Refund(r.batch, len(ids)-len(left))
		ids = left
		r.sent = time.Now()
		var got map[instance.ID]instance.StateChange
		got, f = r.b.client.mutate(ctx, r.batch.Key, ids)
		switch {
		case f == nil && r.batch.Verb == instance.VerbReboot && !r.batch.DryRun:
			got = r.rebooted(ctx, ids)
		case f == nil && r.batch.DryRun:
			f = &failure{reaction: failAll, err: &instance.Error{Kind: instance.KindInternal, Message: "EC2 did not answer a dry run with an error"}}
		case f == nil && len(missingIn(got, ids)) > 0:
			group, f = r.deliverPartial(group, got)
		}
		if f == nil {
			return group, got, nil
		}
		if f.reaction != unknownOutcome {
			r.b.dispatcher.Refund(r.batch, len(ids))
		}
		if f.reaction != throttled {
			f = r.adjust(f, len(ids))
			r.mayHaveActed = r.mayHaveActed || f.reaction == unknownOutcome || f.reaction == noCapacity || f.reaction == partial
			return group, nil, f
		}
		r.reportRejected(group)
		r.b.dispatcher.OnThrottle(r.batch, throttles, len(ids))
	}
}

// adjust says what a failure means for a call of this kind.
func (r *batchRun) adjust(f *failure, asked int) *failure {
	switch {
	case r.batch.DryRun:
		// It changes nothing, and is for one caller.
		f.reaction = failAll
	case r.batch.Verb == instance.VerbTerminate && f.err.Code == instance.CodeOperationNotPermitted && asked > 1:
		// EC2 spares the Availability Zones of protected instances only.
		f.reaction = partial
	case f.reaction == noCapacity && r.batch.Verb != instance.VerbStart:
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

// reportRejected says that the last call changed none of a group, which is to be sent again.
// After a call that may have acted nobody can say so.
func (r *batchRun) reportRejected(group []*dispatch.Item) {
	if r.mayHaveActed || r.batch.DryRun {
		return
	}
	r.b.dispatcher.ReportRejected(group)
}

// pause waits; it returns why not when the round, or the term, ends first.
func (r *batchRun) pause(ctx context.Context, d time.Duration) *instance.Error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ended(r.batch.Term):
		return instance.CheckTerm(r.batch.Term)
	case <-ctx.Done():
		return dispatch.ErrClosing()
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
