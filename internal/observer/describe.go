package observer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// describeTimeout bounds how long the backend may take to describe instances.
const describeTimeout = 30 * time.Second

// describe asks the backend for instances and records what it says.
func (r *refresher) describe(ctx context.Context, refreshes map[instance.ID]*refresh) error {
	ctx, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	query := instance.DescribeQuery{IDs: make([]instance.ID, 0, len(refreshes))}
	for id := range refreshes {
		query.IDs = append(query.IDs, id)
	}
	asked := r.o.asOfNow()
	found := make(map[instance.ID]*instance.Instance, len(refreshes))
	for {
		page, err := r.o.describePage(ctx, query)
		if err != nil {
			return err
		}
		for _, i := range page.Instances {
			found[i.ID] = i
		}
		for id := range page.Unreadable { // there is nothing to record, and a retry would show the same
			if w := refreshes[id]; w != nil {
				r.absent.Set(id, struct{}{})
				r.complete(w)
				delete(refreshes, id)
			}
		}
		if page.NextPageToken == "" {
			break
		}
		query.PageToken = page.NextPageToken
	}
	descriptions := make([]description, 0, len(refreshes))
	for id, w := range refreshes {
		descriptions = append(descriptions, description{id: id, image: found[id], consistency: w.consistency, reconciling: w.reconciling})
	}
	results, err := r.o.recordDescriptions(ctx, asked, descriptions)
	if err != nil {
		return err
	}
	for i, d := range descriptions {
		w := refreshes[d.id]
		switch results[i] {
		case superseded:
			r.retryAfter(w, retrySupersededInterval)
		case stale:
			r.retryAfter(w, retryInterval)
		case current:
			r.o.tracker.dropResolved(d.id, asked.at)
			if d.image == nil {
				r.absent.Set(d.id, struct{}{})
				r.o.unreadable.remove(d.id)
			}
			r.complete(w)
		}
	}
	return nil
}

// retryAfter enqueues a refresh again whose description was not current.
func (r *refresher) retryAfter(w *refresh, delay time.Duration) {
	again := *w
	again.queued = true // a look-up has had its turn
	again.notBefore = time.Now().Add(delay)
	r.enqueue([]instance.ID{w.id}, again)
}

// complete acknowledges notices and tells all waiters that the description is recorded.
func (r *refresher) complete(w *refresh) {
	for _, ack := range w.acks {
		ack()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notifyLocked(w, nil)
}

// describePage asks the backend for a page, and logs what cannot be understood of it.
func (o *Observer) describePage(ctx context.Context, query instance.DescribeQuery) (instance.DescribePage, error) {
	ctx, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	page, err := o.backend.Describe(ctx, query)
	if err == nil {
		o.logUnreadable(page)
	}
	if !errors.Is(ctx.Err(), context.Canceled) {
		o.noteBackend(explainTimeout(err))
	}
	return page, err
}

// explainTimeout returns an error of the service for one of a deadline that is not the caller's.
func explainTimeout(err error) error {
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &instance.Error{
		Kind:       instance.KindUnavailable,
		Reason:     instance.ReasonBackendUnavailable,
		Message:    fmt.Sprintf("the backend did not describe the instances within %v; nothing was changed", describeTimeout),
		RetryAfter: retryInterval,
		Cause:      err,
	}
}
