package observer

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

const (
	// reconcilePageSize is how many instances one page of a full comparison asks for: EC2's limit.
	reconcilePageSize = 1000
	// retryReconcileInterval is how soon a full comparison that failed is retried.
	retryReconcileInterval = 5 * time.Second
)

// reconcileRegularly compares everything with the backend until ctx is done: at once, again
// when all that an earlier owner sent must have arrived, and then at the interval, with
// jitter so that processes do not keep in step.
func (o *Observer) reconcileRegularly(ctx context.Context) {
	arrived := time.Now().Add(o.cfg.CallTimeout)
	for {
		began := time.Now()
		delay := o.cfg.ReconcileInterval + rand.N(o.cfg.ReconcileInterval/10+1) //nolint:gosec // jitter
		err := o.reconcile(ctx, eventual)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			o.reconciled.failed(err)
			o.log.Warn("the journal could not be compared with the backend; retrying", "error", err)
			delay = min(delay, retryReconcileInterval)
		}
		if err == nil || o.journal.Stats().Instances > 0 { // what was known before is better than nothing
			o.markReady()
		}
		if began.Before(arrived) { // what arrived after it began may be missing, however long it took
			delay = min(delay, time.Until(arrived))
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return
		}
	}
}

// reconcile compares everything with the backend and records the differences.
func (o *Observer) reconcile(ctx context.Context, c consistency) error {
	began := time.Now()
	err := o.reconcilePages(ctx, c)
	o.metrics.reconciles.observe(ctx, began, err)
	if err == nil {
		o.reconciled.succeeded(began.UTC())
	}
	return err
}

// reconcilePages compares everything with the backend, page by page. Instances whose
// description is not current, and those that are missing, are described again one by one.
func (o *Observer) reconcilePages(ctx context.Context, c consistency) error {
	seen := make(map[instance.ID]struct{})
	var again []instance.ID
	query := instance.DescribeQuery{All: true, PageSize: reconcilePageSize}
	for {
		asked := o.asOfNow()
		page, err := o.describePage(ctx, query)
		if err != nil {
			return explainTimeout(err)
		}
		for id := range page.Unreadable {
			seen[id] = struct{}{}
		}
		descriptions := make([]description, len(page.Instances))
		for i, image := range page.Instances {
			seen[image.ID] = struct{}{}
			descriptions[i] = description{id: image.ID, image: image, consistency: c, reconciling: c == eventual}
		}
		results, err := o.recordDescriptions(ctx, asked, descriptions)
		if err != nil {
			return err
		}
		for i, result := range results {
			if result != current {
				again = append(again, descriptions[i].id)
			}
		}
		if page.NextPageToken == "" {
			break
		}
		query.PageToken = page.NextPageToken
	}
	o.unreadable.keepOnly(seen)
	for _, r := range o.journal.Snapshot().Records {
		if _, ok := seen[r.Instance.ID]; !ok {
			again = append(again, r.Instance.ID)
		}
	}
	if c == strong {
		return o.refresher.refresh(ctx, again, strong)
	}
	o.refresher.requestReconciled(again)
	return nil
}

// Refresh describes instances at the backend now and records what it says, for callers who
// have just changed them there. The cursor is behind what was recorded. While the backend or
// the journal does not respond it retries, until ctx or 30 seconds are over; the error is
// then that of the last attempt.
func (o *Observer) Refresh(ctx context.Context, ids []instance.ID) (cursor string, err error) {
	return o.retryUntilRecorded(ctx, func(ctx context.Context) error { return o.refresher.refresh(ctx, ids, eventual) })
}

// RefreshOnce is Refresh without retries: it describes instances once, and returns when what
// the backend says of them is recorded.
func (o *Observer) RefreshOnce(ctx context.Context, ids []instance.ID) error {
	return o.refresher.refresh(ctx, ids, eventual)
}

// Reconcile compares everything with the backend now, for callers who have just set it to
// something else: no description counts as stale. It retries as [Observer.Refresh] does.
func (o *Observer) Reconcile(ctx context.Context) (cursor string, err error) {
	return o.retryUntilRecorded(ctx, func(ctx context.Context) error { return o.reconcile(ctx, strong) })
}

// retryUntilRecorded calls record until it succeeds, fails with an error that a retry does
// not help, or the time that recording may take is over.
func (o *Observer) retryUntilRecorded(ctx context.Context, record func(context.Context) error) (cursor string, err error) {
	ctx, cancel := context.WithTimeout(ctx, recordTime(ctx))
	defer cancel()
	for {
		if _, notOwner := o.Term(); notOwner != nil {
			return "", notOwner
		}
		failed := record(ctx)
		if failed == nil {
			return o.journal.Cursor(o.journal.Head()), nil
		}
		if err == nil || ctx.Err() == nil { // else the attempt before says why time ran out
			err = failed
		}
		if e, ok := errors.AsType[*instance.Error](err); !ok || e.Kind != instance.KindUnavailable {
			return "", err
		}
		select {
		case <-time.After(retryInterval):
		case <-ctx.Done():
			return "", err
		}
	}
}
