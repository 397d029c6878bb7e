package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// How long a stream may be silent before it is taken for dead: until its first
// message, and then beyond the progress messages that it was promised.
const (
	firstMessageWithin = 30 * time.Second
	silenceIntervals   = 3
	silenceGrace       = 5 * time.Second
)

// Watch yields the messages of WatchInstances and resumes by itself: when the
// connection breaks or falls silent, and when the server says goodbye, it connects
// again, after a growing delay of which a part is left to chance, and goes on after
// the last cursor. Over all those streams no change is missed and none is yielded
// twice. A snapshot that was interrupted is begun anew; its first part says so.
//
// Each stream's own messages are yielded too: subscribed at its beginning, progress,
// goodbye at its end. Whoever wants to go on in another process keeps the last cursor
// that was not empty, once everything up to it has been dealt with.
//
// The sequence ends with an error that waiting does not cure, such as that of an
// unusable cursor, and with that of ctx. As long as no stream has been established it
// also ends after [Options].MaxAttempts failures. The error is an *[Error], beside a
// nil message.
func (c *Client) Watch(ctx context.Context, req *instancedv1.WatchInstancesRequest) iter.Seq2[*instancedv1.WatchInstancesResponse, error] {
	return func(yield func(*instancedv1.WatchInstancesResponse, error) bool) {
		ctx := c.outgoing(ctx)
		most := c.opts.MaxAttempts
		if most == 0 {
			most = defaultMaxAttempts
		}
		w := &watch{next: proto.CloneOf(req)}
		for {
			err := w.follow(ctx, c, yield)
			if err == nil {
				return
			}
			if ctx.Err() != nil {
				yield(nil, newError(ctx.Err()))
				return
			}
			w.failures++
			if !retryable(err) || !w.established && w.failures >= most {
				yield(nil, err)
				return
			}
			delay := max(w.goodbye, retryDelay(err, w.failures))
			w.goodbye = 0
			if !c.pause(ctx, err, delay) {
				if ctx.Err() == nil {
					// The deadline comes before the delay is over.
					<-ctx.Done()
				}
				yield(nil, newError(ctx.Err()))
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

	// The log, and the last event of it that was yielded since the last snapshot. A
	// batch that spreads over messages has a cursor behind its end only, so that a
	// stream that resumes may begin with events that were yielded before.
	logID    string
	revision uint64
	index    uint32
}

// follow makes one stream and yields its messages. It returns nil when the consumer
// wants no more.
func (w *watch) follow(ctx context.Context, c *Client, yield func(*instancedv1.WatchInstancesResponse, error) bool) *Error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	patience := firstMessageWithin
	silence := time.AfterFunc(patience, func() { cancel(errSilent) })
	defer silence.Stop()

	stream, err := c.service.WatchInstances(ctx, w.next)
	for err == nil {
		var msg *instancedv1.WatchInstancesResponse
		silence.Reset(patience)
		if msg, err = stream.Recv(); err != nil {
			break
		}
		// The time that the consumer takes is no silence of the server.
		silence.Stop()
		if s := msg.GetSubscribed(); s != nil {
			patience = silenceIntervals*s.GetProgressInterval().AsDuration() + silenceGrace
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
		return newError(err)
	}
}

// take notes what a message says about where to go on, and removes from it what was
// yielded before. It is false when nothing is left.
func (w *watch) take(msg *instancedv1.WatchInstancesResponse) bool {
	fresh := true
	switch m := msg.GetMessage().(type) {
	case *instancedv1.WatchInstancesResponse_Subscribed:
		w.established = true
		if id := m.Subscribed.GetLogId(); id != w.logID {
			w.logID, w.revision, w.index = id, 0, 0
		}
	case *instancedv1.WatchInstancesResponse_Snapshot:
		w.failures = 0
		if m.Snapshot.GetFirst() {
			// Whoever has begun to read a snapshot has forgotten what was before: there
			// is nothing to go on from until it is complete.
			w.next.AfterCursor, w.next.FromNow = "", false
			w.revision, w.index = 0, 0
		}
	case *instancedv1.WatchInstancesResponse_Events:
		w.failures = 0
		m.Events.Events = slices.DeleteFunc(m.Events.GetEvents(), w.seen)
		fresh = len(m.Events.GetEvents()) > 0
	case *instancedv1.WatchInstancesResponse_Progress:
		w.failures = 0
	case *instancedv1.WatchInstancesResponse_Goodbye:
		w.goodbye = m.Goodbye.GetRetryDelay().AsDuration()
	}
	if cursor := msg.GetCursor(); cursor != "" {
		w.next.AfterCursor, w.next.FromNow = cursor, false
		fresh = true
	}
	return fresh
}

// seen reports whether an event was yielded before, and notes it if not.
func (w *watch) seen(event *instancedv1.Event) bool {
	revision, index := event.GetRevision(), event.GetIndex()
	if revision < w.revision || revision == w.revision && index <= w.index {
		return true
	}
	w.revision, w.index = revision, index
	return false
}

var errSilent = errors.New("the stream is silent")

func unavailable(message string) *Error {
	return newError(status.Error(codes.Unavailable, message))
}
