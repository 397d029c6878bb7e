package server_test

import (
	"context"
	"encoding/binary"
	"hash/fnv"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// TestAReconnectStormAfterARestart has many clients with cursors, each with a connection
// of its own, follow a server that says goodbye and comes back at the same address: all
// go on by themselves, without a snapshot, with nothing lost or repeated, and another
// caller's calls succeed meanwhile. In a soak they are 2,000.
func TestAReconnectStormAfterARestart(t *testing.T) {
	// Not in parallel with others: it looks at the memory of the process.
	clients, timeout := 200, time.Minute
	if soaking() {
		clients, timeout = 2000, 5*time.Minute
	}
	const instances = 10
	opts := servertest.Options{Fleet: fleet(instances), DataDir: t.TempDir()}
	first := servertest.New(t, opts)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := lis.Addr().String()
	first.Serve(lis)
	begin := head(t, first)
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	before := memoryInUse()

	var watching sync.WaitGroup
	defer watching.Wait()
	ctx, hangUp := context.WithCancel(ctx)
	defer hangUp()
	returning := make([]*returner, clients)
	for i := range returning {
		c, err := client.Dial(address, client.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		r := &returner{}
		returning[i] = r
		watching.Go(func() { r.follow(ctx, t, c, begin) })
	}
	all := func(srv *servertest.Server, what string) {
		end := settled(t, srv, ids(instances))
		for _, r := range returning {
			for r.at.Load() == nil || *r.at.Load() != end {
				select {
				case <-time.After(5 * time.Millisecond):
				case <-ctx.Done():
					t.Fatalf("not all clients have got to the end of the log %s", what)
				}
			}
		}
	}
	startAndStopAll(ctx, t, first, ids(instances))
	all(first, "before the restart")

	first.Close()
	second := servertest.New(t, opts)
	if lis, err = new(net.ListenConfig).Listen(ctx, "tcp", address); err != nil {
		t.Fatal(err)
	}
	peak := highWater(t)
	begun := time.Now()
	second.Serve(lis)
	var storm, others sync.WaitGroup
	storm.Go(func() {
		startAndStopAll(ctx, t, second, ids(instances))
		all(second, "after the restart")
	})
	back := make(chan struct{})
	others.Go(func() { storm.Wait(); close(back) })
	var slowest time.Duration
	calls := 0
	for ; !closed(back); calls++ {
		at := time.Now()
		if _, err := second.Instances().DescribeInstances(ctx, &instancedv1.DescribeInstancesRequest{PageSize: 1}); err != nil {
			t.Errorf("another caller: %v", err)
			break
		}
		slowest = max(slowest, time.Since(at))
		pause(ctx, time.Millisecond)
	}
	others.Wait()
	took := time.Since(begun)
	high := peak() - before
	t.Logf("%d clients are back after %v; %d KiB a client at the peak, both ends; the slowest of another caller's %d calls took %v",
		clients, took.Round(time.Millisecond), high/clients>>10, calls, slowest.Round(time.Microsecond))

	var want digest
	events := history(t, second, ids(instances), begin)
	for _, e := range events {
		want.add(e)
	}
	if len(events) == 0 {
		t.Error("nothing has happened")
	}
	hangUp()
	watching.Wait()
	for i, r := range returning {
		if r.events != want {
			t.Errorf("client %d got %d events that are not the %d of the log", i, r.events.count, want.count)
		}
		// One that comes back while the server still ends is sent away again.
		if r.snapshots > 0 || r.goodbyes == 0 || r.streams <= r.goodbyes {
			t.Errorf("client %d got %d snapshots and %d goodbyes on %d streams", i, r.snapshots, r.goodbyes, r.streams)
		}
	}
	if maxBytes := clients*(256<<10) + 64<<20; high > maxBytes {
		t.Errorf("the storm takes %d MiB, want at maxBytes %d", high>>20, maxBytes>>20)
	}
}

// returner is a client that comes back, and keeps no more of what it gets than a digest.
type returner struct {
	at atomic.Pointer[string]

	// Once it has ended.
	events                       digest
	snapshots, goodbyes, streams int
}

// follow watches until ctx ends.
func (r *returner) follow(ctx context.Context, t *testing.T, c *client.Client, after string) {
	for msg, err := range c.Watch(ctx, &instancedv1.WatchInstancesRequest{AfterCursor: after}) {
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			t.Errorf("a watch has ended: %v", err)
			return
		case msg.GetSubscribed() != nil:
			r.streams++
		case msg.GetSnapshot() != nil:
			r.snapshots++
		case msg.GetGoodbye() != nil:
			r.goodbyes++
		}
		for _, e := range msg.GetEvents().GetEvents() {
			r.events.add(e)
		}
		if cursor := msg.GetCursor(); cursor != "" {
			r.at.Store(&cursor)
		}
	}
}

// digest stands for a sequence of events: one that lacks an event, has one twice or has
// them in another order has another digest.
type digest struct {
	count int
	sum   uint64
}

func (d *digest) add(e *instancedv1.Event) {
	h := fnv.New64a()
	text := binary.BigEndian.AppendUint64(nil, d.sum)
	text = binary.BigEndian.AppendUint64(text, e.GetRevision())
	text = binary.BigEndian.AppendUint32(text, e.GetIndex())
	_, _ = h.Write(append(text, e.GetInstance().GetInstanceId()...))
	d.count, d.sum = d.count+1, h.Sum64()
}
