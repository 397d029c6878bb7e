package client_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// frail is a dialer whose connections break.
type frail struct {
	mu   sync.Mutex
	open []net.Conn
}

func (f *frail) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err == nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.open = append(f.open, conn)
	}
	return conn, err
}

// breakAll breaks all connections, and returns how many there were.
func (f *frail) breakAll() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := len(f.open)
	for _, conn := range f.open {
		_ = conn.Close()
	}
	f.open = nil
	return n
}

func TestAWatchAndItsCommandsOutliveTheirConnections(t *testing.T) {
	t.Parallel()
	instances, ids := fleet(4)
	srv := servertest.New(t, servertest.Options{Fleet: instances, Speed: 200})
	connections := &frail{}
	c, err := client.Dial(serve(t, srv), client.Options{
		// Connections break faster than any call would be given up for.
		MaxAttempts: 50,
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(connections.dial)},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	ctx := patient(t)
	begin, err := c.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	watching, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	all := watchAll(watching, t, &running, c)

	done := make(chan struct{})
	var callers sync.WaitGroup
	for _, id := range ids {
		callers.Go(func() {
			for range 10 {
				if err := startAndStop(ctx, c, id); err != nil {
					t.Error(err)
				}
			}
		})
	}
	go func() {
		callers.Wait()
		close(done)
	}()
	random, broken := rand.New(rand.NewPCG(1, 1)), 0
	for ended := false; !ended; {
		select {
		case <-time.After(time.Duration(random.IntN(200)) * time.Millisecond):
			broken += connections.breakAll()
		case <-done:
			ended = true
		}
	}
	if n := len(all.wantHistory(ctx, t, c, ids, begin.GetCursor())); n != len(ids)*10*4 {
		t.Errorf("%d changes: a command was carried out twice, or not at all", n)
	}
	if broken < 3 {
		t.Errorf("%d connections broke", broken)
	}
}

// TestAWatchBeginsAgainWhenItsLogIsGone shows it on the cursor that a watch keeps for
// itself, unasked.
func TestAWatchBeginsAgainWhenItsLogIsGone(t *testing.T) {
	t.Parallel()
	instances, ids := fleet(3)
	tests := map[string]struct {
		// next returns the directory of the server that comes after the first one.
		next func(t *testing.T, dir, older string) string
		want []instancedv1.UnusableCursorReason
	}{
		"another log": {
			func(t *testing.T, _, _ string) string { return t.TempDir() },
			[]instancedv1.UnusableCursorReason{instancedv1.UnusableCursorReason_UNUSABLE_CURSOR_REASON_OTHER_LOG},
		},
		"an older copy": {
			func(_ *testing.T, _, older string) string { return older },
			[]instancedv1.UnusableCursorReason{
				instancedv1.UnusableCursorReason_UNUSABLE_CURSOR_REASON_ROLLED_BACK,
				instancedv1.UnusableCursorReason_UNUSABLE_CURSOR_REASON_AHEAD,
			},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			ctx := patient(t)
			dir, older := t.TempDir(), filepath.Join(t.TempDir(), "older")
			servertest.New(t, servertest.Options{DataDir: dir, Fleet: instances}).Close()
			if err := os.CopyFS(older, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			srv := servertest.New(t, servertest.Options{DataDir: dir})
			var mu sync.Mutex
			address := serve(t, srv)
			dial := func(ctx context.Context, _ string) (net.Conn, error) {
				mu.Lock()
				defer mu.Unlock()
				return (&net.Dialer{}).DialContext(ctx, "tcp", address)
			}
			c, err := client.Dial("passthrough:///instanced", client.Options{
				MaxAttempts: 50, DialOptions: []grpc.DialOption{grpc.WithContextDialer(dial)},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			watching, stop := context.WithCancel(ctx)
			var running sync.WaitGroup
			defer running.Wait()
			defer stop()
			all := watchAll(watching, t, &running, c)
			for _, id := range ids {
				if err := startAndStop(ctx, c, id); err != nil {
					t.Fatal(err)
				}
			}

			srv.Close()
			srv = servertest.New(t, servertest.Options{DataDir: test.next(t, dir, older), Fleet: instances})
			mu.Lock()
			address = serve(t, srv)
			mu.Unlock()
			all.until(ctx, t, func(msg *instancedv1.WatchInstancesResponse) bool {
				return slices.Contains(test.want, msg.GetSnapshot().GetReason())
			})
			if err := startAndStop(ctx, c, ids[0]); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestAConsumerThatIsTooSlowBeginsAgain(t *testing.T) {
	t.Parallel()
	for name, breaks := range map[string]bool{"on its stream": false, "after its connection broke": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			instances, ids := fleet(20)
			srv := servertest.New(t, servertest.Options{Fleet: instances, JournalMaxBytes: 1 << 20})
			connections := &frail{}
			c, err := client.Dial(serve(t, srv), client.Options{
				DialOptions: []grpc.DialOption{grpc.WithContextDialer(connections.dial)},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			ctx := patient(t)
			expire := func(cursor string) {
				if breaks {
					connections.breakAll()
				}
				// Several times as much as is kept. It is trimmed every few seconds.
				for n := range 300 {
					_, err := srv.Simulator().ChangeInstances(ctx, &instancedv1.ChangeInstancesRequest{Changes: []*instancedv1.OutsideChange{{
						InstanceIds: ids[n%len(ids):][:1], SetTags: noise(20),
					}}})
					if err != nil {
						t.Fatal(err)
					}
				}
				for !expired(ctx, t, srv, cursor) {
					time.Sleep(50 * time.Millisecond)
				}
			}
			again := false
			for msg, err := range c.Watch(ctx, &instancedv1.WatchInstancesRequest{}) {
				if err != nil {
					t.Fatal(err)
				}
				if msg.GetSnapshot().GetLast() && !again {
					expire(msg.GetCursor())
				}
				if part := msg.GetSnapshot(); part.GetFirst() && part.GetReason() == instancedv1.UnusableCursorReason_UNUSABLE_CURSOR_REASON_EXPIRED {
					again = true
				}
				if again && msg.GetSnapshot().GetLast() {
					break
				}
			}
		})
	}
}

// noise returns tags that cannot be compressed.
func noise(count int) map[string]string {
	tags := map[string]string{}
	for n := range count {
		letters := make([]byte, 256)
		for i := range letters {
			letters[i] = byte('0' + rand.IntN(75))
		}
		tags[fmt.Sprint("noise-", n)] = string(letters)
	}
	return tags
}

// expired reports whether the service no longer keeps what follows a cursor.
func expired(ctx context.Context, t *testing.T, srv *servertest.Server, cursor string) bool {
	t.Helper()
	for _, err := range client.New(srv.Conn(), client.Options{}).Watch(ctx, &instancedv1.WatchInstancesRequest{AfterCursor: cursor}) {
		e, ok := errors.AsType[*client.Error](err)
		if ok && e.Reason != "CURSOR_EXPIRED" {
			t.Fatal(err)
		}
		return ok
	}
	t.Fatal("a watch without a message")
	return false
}
