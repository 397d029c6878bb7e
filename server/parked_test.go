package server_test

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
	"github.com/instanced/instanced/server/servertest/promises"
)

const (
	// longestPark is how long a parked subscriber does not read at the most.
	longestPark = 5 * time.Minute
	// parkedBytes is what a subscriber that does not read may hold beside the windows of
	// the transport, of which there is one at each end.
	parkedBytes, windowBytes = 256 << 10, 64 << 10
)

// TestParked has 200 subscribers of which some never read, while the log goes far beyond
// the windows of the transport and what is held in memory for those who keep up. It runs
// alone, since it looks at the memory of the process.
func TestParked(t *testing.T) {
	const subscribers, parked, instances = 200, 20, 200
	soak, _ := time.ParseDuration(os.Getenv("INSTANCED_SOAK"))
	rest := min(soak, longestPark)
	ctx, cancel := context.WithTimeout(t.Context(), 4*rest+2*time.Minute)
	t.Cleanup(cancel)
	ended := &watchesEnded{Handler: slog.DiscardHandler}
	srv := servertest.New(t, servertest.Options{
		Fleet: fleet(instances), JournalMaxBytes: 16 << 30, RingBytes: 256 << 10, Logger: slog.New(ended),
	})
	all, err := promises.Watch(ctx, srv.Instances(), &instancedv1.WatchInstancesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	until(t, all, promises.SnapshotSeen)
	begin := &instancedv1.WatchInstancesRequest{AfterCursor: head(t, srv)}

	round := func() {
		startAndStopAll(ctx, t, srv, ids(instances))
		busy(t, srv, ids(instances), 20)
	}
	round() // so that those who park are behind what is held in memory from the start
	// The client's window would grow by itself with what arrives on the connection.
	conn := srv.Dial(grpc.WithInitialWindowSize(windowBytes), grpc.WithInitialConnWindowSize(windowBytes))
	parking, leave := context.WithCancel(ctx)
	defer leave()
	for range parked - 1 {
		park(parking, t, conn, begin)
	}
	resumes := park(ctx, t, conn, begin)
	followers := make([]*follower, subscribers-parked)
	for i := range followers {
		followers[i] = follow(ctx, t, srv, begin)
	}

	began := time.Now()
	for rounds := 1; rounds < 4 || time.Since(began) < rest; rounds++ {
		round()
	}
	rest = time.Since(began)
	end := settled(t, srv, ids(instances))
	atEnd := func(c *promises.Connection) bool { return c.Cursor() == end }
	c, err := all.Until(ctx, atEnd)
	if err != nil {
		t.Fatal(err)
	}
	events := len(c.Events())
	for _, f := range followers {
		if err := f.until(ctx, end); err != nil {
			t.Fatal(err)
		} else if got := int(f.events.Load()); got != events {
			t.Fatalf("a subscriber that reads got %d events, want %d", got, events)
		}
	}

	with := restingMemory(ctx)
	leave()
	for ended.count.Load() < parked-1 {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("the streams that were left do not end")
		}
	}
	held := (with - restingMemory(ctx)) / (parked - 1)
	t.Logf("%d events in %v; each of %d subscribers that did not read held %d KiB, both ends and their windows", events, rest, parked, held>>10)
	if held > parkedBytes+2*windowBytes {
		t.Errorf("a subscriber that does not read holds %d bytes, want at most %d and two windows of %d", held, parkedBytes, windowBytes)
	}

	log, err := promises.NewLog(c)
	if err != nil {
		t.Fatal(err)
	}
	caughtUp := &promises.Connection{Request: begin}
	for resumed := time.Now(); !atEnd(caughtUp); {
		m, err := resumes.Recv()
		if err != nil {
			t.Fatal(err)
		}
		caughtUp.Messages = append(caughtUp.Messages, promises.Message{WatchInstancesResponse: m})
		if atEnd(caughtUp) {
			t.Logf("the one that resumed caught up in %v", time.Since(resumed))
		}
	}
	if err := promises.All(log, caughtUp); err != nil {
		t.Error(err)
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

// park subscribes, and does not read.
func park(ctx context.Context, t testing.TB, conn *grpc.ClientConn, req *instancedv1.WatchInstancesRequest) grpc.ServerStreamingClient[instancedv1.WatchInstancesResponse] {
	t.Helper()
	stream, err := instancedv1.NewInstanceServiceClient(conn).WatchInstances(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// follower is a subscriber that keeps nothing of what it reads.
type follower struct {
	events atomic.Int64
	cursor atomic.Pointer[string]
	moved  chan struct{}
	err    error // once moved is closed
}

func follow(ctx context.Context, t *testing.T, srv *servertest.Server, req *instancedv1.WatchInstancesRequest) *follower {
	t.Helper()
	stream, err := srv.Conn().NewStream(ctx, &grpc.StreamDesc{ServerStreams: true},
		instancedv1.InstanceService_WatchInstances_FullMethodName, grpc.ForceCodecV2(briefCodec{encoding.GetCodecV2("proto")}))
	if err := errors.Join(err, stream.SendMsg(req), stream.CloseSend()); err != nil {
		t.Fatal(err)
	}
	f := &follower{moved: make(chan struct{}, 1)}
	go func() {
		defer close(f.moved)
		for {
			var m brief
			if f.err = stream.RecvMsg(&m); f.err != nil {
				return
			}
			f.events.Add(int64(m.events))
			if m.cursor != "" {
				f.cursor.Store(&m.cursor)
			}
			select {
			case f.moved <- struct{}{}:
			default:
			}
		}
	}()
	return f
}

// until waits until the follower has passed a cursor.
func (f *follower) until(ctx context.Context, cursor string) error {
	for {
		if at := f.cursor.Load(); at != nil && *at == cursor {
			return nil
		}
		select {
		case _, ok := <-f.moved:
			if !ok {
				return f.err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// brief is all that a follower wants to know of a WatchInstancesResponse.
type brief struct {
	cursor string
	events int
}

// briefCodec decodes no more than that.
type briefCodec struct{ encoding.CodecV2 }

func (briefCodec) Unmarshal(data mem.BufferSlice, v any) error {
	buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buffer.Free()
	const cursorField, eventsField, eachField = 1, 4, 1
	m := v.(*brief)
	for cursor := range fields(buffer.ReadOnlyData(), cursorField) {
		m.cursor = string(cursor)
	}
	for events := range fields(buffer.ReadOnlyData(), eventsField) {
		for range fields(events, eachField) {
			m.events++
		}
	}
	return nil
}

// fields returns the values of a field of an encoded message.
func fields(message []byte, wanted protowire.Number) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for len(message) > 0 {
			field, kind, n := protowire.ConsumeTag(message)
			message = message[n:]
			size := protowire.ConsumeFieldValue(field, kind, message)
			if field == wanted {
				if value, _ := protowire.ConsumeBytes(message); !yield(value) {
					return
				}
			}
			message = message[size:]
		}
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
