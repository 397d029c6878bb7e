package server_test

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

const (
	// subscribers is how many streams each server has.
	subscribers = 200
	// changesPerTurn is how many changes all of them receive before it is the next
	// server's turn.
	changesPerTurn = 1_000
)

// BenchmarkFanOut has instances started, 20 calls at once with 50 instances each, and all
// of it delivered to 200 subscribers, from the first call to the last delivery. Two
// others take turns with it in the same run, with the same event or as many bytes: a
// bare gRPC server that sends one event a message, which it has at hand; and etcd's own
// watch through its client, one put a change, by 256 callers at once.
//
// What a subscriber does with a message is its own affair: it receives either bytes, or
// messages that generated code decodes. etcd's client always decodes.
func BenchmarkFanOut(b *testing.B) {
	b.Run("received=bytes", func(b *testing.B) { benchmarkFanOut(b, receiveBytes) })
	b.Run("received=messages", func(b *testing.B) { benchmarkFanOut(b, receiveMessages) })
}

func benchmarkFanOut(b *testing.B, open openStream) {
	srv, address := benchServer(b)
	ours := subscribe(b, connect(b, address), open)
	event := sampleEvent(b, srv.Instances(), create(b, srv, 1))
	receive(b, ours, 2)
	bare := newBareWatch(event)
	bareStreams := subscribe(b, connect(b, bareServer(b, bare)), open)
	etcd := newEtcdWatch(b, proto.Size(event))

	var onOurs, onBare, onEtcd spent
	turns := 0
	for b.Loop() {
		b.StopTimer()
		fresh := create(b, srv, changesPerTurn)
		receive(b, ours, changesPerTurn)
		b.StartTimer()
		onOurs.on(func() { deliver(b, ours, func() { startTogether(b, srv.Instances(), fresh) }) })
		onBare.on(func() { deliver(b, bareStreams, func() { bare.send(changesPerTurn) }) })
		onEtcd.on(func() { deliver(b, etcd.streams, func() { etcd.put(b, changesPerTurn) }) })
		turns++
	}
	rate := func(took time.Duration) float64 { return float64(turns*changesPerTurn*subscribers) / took.Seconds() }
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(rate(onOurs.wall), "events/s")
	b.ReportMetric(rate(onBare.wall), "bare-events/s")
	b.ReportMetric(rate(onEtcd.wall), "etcd-events/s")
	b.ReportMetric(float64(onBare.wall)/float64(onOurs.wall), "ratio-to-bare")
	b.ReportMetric(float64(onEtcd.wall)/float64(onOurs.wall), "ratio-to-etcd")
	b.ReportMetric(float64(onBare.cpu)/float64(onOurs.cpu), "cpu-ratio-to-bare")
	b.ReportMetric(float64(onEtcd.cpu)/float64(onOurs.cpu), "cpu-ratio-to-etcd")
}

// startTogether starts instances, many a call.
func startTogether(b *testing.B, client instancedv1.InstanceServiceClient, instances []string) {
	const together = 50
	var working sync.WaitGroup
	for chunk := range slices.Chunk(instances, together) {
		working.Go(func() {
			if _, err := client.StartInstances(b.Context(), &instancedv1.StartInstancesRequest{InstanceIds: chunk}); err != nil {
				b.Error(err)
			}
		})
	}
	working.Wait()
}

// deliver lets a turn happen and returns when its events have reached all streams.
func deliver(b *testing.B, streams []nextEvents, happen func()) {
	var happening sync.WaitGroup
	happening.Go(happen)
	receive(b, streams, changesPerTurn)
	happening.Wait()
}

// nextEvents receives one message and returns how many events are in it.
type nextEvents func() (int, error)

// openStream opens a subscription.
type openStream func(b *testing.B, conn *grpc.ClientConn, req *instancedv1.WatchInstancesRequest) nextEvents

// subscribe opens streams to all that happens from now on, and returns when they stand.
func subscribe(b *testing.B, conns []*grpc.ClientConn, open openStream) []nextEvents {
	b.Helper()
	streams := make([]nextEvents, subscribers)
	for i := range streams {
		streams[i] = open(b, conns[i%len(conns)], &instancedv1.WatchInstancesRequest{FromNow: true})
		if _, err := streams[i](); err != nil {
			b.Fatal(err)
		}
	}
	return streams
}

// receive returns when each of the streams has received so many events.
func receive(b *testing.B, streams []nextEvents, events int) {
	var receiving sync.WaitGroup
	for _, next := range streams {
		receiving.Go(func() {
			for seen := 0; seen < events; {
				n, err := next()
				if err != nil {
					b.Error(err)
					return
				}
				seen += n
			}
		})
	}
	receiving.Wait()
}

// receiveMessages decodes what it receives.
func receiveMessages(b *testing.B, conn *grpc.ClientConn, req *instancedv1.WatchInstancesRequest) nextEvents {
	b.Helper()
	stream, err := instancedv1.NewInstanceServiceClient(conn).WatchInstances(b.Context(), req)
	if err != nil {
		b.Fatal(err)
	}
	return func() (int, error) {
		m, err := stream.Recv()
		return len(m.GetEvents().GetEvents()), err
	}
}

// receiveBytes counts the events in what it receives, and no more.
func receiveBytes(b *testing.B, conn *grpc.ClientConn, req *instancedv1.WatchInstancesRequest) nextEvents {
	b.Helper()
	stream, err := wireStream(b.Context(), conn, req)
	if err != nil {
		b.Fatal(err)
	}
	return func() (count int, err error) {
		err = stream.RecvMsg(func(wire []byte) { count = eventsIn(wire) })
		return count, err
	}
}

// sampleEvent starts an instance and returns the event that follows.
func sampleEvent(b *testing.B, client instancedv1.InstanceServiceClient, ids []string) *instancedv1.Event {
	b.Helper()
	started, err := client.StartInstances(b.Context(), &instancedv1.StartInstancesRequest{InstanceIds: ids})
	if err != nil {
		b.Fatal(err)
	}
	resp, err := client.ListEvents(b.Context(), &instancedv1.ListEventsRequest{InstanceIds: ids, AfterCursor: started.GetCursor()})
	if err != nil {
		b.Fatal(err)
	}
	return resp.GetEvents()[len(resp.GetEvents())-1]
}

// bareWatch sends one and the same event, in a message of its own each time.
type bareWatch struct {
	instancedv1.UnimplementedInstanceServiceServer
	message *instancedv1.WatchInstancesResponse

	mu sync.Mutex
	// turns has a channel for each stream that says how many to send.
	turns map[chan int]struct{}
}

func newBareWatch(event *instancedv1.Event) *bareWatch {
	return &bareWatch{turns: map[chan int]struct{}{}, message: &instancedv1.WatchInstancesResponse{
		Cursor:  strings.Repeat("c", 56),
		Message: &instancedv1.WatchInstancesResponse_Events{Events: &instancedv1.Events{Events: []*instancedv1.Event{event}}},
	}}
}

func (w *bareWatch) WatchInstances(_ *instancedv1.WatchInstancesRequest, stream instancedv1.InstanceService_WatchInstancesServer) error {
	turns := make(chan int, 1)
	w.mu.Lock()
	w.turns[turns] = struct{}{}
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.turns, turns)
	}()
	if err := stream.Send(&instancedv1.WatchInstancesResponse{}); err != nil {
		return err
	}
	for {
		select {
		case count := <-turns:
			for range count {
				if err := stream.Send(w.message); err != nil {
					return err
				}
			}
		case <-stream.Context().Done():
			return nil
		}
	}
}

// send makes all streams send so many events.
func (w *bareWatch) send(count int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for turns := range w.turns {
		turns <- count
	}
}

// etcdWatch is an etcd with subscribers to one prefix.
type etcdWatch struct {
	clients []*clientv3.Client
	streams []nextEvents
	value   string
}

func newEtcdWatch(b *testing.B, size int) *etcdWatch {
	b.Helper()
	w := &etcdWatch{value: strings.Repeat("v", size)}
	endpoint := etcd(b)
	for range 8 {
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = client.Close() })
		w.clients = append(w.clients, client)
	}
	for i := range subscribers {
		watch := w.clients[i%len(w.clients)].Watch(b.Context(), "/events/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		<-watch
		w.streams = append(w.streams, func() (int, error) {
			resp := <-watch
			return len(resp.Events), resp.Err()
		})
	}
	return w
}

// put makes so many changes.
func (w *etcdWatch) put(b *testing.B, count int) {
	const callers = 256
	var working sync.WaitGroup
	for caller := range callers {
		working.Go(func() {
			for n := caller; n < count; n += callers {
				if _, err := w.clients[n%len(w.clients)].Put(b.Context(), "/events/"+id(n), w.value); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	working.Wait()
}
