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
	// firstMessageTimeout is how long a stream may take to be established: to connect, and for
	// a lagging process to catch up with the cursor.
	firstMessageTimeout = 30 * time.Second

	// silenceIntervals is the number of progress intervals without a message after which an
	// established stream counts as dead.
	silenceIntervals = 3
)

// Watch yields the messages of WatchInstances and resumes automatically: when the connection
// breaks or is silent for three progress intervals, and when the server says goodbye, it
// reconnects with a jittered backoff and continues after the last cursor. Across all streams
// no change is missed and none is yielded twice.
//
// The messages follow the contract: subscribed at the start of each stream, snapshots, events,
// progress, goodbye at the end. Changes that were recorded together come in one message of
// events, which always has a cursor. A snapshot may come in parts; the first part means that
// all earlier state is obsolete, and the last has the cursor. An interrupted snapshot starts
// over.
//
// A consumer that derives state from the messages stores the cursor of each message that has
// one together with that state, in one transaction, and passes the last cursor as AfterCursor
// when it starts again.
//
// A cursor becomes unusable when its history is no longer kept, or when the log is rolled back
// or replaced. OnUnusableCursor decides what happens then, during the whole watch: FAIL ends it
// with OUT_OF_RANGE; SNAPSHOT starts over with a snapshot that names the reason. If
// UNSPECIFIED, a watch that started with a snapshot starts over with one, since its consumer
// can handle it; a watch that started after a cursor or from now ends, since a consumer of
// changes alone would not notice that some are missing.
//
// The sequence ends with an error that retries cannot cure, and with the error of ctx. Before
// the first stream is established it also ends after [Options].MaxAttempts failures. The error
// is an *[Error], next to a nil message.
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
				// The goodbye's delay repeats that of the error, but is jittered per stream.
				delay = max(w.goodbye, backoffDelay(w.failures))
			}
			w.goodbye = 0
			if !c.pause(ctx, err, delay) {
				if ctx.Err() == nil {
					// The deadline comes before the end of the delay.
					<-ctx.Done()
				}
				yield(nil, newError(ctx.Err(), nil))
				return
			}
		}
	}
}

// watch is the state of a watch across its streams.
type watch struct {
	// next is the request of the next stream.
	next *instancedv1.WatchInstancesRequest
	// established is whether any stream was established.
	established bool
	// failures counts the streams that ended since one of them last delivered.
	failures int
	// goodbye is the delay that the server asked for when it ended the stream.
	goodbye time.Duration
	// batch has the events of an incomplete batch. They are dropped with the stream: the next
	// one repeats them.
	batch []*instancedv1.Event
	// reason is the reason of an incomplete snapshot.
	reason instancedv1.UnusableCursorReason
}

// resumable reports whether the next stream may succeed. A watch that was established is also
// resumed after errors of proxies, such as a reset stream, and whatever delay the service
// asks for.
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

// follow opens one stream and yields its messages. It returns nil if the consumer stops.
func (w *watch) follow(ctx context.Context, c *Client, yield func(*instancedv1.WatchInstancesResponse, error) bool) *Error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	maxSilence := firstMessageTimeout
	silence := time.AfterFunc(maxSilence, func() { cancel(errSilent) })
	defer silence.Stop()

	w.batch = nil
	var trailer metadata.MD
	stream, err := c.service.WatchInstances(ctx, w.next)
	for err == nil {
		var msg *instancedv1.WatchInstancesResponse
		silence.Reset(maxSilence)
		if msg, err = stream.Recv(); err != nil {
			trailer = stream.Trailer()
			break
		}
		// The time that the consumer takes does not count as silence of the server.
		silence.Stop()
		if interval := msg.GetSubscribed().GetProgressInterval().AsDuration(); interval > 0 {
			maxSilence = silenceIntervals * interval
		}
		if w.advance(msg) && !yield(msg, nil) {
			return nil
		}
	}
	switch {
	case errors.Is(context.Cause(ctx), errSilent):
		return unavailable(fmt.Sprintf("no message from the server for %v", maxSilence))
	case errors.Is(err, io.EOF):
		return unavailable("the server ended the stream")
	default:
		return newError(err, trailer)
	}
}

// advance updates the state by a message. It returns false for a part of a batch that is not
// the last.
func (w *watch) advance(msg *instancedv1.WatchInstancesResponse) bool {
	switch m := msg.GetMessage().(type) {
	case *instancedv1.WatchInstancesResponse_Subscribed:
		w.established = true
	case *instancedv1.WatchInstancesResponse_Snapshot:
		w.failures = 0
		w.advanceSnapshot(m.Snapshot)
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

// advanceSnapshot drops the cursor until a snapshot is complete: its consumer has discarded
// the earlier state. A snapshot that starts over repeats the reason of the first.
func (w *watch) advanceSnapshot(part *instancedv1.Snapshot) {
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
