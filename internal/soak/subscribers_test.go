package soak_test

import (
	"context"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
)

// interval is how often subscribers hear at the least.
const interval = time.Second

// subscriber is what a program has in its hands that uses the client library: one
// sequence of messages, over however many streams.
type subscriber struct {
	*conformance.Recorder
	name string
	// end ends the subscription.
	end func()
}

// subscribe watches until the test ends or the subscriber is ended. A lazy one rests
// after each message.
func subscribe(t *testing.T, c *client.Client, name string, filter *instancedv1.InstanceFilter, rest time.Duration) *subscriber {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	req := &instancedv1.WatchInstancesRequest{Filter: filter, ProgressInterval: durationpb.New(interval)}
	s := &subscriber{name: name}
	s.Recorder = conformance.Follow(req, func(yield func(*instancedv1.WatchInstancesResponse, error) bool) {
		for m, err := range c.Watch(ctx, req) {
			if !yield(m, err) {
				return
			}
			time.Sleep(rest)
		}
	})
	s.end = func() {
		stop()
		if _, err := s.End(patient(t)); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() { stop(); _, _ = s.End(context.Background()) })
	return s
}

// until waits until the subscriber has seen enough.
func (s *subscriber) until(t *testing.T, what string, enough func(*conformance.Connection) bool) *conformance.Connection {
	t.Helper()
	c, err := s.Until(patient(t), enough)
	if err != nil {
		t.Fatalf("%s does not see %s: %v", s.name, what, err)
	}
	return c
}

// passed waits until the subscriber is at the end of the log.
func (s *subscriber) passed(t *testing.T, log *conformance.Log) *conformance.Connection {
	t.Helper()
	return s.until(t, "the end of the log", func(c *conformance.Connection) bool {
		revision, err := log.Revision(c.Cursor())
		return err == nil && revision >= log.Head()
	})
}
