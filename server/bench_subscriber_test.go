package server_test

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// BenchmarkIdleSubscriber is the memory of a subscriber to which nothing happens, heap and
// stacks of both ends, against that of an idle stream of a bare gRPC server.
func BenchmarkIdleSubscriber(b *testing.B) {
	const streams = 4000 // most have goroutines of their own, not those that remain
	_, address := benchServer(b)
	ours := connect(b, address)
	bare := connect(b, bareServer(b, newBareWatch(nil)))
	var onOurs, onBare int
	turns := 0
	for b.Loop() {
		onOurs += memoryOf(b, func(ctx context.Context) {
			openAll(ctx, b, ours, streams, &instancedv1.WatchInstancesRequest{FromNow: true})
		})
		onBare += memoryOf(b, func(ctx context.Context) { openAll(ctx, b, bare, streams, nil) })
		turns++
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(onOurs)/float64(turns*streams), "bytes")
	b.ReportMetric(float64(onBare)/float64(turns*streams), "bare-bytes")
	b.ReportMetric(float64(onOurs)/float64(onBare), "ratio")
}

// BenchmarkParkedSubscriber is the memory of a subscriber that does not read while
// instances are started at full rate, heap and stacks of both ends, beyond that of a
// stream of a bare gRPC server that has filled the windows of the transport.
func BenchmarkParkedSubscriber(b *testing.B) {
	const streams = 50
	srv, address := benchServer(b)
	callers := clientsOf(connect(b, address))
	// Far more than is held in memory for those who keep up.
	begin := head(b, srv)
	for range 6 {
		turn(b, callers, 1024, create(b, srv, 10_000))
	}
	event := sampleEvent(b, srv.Instances(), create(b, srv, 1))
	window := []grpc.DialOption{grpc.WithInitialWindowSize(windowBytes), grpc.WithInitialConnWindowSize(windowBytes)}
	ours := connect(b, address, window...)
	bareService := newBareWatch(event)
	bare := connect(b, bareServer(b, bareService), window...)
	var onOurs, onBare int
	turns := 0
	for b.Loop() {
		onOurs += memoryOf(b, func(ctx context.Context) {
			openAll(ctx, b, ours, streams, &instancedv1.WatchInstancesRequest{AfterCursor: begin})
		})
		onBare += memoryOf(b, func(ctx context.Context) {
			openAll(ctx, b, bare, streams, nil)
			bareService.send(1000)
		})
		turns++
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(onOurs)/float64(turns*streams), "bytes")
	b.ReportMetric(float64(onBare)/float64(turns*streams), "bare-bytes")
	b.ReportMetric(float64(onOurs-onBare)/float64(turns*streams), "more-bytes")
}

// memoryOf returns how much less memory is in use when what was opened has ended.
func memoryOf(b *testing.B, open func(context.Context)) int {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	open(ctx)
	with := restingMemory(ctx)
	cancel()
	return with - restingMemory(b.Context())
}

// restingMemory returns the memory that is in use when it no longer changes, or ctx ends.
func restingMemory(ctx context.Context) int {
	for last := 0; ; {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return last
		}
		runtime.GC() // pools let go of what they have only when it happens twice
		now := memoryInUse()
		if diff := now - last; diff > -64<<10 && diff < 64<<10 {
			return now
		}
		last = now
	}
}

// openAll opens streams and returns when they stand.
func openAll(ctx context.Context, b *testing.B, conns []*grpc.ClientConn, count int, req *instancedv1.WatchInstancesRequest) {
	b.Helper()
	for i := range count {
		stream, err := instancedv1.NewInstanceServiceClient(conns[i%len(conns)]).WatchInstances(ctx, req)
		if err == nil {
			_, err = stream.Recv()
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDelivery is the time from a change of state to the hands of a subscriber, on a
// system that does nothing else: what is written is fsynced before it is delivered, and
// what an fsync takes alone is measured in turns with it.
func BenchmarkDelivery(b *testing.B) {
	srv, address := benchServer(b)
	stream := deliveries(b, connect(b, address)[0])
	file, err := os.Create(filepath.Join(b.TempDir(), "synced"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	fresh := create(b, srv, int32(max(b.N, 1000)))
	skip(b, stream, len(fresh))
	var delays, syncs []time.Duration
	for _, instance := range fresh {
		if _, err := srv.Instances().StartInstances(b.Context(), &instancedv1.StartInstancesRequest{InstanceIds: []string{instance}}); err != nil {
			b.Fatal(err)
		}
		delays = append(delays, (<-stream)...)
		begun := time.Now()
		if _, err := file.Write(make([]byte, 1024)); err != nil {
			b.Fatal(err)
		}
		if err := file.Sync(); err != nil {
			b.Fatal(err)
		}
		syncs = append(syncs, time.Since(begun))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(milliseconds(delays, 0.5), "p50-ms")
	b.ReportMetric(milliseconds(delays, 0.99), "p99-ms")
	b.ReportMetric(milliseconds(syncs, 0.5), "fsync-p50-ms")
	b.ReportMetric(milliseconds(syncs, 0.99), "fsync-p99-ms")
}

// BenchmarkBesideParked is the delay of 199 subscribers while instances are started at
// full rate, beside one more that reads as they do, and beside one that never reads: in
// turns, within one run.
func BenchmarkBesideParked(b *testing.B) {
	const others, sampled, callers = 199, 8, 64
	srv, address := benchServer(b)
	begin := head(b, srv)
	conns := connect(b, address)
	var seen [sampled]<-chan []time.Duration
	for i := range seen {
		seen[i] = deliveries(b, conns[i%len(conns)])
	}
	var received atomic.Int64
	for i := range others - sampled {
		next := receiveBytes(b, conns[i%len(conns)], &instancedv1.WatchInstancesRequest{FromNow: true})
		if _, err := next(); err != nil { // it stands from its first message on
			b.Fatal(err)
		}
		go func() {
			for {
				n, err := next()
				if err != nil {
					return
				}
				received.Add(int64(n))
			}
		}()
	}
	round := func(count int, happen func()) (delays []time.Duration) {
		want := received.Load() + int64(count*(others-sampled))
		var working sync.WaitGroup
		working.Go(happen)
		for _, stream := range seen {
			for left := count; left > 0; {
				some := <-stream
				left -= len(some)
				delays = append(delays, some...)
			}
		}
		working.Wait()
		for received.Load() < want {
			time.Sleep(time.Millisecond)
		}
		return delays
	}
	measure := func(delays *[]time.Duration, req *instancedv1.WatchInstancesRequest) {
		var fresh []string
		round(changesPerTurn, func() { fresh = create(b, srv, changesPerTurn) })
		ctx, cancel := context.WithCancel(b.Context())
		defer cancel()
		stream, err := srv.Instances().WatchInstances(ctx, req)
		if err != nil {
			b.Fatal(err)
		}
		if req.GetFromNow() {
			go func() {
				for _, err := stream.Recv(); err == nil; _, err = stream.Recv() {
				}
			}()
		}
		*delays = append(*delays, round(changesPerTurn, func() { turn(b, clientsOf(conns), callers, fresh) })...)
	}
	var without, with []time.Duration
	for b.Loop() {
		measure(&without, &instancedv1.WatchInstancesRequest{FromNow: true})
		measure(&with, &instancedv1.WatchInstancesRequest{AfterCursor: begin})
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(milliseconds(without, 0.99), "without-p99-ms")
	b.ReportMetric(milliseconds(with, 0.99), "with-p99-ms")
	b.ReportMetric(milliseconds(with, 0.99)/milliseconds(without, 0.99), "ratio")
}

// deliveries subscribes and tells how long after they happened the events of each message
// arrived.
func deliveries(b *testing.B, conn *grpc.ClientConn) <-chan []time.Duration {
	b.Helper()
	stream, err := instancedv1.NewInstanceServiceClient(conn).WatchInstances(b.Context(), &instancedv1.WatchInstancesRequest{FromNow: true})
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		b.Fatal(err)
	}
	delays := make(chan []time.Duration, 1<<10)
	go func() {
		defer close(delays)
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			now := time.Now()
			var some []time.Duration
			for _, e := range m.GetEvents().GetEvents() {
				some = append(some, now.Sub(e.GetOccurredAt().AsTime()))
			}
			if len(some) > 0 {
				delays <- some
			}
		}
	}()
	return delays
}

// skip waits for so many events.
func skip(b *testing.B, stream <-chan []time.Duration, events int) {
	b.Helper()
	for seen := 0; seen < events; {
		some, ok := <-stream
		if !ok {
			b.Fatal("the stream has ended")
		}
		seen += len(some)
	}
}

// milliseconds returns a quantile.
func milliseconds(of []time.Duration, quantile float64) float64 {
	slices.Sort(of)
	return float64(of[int(quantile*float64(len(of)-1))]) / float64(time.Millisecond)
}
