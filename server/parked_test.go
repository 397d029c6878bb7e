package server_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
	"github.com/instanced/instanced/server/servertest"
)

const (
	// longestPark is the longest time for which a parked subscriber does not read.
	longestPark = 5 * time.Minute
	// parkedBytes is what a subscriber that does not read may hold beside the windows of
	// the transport, of which there is one at each end.
	parkedBytes, windowBytes = 256 << 10, 64 << 10
)

// TestParked has 200 subscribers of which some never read, while the log goes far beyond
// the windows of the transport and what is held in memory for those who keep up. What is
// read is not kept, so that the little that is held stands out. It runs alone,
// since it looks at the memory of the process.
func TestParked(t *testing.T) {
	const subscribers, parked, instances = 200, 20, 200
	soak, _ := time.ParseDuration(os.Getenv("INSTANCED_SOAK"))
	rest := min(soak, longestPark)
	ctx, cancel := context.WithTimeout(t.Context(), 2*rest+5*time.Minute)
	t.Cleanup(cancel)
	ended := &watchesEnded{Handler: slog.DiscardHandler}
	srv := servertest.New(t, servertest.Options{
		Fleet: fleet(instances), JournalMaxBytes: 16 << 30, RingBytes: 256 << 10, Logger: slog.New(ended),
	})
	begin := &instancedv1.WatchInstancesRequest{AfterCursor: head(t, srv)}
	same := newDigestIndex()
	on := func(ctx context.Context, conn *grpc.ClientConn, req *instancedv1.WatchInstancesRequest) *follower {
		f, err := followOn(ctx, conn, req, same)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	reference := on(ctx, srv.Conn(), &instancedv1.WatchInstancesRequest{})
	go reference.read(orderly())

	round := func() {
		startAndStopAll(ctx, t, srv, ids(instances))
		busy(t, srv, ids(instances), 5)
	}
	round() // so that those who park are behind what is held in memory from the start
	// The client's window would grow by itself with what arrives on the connection.
	conn := srv.Dial(grpc.WithInitialWindowSize(windowBytes), grpc.WithInitialConnWindowSize(windowBytes))
	park := func() (leave func()) {
		parking, leave := context.WithCancel(ctx)
		for range parked - 1 {
			on(parking, conn, begin)
		}
		return leave
	}
	leave := park()
	resumes := on(ctx, conn, begin)
	followers := []*follower{reference}
	for range subscribers - parked {
		f := on(ctx, srv.Conn(), begin)
		go f.read()
		followers = append(followers, f)
	}

	began := time.Now()
	for rounds := 1; rounds < 3 || time.Since(began) < rest; rounds++ {
		round()
	}
	rest = time.Since(began)
	end := settled(t, srv, ids(instances))
	for _, f := range followers {
		if err := f.until(ctx, end); err != nil {
			t.Fatal(err)
		}
	}

	// What the rounds have left behind, such as what etcd has not committed yet, may go away
	// between two looks, and looks like memory of those who left: so there are two visits.
	with := restingMemory(ctx)
	leave()
	ended.await(ctx, t, parked-1)
	without := restingMemory(ctx)
	leave = park()
	with = min(with, restingMemory(ctx))
	leave()
	ended.await(ctx, t, 2*(parked-1))
	held := (with - without) / (parked - 1)
	events := same.entries[end].events
	t.Logf("%d events in %v; each of %d subscribers that did not read held %d KiB, both ends and their windows", events, rest, parked, held>>10)
	if held > parkedBytes+2*windowBytes {
		t.Errorf("a subscriber that does not read holds %d bytes, want at most %d and two windows of %d", held, parkedBytes, windowBytes)
	}

	resumed := time.Now()
	go resumes.read()
	if err := resumes.until(ctx, end); err != nil {
		t.Fatal(err)
	}
	took := time.Since(resumed)
	t.Logf("the one that resumed caught up in %v, %.0f events/s", took, float64(events)/took.Seconds())
}

// await waits until so many streams have ended.
func (w *watchesEnded) await(ctx context.Context, t *testing.T, count int64) {
	t.Helper()
	for w.count.Load() < count {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("the streams that were left do not end")
		}
	}
}

// orderly decodes what it is shown, and checks that the instances live as they may.
func orderly() func([]byte) error {
	order := conformance.NewOrder()
	return func(wire []byte) error {
		var m instancedv1.WatchInstancesResponse
		if err := proto.Unmarshal(wire, &m); err != nil {
			return err
		}
		return order.Follow(&m)
	}
}

// startAndStopAll makes batches that do not fit in one message.
func startAndStopAll(ctx context.Context, t *testing.T, srv *servertest.Server, ids []string) {
	t.Helper()
	perInstance := instancedv1.FailureMode_FAILURE_MODE_PER_INSTANCE
	_, started := srv.Instances().StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: ids, FailureMode: perInstance})
	_, stopped := srv.Instances().StopInstances(ctx, &instancedv1.StopInstancesRequest{InstanceIds: ids, FailureMode: perInstance})
	if err := errors.Join(started, stopped); err != nil {
		t.Fatal(err)
	}
}

// watchesEnded counts the streams that have ended, by their lines in the log.
type watchesEnded struct {
	slog.Handler
	count atomic.Int64
}

func (*watchesEnded) Enabled(context.Context, slog.Level) bool { return true }

func (w *watchesEnded) WithAttrs([]slog.Attr) slog.Handler { return w }

func (w *watchesEnded) Handle(_ context.Context, line slog.Record) error {
	line.Attrs(func(a slog.Attr) bool {
		if a.Key == "method" && a.Value.String() == "WatchInstances" {
			w.count.Add(1)
		}
		return true
	})
	return nil
}
