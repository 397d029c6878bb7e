package ec2

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/instanced/instanced/internal/backend/ec2/dispatch"
	"github.com/instanced/instanced/internal/instance"
)

const (
	// maxUnknownAttempts is how many calls of a batch may have an unknown outcome before callers
	// are told so.
	maxUnknownAttempts = 4
	// minBackoff is the first pause before a retry; it doubles.
	minBackoff = 100 * time.Millisecond
	// checkTimeout bounds the check of what became of a call that timed out. Call and check
	// take less than the default deadline of callers.
	checkTimeout = 7 * time.Second
)

// batchRun carries a batch out, in as many calls as it takes until every item has its outcome.
// One goroutine owns it.
type batchRun struct {
	b       *Backend
	batch   *dispatch.Batch
	metrics *actionMetrics
	work    workList
	// sent is when the last call was made.
	sent time.Time
	// appliedUnclaimed are changes made by calls that failed, and not yet reported to a caller.
	appliedUnclaimed map[instance.ID]instance.StateChange
	// unchangedAfterFailure are the instances that a failed call had not changed when EC2
	// described them.
	unchangedAfterFailure map[instance.ID]unchanged
	// unseenAfterFailure are the instances that were missing, or could not be read, when EC2
	// described the others after a failed call.
	unseenAfterFailure map[instance.ID]bool
	unknownAttempts    int // calls of unknown outcome
	// mayHaveActed is whether a failed call may have changed instances.
	mayHaveActed bool
	// answered counts the items that have a result, not an error.
	answered int
}

func newBatchRun(b *Backend, batch *dispatch.Batch) *batchRun {
	return &batchRun{
		b: b, batch: batch, metrics: b.metrics.actions[batch.Verb],
		appliedUnclaimed:      make(map[instance.ID]instance.StateChange),
		unchangedAfterFailure: make(map[instance.ID]unchanged),
		unseenAfterFailure:    make(map[instance.ID]bool),
	}
}

// unchanged is the description of an instance after a call that may have changed it.
type unchanged struct {
	state instance.State
	sent  time.Time
}

// attempt makes calls until every item of the group has its outcome. What is left when EC2 rejects
// it without naming any item is returned with that failure.
func (r *batchRun) attempt(ctx context.Context, group []*dispatch.Item) (rest []*dispatch.Item, f *failure) {
	for {
		var got map[instance.ID]instance.StateChange
		if f != nil && len(group) > 0 {
			r.metrics.retries[f.reaction].Inc()
		}
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
					r.reportRequeued(group)
				}
				return group, f
			}
			group = r.failNamed(group, f)
			r.reportRequeued(group)
		case noCapacity:
			return group, f
		case unknownOutcome:
			group = r.resolveUnknown(ctx, group, f)
		case tooMany:
			r.splitTooLarge(group, f)
			return nil, nil
		case failAll, throttled:
			for _, it := range group {
				if f.answered {
					r.fail(it, f.errorFor(it.IDs))
				} else {
					r.failUnsent(it, f.errorFor(it.IDs))
				}
			}
			return nil, nil
		}
	}
}

// call makes one call, and repeats it while EC2 throttles. It returns the items to which the
// response or the failure applies: callers may leave before it is sent.
func (r *batchRun) call(ctx context.Context, group []*dispatch.Item) ([]*dispatch.Item, map[instance.ID]instance.StateChange, *failure) {
	var got map[instance.ID]instance.StateChange
	var f *failure
	for throttles := 0; ; throttles++ {
		if group = r.waitForTokens(ctx, group, f); len(group) == 0 {
			return nil, nil, nil
		}
		group, got, f = r.callOnce(ctx, group)
		if f == nil || f.reaction != throttled {
			return group, got, f
		}
		r.reportRequeued(group)
		r.metrics.retries[throttled].Inc()
		r.b.dispatcher.OnThrottle(r.batch, throttles, len(dispatch.DistinctIDs(group)))
	}
}

// waitForTokens takes the tokens of the next call, and waits until they are there. It returns the
// items whose callers are still there. The failure is that of the last call if EC2 throttled it.
func (r *batchRun) waitForTokens(ctx context.Context, group []*dispatch.Item, f *failure) []*dispatch.Item {
	group = r.b.dispatcher.Present(group)
	if len(group) == 0 {
		return nil
	}
	wait := r.b.dispatcher.TakeTokens(r.batch, len(dispatch.DistinctIDs(group)))
	if wait == 0 {
		return group
	}
	r.b.dispatcher.Release(r.batch)
	traceWait(ctx, wait)
	if group = r.failLate(group, wait, f); len(group) == 0 {
		return nil
	}
	waiting := float64(len(dispatch.DistinctIDs(group)))
	r.metrics.retrying.Add(waiting)
	err := r.pause(ctx, wait)
	r.metrics.retrying.Sub(waiting)
	if err != nil {
		r.failEachUnsent(group, err)
		return nil
	}
	return r.b.dispatcher.Present(group)
}

// callOnce makes one call. It returns the items to which the response or the failure applies.
func (r *batchRun) callOnce(ctx context.Context, group []*dispatch.Item) ([]*dispatch.Item, map[instance.ID]instance.StateChange, *failure) {
	if !r.b.dispatcher.Acquire(r.batch, dispatch.DistinctIDs(group)) {
		r.failEachUnsent(group, dispatch.ErrClosing())
		return nil, nil, nil
	}
	group, ids := r.b.dispatcher.ReportSent(r.batch, group)
	if len(group) == 0 {
		return nil, nil, nil
	}
	r.sent = time.Now()
	r.metrics.instances.Observe(float64(len(ids)))
	r.metrics.requests.Observe(float64(r.b.dispatcher.CountRequests(group)))
	got, f := r.b.client.mutate(ctx, r.batch.Key, ids)
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
	}
	return group, nil, f
}

// adjust returns what a failure means for a call with this verb and options.
func (r *batchRun) adjust(f *failure, asked int) *failure {
	switch {
	case r.batch.DryRun:
		// It changes nothing, and concerns one caller.
		f.reaction = failAll
	case r.batch.Verb == instance.VerbTerminate && f.err.Code == instance.CodeOperationNotPermitted && asked > 1:
		// EC2 has terminated the instances in the Availability Zones without protected ones.
		f.reaction = partial
	case f.reaction == noCapacity && r.batch.Verb != instance.VerbStart:
		f.reaction = rejected
	}
	return f
}

// missingIn returns the ids that a response does not cover.
func missingIn(got map[instance.ID]instance.StateChange, ids []instance.ID) (missing []instance.ID) {
	for _, id := range ids {
		if _, ok := got[id]; !ok {
			missing = append(missing, id)
		}
	}
	return missing
}

// reportRequeued reports that the last call changed nothing and the group will be sent again. It
// does not after a call that may have been carried out.
func (r *batchRun) reportRequeued(group []*dispatch.Item) {
	if r.mayHaveActed || r.batch.DryRun {
		return
	}
	r.b.dispatcher.ReportRequeued(group)
}

// pause waits. It returns an error if the backend closes or the term ends first.
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

// pause waits. It returns false if ctx ends first.
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

// jitter returns a random duration around d, so that failed calls are not retried in step.
func jitter(d time.Duration) time.Duration {
	return d/2 + rand.N(d) //nolint:gosec // not a secret
}
