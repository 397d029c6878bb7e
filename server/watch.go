package server

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/lifecycle"
)

// watchStream is one subscription on its way out.
type watchStream struct {
	*lifecycle.Watch
	stream    instancedv1.InstanceService_WatchInstancesServer
	lifecycle *lifecycle.Service
}

// run sends what the watch has to tell until ctx is done. It returns why it ended.
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
			err = w.sendBatch(item.Batch)
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

// sendGoodbye is the last message; the caller goes on elsewhere with its cursor.
func (w *watchStream) sendGoodbye(reason instancedv1.GoodbyeReason, retryDelay time.Duration) error {
	return w.stream.Send(&instancedv1.WatchInstancesResponse{
		Cursor: w.Cursor(),
		Message: &instancedv1.WatchInstancesResponse_Goodbye{Goodbye: &instancedv1.Goodbye{
			Reason:     reason,
			RetryDelay: durationpb.New(retryDelay),
		}},
	})
}

// sendSnapshot sends a snapshot in one message or several. Only the last one has the
// cursor: there is no going on from the midst of a snapshot.
func (w *watchStream) sendSnapshot(s *lifecycle.Snapshot) error {
	part := &instancedv1.Snapshot{First: true, Reason: unusableReason(s.Reason)}
	size := 0
	for _, i := range s.Instances {
		m := instanceMessage(i)
		length := proto.Size(m)
		if size > 0 && size+length > maxFrameBytes {
			if err := w.sendPart(part, ""); err != nil {
				return err
			}
			part, size = &instancedv1.Snapshot{}, 0
		}
		part.Instances = append(part.Instances, m)
		size += length
	}
	part.Last = true
	return w.sendPart(part, w.Cursor())
}

func (w *watchStream) sendPart(part *instancedv1.Snapshot, cursor string) error {
	return w.stream.Send(&instancedv1.WatchInstancesResponse{
		Cursor:  cursor,
		Message: &instancedv1.WatchInstancesResponse_Snapshot{Snapshot: part},
	})
}

// sendBatch sends the events of a batch that match. Only the last message has the
// cursor: a batch is never divided by one.
func (w *watchStream) sendBatch(b *lifecycle.Batch) error {
	if w.MatchesAll() {
		if whole := encodedBatch(b, w.Cursor()); whole != nil {
			return w.stream.SendMsg(wholeFrame(whole))
		}
	}
	var out eventFrame
	for i := range b.Events {
		e := &b.Events[i]
		match := matchMessage(w.Match(e.Change))
		if match == instancedv1.EventMatch_EVENT_MATCH_UNSPECIFIED {
			continue
		}
		encoded := encodedEvent(b, e)
		if out.size > 0 && out.size+len(encoded) > maxFrameBytes {
			if err := w.stream.SendMsg(out.frame("")); err != nil {
				return err
			}
		}
		out.add(encoded, match)
	}
	if out.size == 0 {
		return nil
	}
	return w.stream.SendMsg(out.frame(w.Cursor()))
}
