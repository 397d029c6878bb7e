package server

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/lifecycle"
)

// watchStream sends the items of a watch to a subscriber.
type watchStream struct {
	*lifecycle.Watch
	stream    instancedv1.InstanceService_WatchInstancesServer
	lifecycle *lifecycle.Service
	delivery  *delivery
}

// send sends a message of a kind, encoded or not.
func (w *watchStream) send(kind string, message any) error {
	w.delivery.sending.Store(time.Now().UnixNano())
	err := w.stream.SendMsg(message)
	w.delivery.sending.Store(0)
	if err == nil {
		w.delivery.watches.messages.Get(kind).Inc()
	}
	return err
}

// run sends the items of the watch until ctx is done or sending fails, and returns why.
func (w *watchStream) run(ctx context.Context) error {
	if err := w.send(messageSubscribed, w.subscribed()); err != nil {
		return err
	}
	for {
		if err := w.untilProgress(ctx); err != nil {
			return err
		}
		if err := w.send(messageProgress, w.progress()); err != nil {
			return err
		}
	}
}

// untilProgress sends items for one progress interval, however many there are and
// whether any of them matches or not.
func (w *watchStream) untilProgress(ctx context.Context) error {
	interval, cancel := context.WithTimeout(ctx, w.ProgressInterval())
	defer cancel()
	for interval.Err() == nil {
		item, err := w.Next(interval)
		switch {
		case err != nil && interval.Err() == nil:
			return err
		case err != nil:
			w.delivery.idle()
			continue
		case item.Snapshot != nil:
			w.delivery.deliver(time.Now())
			err = w.sendSnapshot(item.Snapshot)
		case item.Batch != nil:
			w.delivery.deliver(item.Batch.RecordedAt)
			err = w.sendBatch(ctx, item.Batch)
		}
		if err != nil {
			return err
		}
		w.delivery.delivered(w.Revision())
	}
	return ctx.Err()
}

func (w *watchStream) subscribed() *instancedv1.WatchInstancesResponse {
	return &instancedv1.WatchInstancesResponse{
		Cursor: w.Cursor(),
		Message: &instancedv1.WatchInstancesResponse_Subscribed{Subscribed: &instancedv1.Subscribed{
			LogId:            w.LogID(),
			ProgressInterval: durationpb.New(w.ProgressInterval()),
			MaxMessageBytes:  lifecycle.MaxPageBytes,
		}},
	}
}

func (w *watchStream) progress() *instancedv1.WatchInstancesResponse {
	return &instancedv1.WatchInstancesResponse{
		Cursor: w.Cursor(),
		Message: &instancedv1.WatchInstancesResponse_Progress{Progress: &instancedv1.Progress{
			LastReconciled: timestamp(w.lifecycle.LastReconciled()),
			Impairment:     impairmentMessage(w.lifecycle.Impairment()),
		}},
	}
}

// sendGoodbye sends the last message, with whose cursor the subscriber resumes elsewhere.
func (w *watchStream) sendGoodbye(reason instancedv1.GoodbyeReason, retryDelay time.Duration) error {
	w.delivery.watches.goodbyes.Get(reason).Inc()
	return w.send(messageGoodbye, &instancedv1.WatchInstancesResponse{
		Cursor: w.Cursor(),
		Message: &instancedv1.WatchInstancesResponse_Goodbye{Goodbye: &instancedv1.Goodbye{
			Reason:     reason,
			RetryDelay: durationpb.New(retryDelay),
		}},
	})
}

// sendSnapshot sends a snapshot in one or more messages. Only the last one has the cursor,
// since a subscriber cannot resume in the middle of a snapshot. All streams that send
// snapshots share the encoded instances.
func (w *watchStream) sendSnapshot(s *lifecycle.Snapshot) error {
	part := snapshotFrame{head: &instancedv1.Snapshot{First: true, Reason: unusableReason(s.Reason)}}
	for _, r := range s.Records {
		if !w.Matches(r) {
			continue
		}
		encoded := encodedInstance(r)
		if part.size > 0 && part.size+len(encoded) > maxFrameBytes {
			if err := w.send(messageSnapshot, part.frame("")); err != nil {
				return err
			}
			part = snapshotFrame{head: &instancedv1.Snapshot{}}
		}
		part.add(encoded)
	}
	part.head.Last = true
	return w.send(messageSnapshot, part.frame(w.Cursor()))
}

// sendBatch sends the events of a batch that match. Only the last message has the cursor,
// since a cursor never splits a batch. A stream that is stuck holds no more of the batch than
// the message being sent.
func (w *watchStream) sendBatch(ctx context.Context, b *lifecycle.Batch) error {
	next := w.nextMatching
	if w.MatchesAll() {
		next = w.nextWhole
	}
	recordedAt := b.RecordedAt
	for at := 0; ; {
		part := next(b, at)
		if len(part.message.data) == 0 {
			return nil
		}
		if err := w.send(messageEvents, part.message); err != nil {
			return err
		}
		w.delivery.sent(recordedAt, part.events)
		if part.last {
			return nil
		}
		at = part.next
		var err error
		if b, err = w.Again(ctx); err != nil {
			return err
		}
	}
}

// batchPart is a message with a part of a batch.
type batchPart struct {
	message frame
	// events is how many events count as sent with the message.
	events int
	// next is where the next part begins.
	next int
	last bool
}

// nextWhole returns the message of a batch at an index, for a stream without a filter.
func (w *watchStream) nextWhole(b *lifecycle.Batch, at int) batchPart {
	messages := wholeBatch(b, w.Cursor())
	part := batchPart{message: wholeFrame(messages[at]), next: at + 1}
	if part.last = part.next == len(messages); part.last {
		part.events = len(b.Events) // in all messages together
	}
	return part
}

// nextMatching returns a message with the matching events of a batch from an index on. The
// message is empty if no event matches.
func (w *watchStream) nextMatching(b *lifecycle.Batch, at int) batchPart {
	var out eventFrame
	events := 0
	for ; at < len(b.Events); at++ {
		e := &b.Events[at]
		match := matchMessage(w.Match(e.Change))
		if match == instancedv1.EventMatch_EVENT_MATCH_UNSPECIFIED {
			continue
		}
		encoded := encodedEvent(b, e)
		if out.size > 0 && out.size+len(encoded) > maxFrameBytes {
			return batchPart{message: out.frame(""), events: events, next: at}
		}
		out.add(encoded, match)
		events++
	}
	if out.size == 0 {
		return batchPart{last: true}
	}
	return batchPart{message: out.frame(w.Cursor()), events: events, last: true}
}
