package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

const (
	// firstMessageWithin is how long a stream may take to be established: to connect, and
	// for a process that lags to catch up with the cursor.
	firstMessageWithin = 30 * time.Second

	// silenceIntervals is after how many progress intervals without a message an
	// established stream is taken for dead.
	silenceIntervals = 3
)

// Watch yields the messages of WatchInstances and resumes by itself: when the
// connection breaks, or is silent for three progress intervals, and when the server
// says goodbye, it connects again, after a growing delay of which a part is left to
// chance, and goes on after the last cursor. Over all those streams no change is missed
// and none is yielded twice.
//
// The messages are those of the contract: subscribed at the beginning of each stream,
// snapshots, events, progress, goodbye at the end. Changes that were recorded together
// come in one message of events, which always has a cursor. A snapshot may come in
// parts; the first part says to forget what was known, and the last one has the cursor.
// One that was interrupted is begun anew.
//
// Whoever derives something from the messages stores the cursor of each message that
// has one together with what was derived from it and from those before, in one
// transaction, and gives the last one as AfterCursor when it begins again.
//
// A cursor becomes unusable when retention passes it, or when the log is set back or
// replaced. What is done then is for OnUnusableCursor to say, during the whole watch: FAIL
// ends it with OUT_OF_RANGE; SNAPSHOT begins again with a snapshot that names the reason.
// Left UNSPECIFIED, a watch that began with a snapshot begins again with one, since its
// consumer knows what to do with it; one that began after a cursor or from now on ends,
// since a consumer of changes alone would not notice that some are missing.
//
// The sequence ends with an error that waiting does not cure, and with that of ctx. As
// long as no stream has been established it also ends after [Options].MaxAttempts
// failures. The error is an *[Error], beside a nil message.
func (c *Client) Watch(ctx context.Context, req *instancedv1.WatchInstancesRequest) iter.Seq2[*instancedv1.WatchInstancesResponse, error] {
	return func(yield func(*instancedv1.WatchInstancesResponse, error) bool) {
		if err := c.checkRequest(req); err != nil {
			yield(nil, err)
			return
		}
		ctx := c.outgoing(ctx)
		w := &watch{next: proto.CloneOf(req)}
		if w.next.GetOnUnusableCursor() == instancedv1.UnusableCursorPolicy_UNUSABLE_CURSOR_POLICY_UNSPECIFIED &&
			w.next.GetAfterCursor() == "" && !w.next.GetFromNow() {
			w.next.OnUnusableCursor = instancedv1.UnusableCursorPolicy_UNUSABLE_CURSOR_POLICY_SNAPSHOT
		}
		for {
			err := w.follow(ctx, c, yield)
			if err == nil {
				return
			}
			if ctx.Err() != nil {
				yield(nil, newError(ctx.Err(), nil))
				return
			}
			w.failures++
			if !w.resumable(err) || !w.established && w.failures >= c.maxAttempts() {
				yield(nil, err)
				return
			}
			delay := retryDelay(err, w.failures)
			if w.goodbye > 0 {
				// It says the same as the error behind it, and differs from stream to stream.
				delay = max(w.goodbye, backoffDelay(w.failures))
			}
			w.goodbye = 0
			if !c.pause(ctx, err, delay) {
				if ctx.Err() == nil {
					// The deadline comes before the delay is over.
					<-ctx.Done()
				}
				yield(nil, newError(ctx.Err(), nil))
				return
			}
		}
	}
}

// watch is where a sequence of streams has got to.
type watch struct {
	// next is the request of the next stream.
	next *instancedv1.WatchInstancesRequest
	// established is whether any stream was.
	established bool
	// failures counts the streams that ended since one of them last delivered.
	failures int
	// goodbye is the delay that the server asked for when it ended the stream.
	goodbye time.Duration
	// batch has the events of a batch of which not all parts have come. They are dropped
	// with the stream: the next one has them again.
	batch []*instancedv1.Event
	// reason is why there is a snapshot of which not all parts have come.
	reason instancedv1.UnusableCursorReason
}

// resumable reports whether the next stream may get further. One that stood is resumed
// also after what only those between here and the service say, such as that they reset
// a stream, and however long the service asks to stay away.
func (w *watch) resumable(e *Error) bool {
	if !w.established || e.final {
		return retryable(e)
	}
	switch e.Code {
	case codes.Unavailable:
		return true
	case codes.ResourceExhausted:
		return e.RetryDelay > 0
	case codes.Canceled, codes.DeadlineExceeded, codes.Internal, codes.Unknown:
		return e.Reason == ""
	default:
		return false
	}
}

// follow makes one stream and yields its messages. It returns nil when the consumer
// wants no more.
func (w *watch) follow(ctx context.Context, c *Client, yield func(*instancedv1.WatchInstancesResponse, error) bool) *Error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	patience := firstMessageWithin
	silence := time.AfterFunc(patience, func() { cancel(errSilent) })
	defer silence.Stop()

	w.batch = nil
	var trailer metadata.MD
	stream, err := c.service.WatchInstances(ctx, w.next)
	for err == nil {
		var msg *instancedv1.WatchInstancesResponse
		silence.Reset(patience)
		if msg, err = stream.Recv(); err != nil {
			trailer = stream.Trailer()
			break
		}
		// The time that the consumer takes is no silence of the server.
		silence.Stop()
		if interval := msg.GetSubscribed().GetProgressInterval().AsDuration(); interval > 0 {
			patience = silenceIntervals * interval
		}
		if w.take(msg) && !yield(msg, nil) {
			return nil
		}
	}
	switch {
	case errors.Is(context.Cause(ctx), errSilent):
		return unavailable(fmt.Sprintf("nothing was heard from the server for %v", patience))
	case errors.Is(err, io.EOF):
		return unavailable("the server ended the stream")
	default:
		return newError(err, trailer)
	}
}

// take notes what a message says about where to go on. It is false for a part of a batch
// that the parts to come complete.
func (w *watch) take(msg *instancedv1.WatchInstancesResponse) bool {
	switch m := msg.GetMessage().(type) {
	case *instancedv1.WatchInstancesResponse_Subscribed:
		w.established = true
	case *instancedv1.WatchInstancesResponse_Snapshot:
		w.failures = 0
		w.takeSnapshot(m.Snapshot)
	case *instancedv1.WatchInstancesResponse_Events:
		w.failures = 0
		w.batch = append(w.batch, m.Events.GetEvents()...)
		if msg.GetCursor() == "" {
			return false
		}
		m.Events, w.batch = &instancedv1.Events{Events: w.batch}, nil
	case *instancedv1.WatchInstancesResponse_Progress:
		w.failures = 0
	case *instancedv1.WatchInstancesResponse_Goodbye:
		w.goodbye = m.Goodbye.GetRetryDelay().AsDuration()
	}
	if cursor := msg.GetCursor(); cursor != "" {
		w.next.AfterCursor, w.next.FromNow = cursor, false
	}
	return true
}

// takeSnapshot notes that there is nothing to go on from until a snapshot is complete:
// whoever has begun to read it has forgotten what was before. One that is begun anew
// names the reason of the first.
func (w *watch) takeSnapshot(part *instancedv1.Snapshot) {
	const none = instancedv1.UnusableCursorReason_UNUSABLE_CURSOR_REASON_UNSPECIFIED
	if part.GetFirst() {
		w.next.AfterCursor, w.next.FromNow = "", false
		if part.GetReason() == none {
			part.Reason = w.reason
		}
		w.reason = part.GetReason()
	}
	if part.GetLast() {
		w.reason = none
	}
}

var errSilent = errors.New("the stream is silent")

func unavailable(message string) *Error {
	return newError(status.Error(codes.Unavailable, message), nil)
}
