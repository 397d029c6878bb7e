package server_test

import (
	"context"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"testing"
	"weak"

	"google.golang.org/grpc/peer"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// callers are the callers in the log lines, while anything still refers to them: each
// connection is a caller.
type callers struct {
	slog.Handler

	mu    sync.Mutex
	calls map[string]int
	peers []weak.Pointer[peer.Peer]
}

func (*callers) Enabled(context.Context, slog.Level) bool { return true }

func (c *callers) WithAttrs([]slog.Attr) slog.Handler { return c }

func (c *callers) Handle(ctx context.Context, line slog.Record) error {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.peers = append(c.peers, weak.Make(p))
	line.Attrs(func(a slog.Attr) bool {
		if a.Key == "method" {
			c.calls[a.Value.String()]++
		}
		return true
	})
	return nil
}

// known returns how many are known after all that can be forgotten is.
func (c *callers) known() int {
	runtime.GC()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.peers = slices.DeleteFunc(c.peers, func(p weak.Pointer[peer.Peer]) bool { return p.Value() == nil })
	return len(c.peers)
}

func (c *callers) count(method string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[method]
}

func TestNothingIsLeftOfWatchesAndWaitsThatEnded(t *testing.T) {
	const connections = 20
	for _, kind := range []struct {
		method string
		call   func(context.Context, instancedv1.InstanceServiceClient) error
	}{
		{"WaitInstances", func(ctx context.Context, api instancedv1.InstanceServiceClient) error {
			_, err := api.WaitInstances(ctx, &instancedv1.WaitInstancesRequest{InstanceIds: ids(1), States: []instancedv1.InstanceStateName{stopped}})
			return err
		}},
		{"WatchInstances", func(ctx context.Context, api instancedv1.InstanceServiceClient) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			stream, err := api.WatchInstances(ctx, &instancedv1.WatchInstancesRequest{FromNow: true})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		}},
	} {
		t.Run(kind.method, func(t *testing.T) {
			seen := &callers{Handler: slog.DiscardHandler, calls: make(map[string]int)}
			srv := servertest.New(t, servertest.Options{Fleet: fleet(1), Logger: slog.New(seen)})
			for range connections {
				conn := srv.Dial()
				// Without a deadline of its own, which the server would have to give it.
				if err := kind.call(t.Context(), instancedv1.NewInstanceServiceClient(conn)); err != nil {
					t.Fatal(err)
				}
				if err := conn.Close(); err != nil {
					t.Fatal(err)
				}
			}
			ctx := patient(t)
			// What a goroutine has left on its stack may last a little longer.
			for seen.count(kind.method) < connections || seen.known() > connections/4 {
				if ctx.Err() != nil {
					t.Fatalf("of %d calls %d are known to have ended, and %d callers are still known", connections, seen.count(kind.method), seen.known())
				}
			}
		})
	}
}
