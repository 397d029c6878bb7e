package conformance

import (
	"context"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// Message is one message of a stream.
type Message struct {
	*instancedv1.WatchInstancesResponse
	// At is the time of its arrival.
	At time.Time
}

// Connection is one stream from its request to its end. A sequence that resumes over
// several streams by itself is one connection too: each of its streams begins with a
// subscribed message, and the next stream completes a batch or snapshot that the previous
// one left unfinished.
type Connection struct {
	Request  *instancedv1.WatchInstancesRequest
	Messages []Message
	// Followed is whether there may be several streams.
	Followed bool
	// Err is the error with which it ended, at Ended; nil and zero while it is open.
	Err   error
	Ended time.Time
}

// Events returns all events in the order of their arrival.
func (c *Connection) Events() []*instancedv1.Event {
	var events []*instancedv1.Event
	for _, m := range c.Messages {
		events = append(events, m.GetEvents().GetEvents()...)
	}
	return events
}

// Cursor returns the last cursor from which it is safe to resume.
func (c *Connection) Cursor() string {
	for _, m := range slices.Backward(c.Messages) {
		if m.GetCursor() != "" {
			return m.GetCursor()
		}
	}
	return c.Request.GetAfterCursor()
}

// Streams returns the messages of each of its streams.
func (c *Connection) Streams() [][]Message {
	var streams [][]Message
	begin := 0
	for i, m := range c.Messages {
		if i > 0 && m.GetSubscribed() != nil {
			streams = append(streams, c.Messages[begin:i])
			begin = i
		}
	}
	return append(streams, c.Messages[begin:])
}

// Recorder receives and keeps messages.
type Recorder struct {
	mu      sync.Mutex
	conn    Connection
	changed chan struct{} // closed at the next message, and replaced
	done    chan struct{}
}

// Watch subscribes and records until the stream ends, at the latest with ctx.
func Watch(ctx context.Context, client instancedv1.InstanceServiceClient, req *instancedv1.WatchInstancesRequest, opts ...grpc.CallOption) (*Recorder, error) {
	stream, err := client.WatchInstances(ctx, req, opts...)
	if err != nil {
		return nil, err
	}
	return record(Connection{Request: req}, received(stream)), nil
}

func received(stream grpc.ServerStreamingClient[instancedv1.WatchInstancesResponse]) iter.Seq2[*instancedv1.WatchInstancesResponse, error] {
	return func(yield func(*instancedv1.WatchInstancesResponse, error) bool) {
		for {
			m, err := stream.Recv()
			if !yield(m, err) || err != nil {
				return
			}
		}
	}
}

// Follow records a sequence that resumes over several streams by itself, such as
// client.Client.Watch, until it ends. To end it, cancel the context with which it was made.
func Follow(req *instancedv1.WatchInstancesRequest, seq iter.Seq2[*instancedv1.WatchInstancesResponse, error]) *Recorder {
	return record(Connection{Request: req, Followed: true}, seq)
}

func record(c Connection, seq iter.Seq2[*instancedv1.WatchInstancesResponse, error]) *Recorder {
	r := &Recorder{conn: c, changed: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(r.done)
		for m, err := range seq {
			if !r.take(m, err) {
				return
			}
		}
		r.take(nil, io.EOF)
	}()
	return r
}

// take records a message, or the end of the messages, for which it returns false.
func (r *Recorder) take(m *instancedv1.WatchInstancesResponse, err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.conn.Err, r.conn.Ended = err, time.Now()
	} else {
		r.conn.Messages = append(r.conn.Messages, Message{m, time.Now()})
	}
	close(r.changed)
	r.changed = make(chan struct{})
	return err == nil
}

// Seen returns what was received so far.
func (r *Recorder) Seen() *Connection {
	c, _ := r.seen()
	return c
}

func (r *Recorder) seen() (*Connection, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.conn
	c.Messages = slices.Clip(c.Messages)
	return &c, r.changed
}

// Until waits until enough was received, and returns it. It fails if the stream or ctx ends
// first.
func (r *Recorder) Until(ctx context.Context, enough func(*Connection) bool) (*Connection, error) {
	for {
		c, changed := r.seen()
		switch {
		case enough(c):
			return c, nil
		case c.Err != nil:
			return c, fmt.Errorf("the stream ended first: %w", c.Err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return c, fmt.Errorf("after %d messages, %d events: %w", len(c.Messages), len(c.Events()), ctx.Err())
		}
	}
}

// UntilCursor waits for a message with exactly this cursor. A subscriber with a filter does
// not receive every cursor, but the one at the end of the log always arrives in a progress
// message.
func (r *Recorder) UntilCursor(ctx context.Context, cursor string) (*Connection, error) {
	looked := 0
	return r.Until(ctx, func(c *Connection) bool {
		for ; looked < len(c.Messages); looked++ {
			if c.Messages[looked].GetCursor() == cursor {
				return true
			}
		}
		return false
	})
}

// End waits for the end of the stream and returns everything received.
func (r *Recorder) End(ctx context.Context) (*Connection, error) {
	select {
	case <-r.done:
		return r.Seen(), nil
	case <-ctx.Done():
		return r.Seen(), fmt.Errorf("the stream did not end: %w", ctx.Err())
	}
}

// Subscribed reports whether the subscription is established.
func Subscribed(c *Connection) bool { return len(c.Messages) > 0 }

// SnapshotSeen reports whether a whole snapshot has arrived.
func SnapshotSeen(c *Connection) bool {
	return slices.ContainsFunc(c.Messages, func(m Message) bool { return m.GetSnapshot().GetLast() })
}
