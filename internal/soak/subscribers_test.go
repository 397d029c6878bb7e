package soak_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest/promises"
)

// subscriber is what a program has in its hands that uses the client library: one
// sequence of messages, over however many streams.
type subscriber struct {
	name string
	stop context.CancelFunc
	done chan struct{}

	mu   sync.Mutex
	seen promises.Connection // guarded by mu
}

// subscribe watches until the test ends or the subscriber is ended. A lazy one rests
// after each message.
func subscribe(t *testing.T, c *client.Client, name string, filter *instancedv1.InstanceFilter, rest time.Duration) *subscriber {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	req := &instancedv1.WatchInstancesRequest{Filter: filter, ProgressInterval: durationpb.New(time.Second)}
	s := &subscriber{name: name, stop: stop, done: make(chan struct{}), seen: promises.Connection{Request: req}}
	go func() {
		defer close(s.done)
		for m, err := range c.Watch(ctx, req) {
			s.take(m, err)
			if rest > 0 {
				time.Sleep(rest)
			}
		}
	}()
	t.Cleanup(func() { stop(); <-s.done })
	return s
}

func (s *subscriber) take(m *instancedv1.WatchInstancesResponse, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.seen.Err, s.seen.Ended = err, time.Now()
		return
	}
	s.seen.Messages = append(s.seen.Messages, promises.Message{WatchInstancesResponse: m, At: time.Now()})
}

// sight is what was seen so far.
func (s *subscriber) sight() *promises.Connection {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.seen
	c.Messages = slices.Clip(c.Messages)
	return &c
}

// until waits until the subscriber has seen enough.
func (s *subscriber) until(t *testing.T, what string, enough func(*promises.Connection) bool) *promises.Connection {
	t.Helper()
	var c *promises.Connection
	await(t, fmt.Sprintf("%s sees %s", s.name, what), func() bool {
		c = s.sight()
		if c.Err != nil {
			t.Fatalf("the watch of %s ended: %v", s.name, c.Err)
		}
		return enough(c)
	})
	return c
}

// passed waits until the subscriber has passed a revision of the log, or has been told
// that it has.
func (s *subscriber) passed(t *testing.T, log *promises.Log) *promises.Connection {
	t.Helper()
	checked := 0
	return s.until(t, "the end of the log", func(c *promises.Connection) bool {
		for ; checked < len(c.Messages); checked++ {
			if revision, err := log.Revision(c.Messages[checked].GetCursor()); err == nil && revision == log.Head() {
				return true
			}
		}
		return false
	})
}

// end ends the subscription.
func (s *subscriber) end() {
	s.stop()
	<-s.done
}

// streams counts the streams of which a sequence consists.
func streams(c *promises.Connection) (n int) {
	for _, m := range c.Messages {
		if m.GetSubscribed() != nil {
			n++
		}
	}
	return n
}
