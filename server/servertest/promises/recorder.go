package promises

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// Message is one message of a stream.
type Message struct {
	*instancedv1.WatchInstancesResponse
	// At is when it arrived.
	At time.Time
}

// Connection is one stream from its request to its end.
type Connection struct {
	Request  *instancedv1.WatchInstancesRequest
	Messages []Message
	// Err is how it ended, at Ended; nil and zero while it lasts.
	Err   error
	Ended time.Time
}

// Events returns all events in the order in which they came.
func (c *Connection) Events() []*instancedv1.Event {
	var events []*instancedv1.Event
	for _, m := range c.Messages {
		events = append(events, m.GetEvents().GetEvents()...)
	}
	return events
}

// Cursor returns the last cursor from which it is safe to go on.
func (c *Connection) Cursor() string {
	for _, m := range slices.Backward(c.Messages) {
		if m.GetCursor() != "" {
			return m.GetCursor()
		}
	}
	return c.Request.GetAfterCursor()
}

// Recorder receives a stream and keeps what it sees.
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
	r := &Recorder{conn: Connection{Request: req}, changed: make(chan struct{}), done: make(chan struct{})}
	go r.receive(stream)
	return r, nil
}

func (r *Recorder) receive(stream grpc.ServerStreamingClient[instancedv1.WatchInstancesResponse]) {
	defer close(r.done)
	for {
		m, err := stream.Recv()
		r.mu.Lock()
		if err != nil {
			r.conn.Err, r.conn.Ended = err, time.Now()
		} else {
			r.conn.Messages = append(r.conn.Messages, Message{m, time.Now()})
		}
		close(r.changed)
		r.changed = make(chan struct{})
		r.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Seen returns what was seen so far.
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

// Until waits until what was seen is enough, and returns it. It fails when the stream
// ends, or ctx is done, before that.
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

// End waits for the end of the stream and returns all that was seen.
func (r *Recorder) End(ctx context.Context) (*Connection, error) {
	select {
	case <-r.done:
		return r.Seen(), nil
	case <-ctx.Done():
		return r.Seen(), fmt.Errorf("the stream did not end: %w", ctx.Err())
	}
}

// Subscribed reports whether the subscription stands.
func Subscribed(c *Connection) bool { return len(c.Messages) > 0 }

// SnapshotSeen reports whether a whole snapshot has arrived.
func SnapshotSeen(c *Connection) bool {
	return slices.ContainsFunc(c.Messages, func(m Message) bool { return m.GetSnapshot().GetLast() })
}
