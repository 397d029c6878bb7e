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
}

// run sends the items of the watch until ctx is done or sending fails, and returns why.
func (w *watchStream) run(ctx context.Context) error {
	if err := w.stream.Send(w.subscribed()); err != nil {
		return err
	}
	for {
		if err := w.untilProgress(ctx); err != nil {
			return err
		}
		if err := w.stream.Send(w.progress()); err != nil {
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
			continue
		case item.Snapshot != nil:
			err = w.sendSnapshot(item.Snapshot)
		case item.Batch != nil:
			err = w.sendBatch(ctx, item.Batch)
		}
		if err != nil {
			return err
		}
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
	return w.stream.Send(&instancedv1.WatchInstancesResponse{
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
			if err := w.stream.SendMsg(part.frame("")); err != nil {
				return err
			}
			part = snapshotFrame{head: &instancedv1.Snapshot{}}
		}
		part.add(encoded)
	}
	part.head.Last = true
	return w.stream.SendMsg(part.frame(w.Cursor()))
}

// sendBatch sends the events of a batch that match. Only the last message has the cursor,
// since a cursor never splits a batch. A stream that is stuck holds no more of the batch than
// the message being sent.
func (w *watchStream) sendBatch(ctx context.Context, b *lifecycle.Batch) error {
	next := w.nextMatching
	if w.MatchesAll() {
		next = w.nextWhole
	}
	for at := 0; ; {
		message, after, done := next(b, at)
		if len(message.data) == 0 {
			return nil
		}
		if err := w.stream.SendMsg(message); err != nil || done {
			return err
		}
		at = after
		var err error
		if b, err = w.Again(ctx); err != nil {
			return err
		}
	}
}

// nextWhole returns the message of a batch at an index, for a stream without a filter.
func (w *watchStream) nextWhole(b *lifecycle.Batch, at int) (message frame, after int, done bool) {
	messages := wholeBatch(b, w.Cursor())
	return wholeFrame(messages[at]), at + 1, at+1 == len(messages)
}

// nextMatching returns a message with the matching events of a batch from an index on, and
// the index where the next message begins. The message is empty if no event matches.
func (w *watchStream) nextMatching(b *lifecycle.Batch, at int) (message frame, after int, done bool) {
	var out eventFrame
	for ; at < len(b.Events); at++ {
		e := &b.Events[at]
		match := matchMessage(w.Match(e.Change))
		if match == instancedv1.EventMatch_EVENT_MATCH_UNSPECIFIED {
			continue
		}
		encoded := encodedEvent(b, e)
		if out.size > 0 && out.size+len(encoded) > maxFrameBytes {
			return out.frame(""), at, false
		}
		out.add(encoded, match)
	}
	if out.size == 0 {
		return frame{}, at, true
	}
	return out.frame(w.Cursor()), at, true
}
