package observer

import (
	"context"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// maxNotices is how many notices are recorded together.
const maxNotices = 512

// consumeNotices records the backend's notices until ctx is done. A notice is a reason to
// look: one that is newer than what is known and follows from it directly is recorded, and
// for any other one that is news the instance is described.
func (o *Observer) consumeNotices(ctx context.Context, term *journal.Term) {
	notices := make(chan instance.Notice, maxNotices)
	go func() {
		defer close(notices)
		for n, err := range o.backend.Notices(ctx) {
			if err != nil {
				o.metrics.noticeErrors.Inc()
				o.log.Warn("cannot receive the backend's notices; polling instances meanwhile", "error", err)
				continue
			}
			select {
			case notices <- n:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		var expired <-chan time.Time
		if o.tracker.holdsNotices() {
			expired = time.After(maxHold / 4)
		}
		var batch []instance.Notice
		select {
		case n, ok := <-notices:
			if !ok {
				return
			}
			batch = drain(notices, append(batch, n))
		case <-o.tracker.wake:
			o.refresher.retryNow(o.tracker.nextDescribable())
		case <-expired:
			o.tracker.releaseExpired()
		}
		o.recordNotices(ctx, term, o.tracker.holdBack(batch))
	}
}

// drain adds the notices that are there already.
func drain(notices <-chan instance.Notice, batch []instance.Notice) []instance.Notice {
	for len(batch) < maxNotices {
		select {
		case n, ok := <-notices:
			if !ok {
				return batch
			}
			batch = append(batch, n)
		default:
			return batch
		}
	}
	return batch
}

// recordNotices records a batch of notices, and acknowledges them or asks for their instances
// to be described.
func (o *Observer) recordNotices(ctx context.Context, term *journal.Term, batch []instance.Notice) {
	news := batch[:0]
	for _, n := range batch {
		if known, found := o.journal.Get(n.ID); found {
			if class := classify(known, n); class.old() {
				o.metrics.notices[class].Inc()
				n.Ack()
				continue
			}
		}
		news = append(news, n)
	}
	if len(news) == 0 {
		return
	}
	var classes []noticeClass
	_, err := o.update(ctx, term, func(u *updateTx) error {
		classes = u.applyNotices(classes[:0], news)
		return nil
	})
	if err != nil { // classes may still be written to
		if ctx.Err() == nil {
			o.log.Warn("notices could not be recorded; describing their instances again", "count", len(news), "error", err)
		}
		o.refreshThenAck(news)
		return
	}
	o.ackOrRefresh(news, classes)
}

// refreshThenAck has the instances of notices described before they are acknowledged.
func (o *Observer) refreshThenAck(notices []instance.Notice) {
	o.metrics.notices[needsRefresh].Add(float64(len(notices)))
	o.refresher.requestThenAck(notices...)
}

// ackOrRefresh acknowledges the notices that are recorded or no news, and has the instances
// of the others described before.
func (o *Observer) ackOrRefresh(notices []instance.Notice, classes []noticeClass) {
	for i, n := range notices {
		o.metrics.notices[classes[i]].Inc()
		if classes[i] == needsRefresh {
			o.refresher.requestThenAck(n)
			continue
		}
		if classes[i] == followsDirectly && n.Instance == nil {
			o.refresher.request(n.ID)
		}
		n.Ack()
	}
}

// applyNotices records the notices that follow directly from what is known, and appends the
// classes of all.
func (u *updateTx) applyNotices(classes []noticeClass, notices []instance.Notice) []noticeClass {
	for _, n := range notices {
		class := needsRefresh
		u.apply(observation{
			id:         n.ID,
			at:         n.OccurredAt,
			occurredAt: n.OccurredAt,
			source:     n.Source,
			// A command whose answer was lost did not cause it if it ended earlier than that.
			causedAfter: n.OccurredAt.Add(-instance.ClockSkew),
			causedUntil: lastSent(n),
			image: func(known journal.Record, found bool) (*instance.Instance, bool) {
				switch {
				case found:
					class = classify(known, n)
				case n.Instance != nil:
					class = followsDirectly
				}
				if class == followsDirectly && n.Instance == nil {
					return entered(known.Instance, n.State, n.OccurredAt), true
				}
				return n.Instance, class == followsDirectly
			},
		})
		classes = append(classes, class)
	}
	return classes
}

// noticeClass says what a notice is worth, given what is known.
type noticeClass uint8

const (
	// duplicate: it says what is known.
	duplicate noticeClass = iota
	// late: what is known is newer.
	late
	// followsDirectly: it is what comes next.
	followsDirectly
	// needsRefresh: it may be either, and the backend has to be asked.
	needsRefresh
)

// old reports whether the notice is no news.
func (c noticeClass) old() bool { return c == duplicate || c == late }

func classify(known journal.Record, n instance.Notice) noticeClass {
	newer := n.OccurredAt.After(known.ChangedAt)
	switch {
	// EventBridge gives whole seconds, so within a second the order is unknown.
	case !newer && (timePrecision(n) < time.Second || n.OccurredAt.Before(known.ChangedAt.Truncate(time.Second))):
		if n.State == known.Instance.State {
			return duplicate
		}
		return late
	case n.Instance != nil && known.Instance.Equal(n.Instance):
		return duplicate
	case !newer:
		return needsRefresh
	case n.Instance != nil && n.State == known.Instance.State:
		return followsDirectly
	case instance.CanFollow(known.Instance.State, n.State):
		return followsDirectly
	}
	return needsRefresh
}

// lastSent is the latest time at which a command may have been sent that did what a notice
// tells. The simulator has this host's clock.
func lastSent(n instance.Notice) time.Time {
	if n.Source == instance.SourceEventBridge {
		return instance.LastSent(n.OccurredAt)
	}
	return n.OccurredAt.Add(timePrecision(n))
}

// timePrecision is how exact the time of a notice is.
func timePrecision(n instance.Notice) time.Duration {
	if n.Source == instance.SourceEventBridge {
		return time.Second
	}
	return time.Nanosecond
}
