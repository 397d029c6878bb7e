package server_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// Each server gets so many calls before it is the other's turn: short enough for both
// to see the same of whatever else the machine does.
const (
	callsPerTurn      = 2_500
	turnsPerIteration = 4
)

// BenchmarkStartInstances compares the start of one instance, on disk before the
// answer, with a bare gRPC server that gives an equal answer at once: the same callers
// and connections, taking turns within one run. One iteration is a few turns of each. The
// journal is below TMPDIR, which should be on a real disk.
func BenchmarkStartInstances(b *testing.B) {
	for _, callers := range []int{256, 1024} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) { benchmarkStart(b, callers) })
	}
}

func benchmarkStart(b *testing.B, callers int) {
	srv, address := benchServer(b)
	ours := clientsOf(connect(b, address))
	bare := clientsOf(connect(b, bareServer(b, bareStart{})))

	var onOurs, onBare spent
	calls := 0
	for b.Loop() {
		b.StopTimer()
		fresh := create(b, srv, callsPerTurn*turnsPerIteration)
		b.StartTimer()
		for instances := range slices.Chunk(fresh, callsPerTurn) {
			onOurs.on(func() { turn(b, ours, callers, instances) })
			onBare.on(func() { turn(b, bare, callers, instances) })
		}
		calls += len(fresh)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(calls)/onOurs.wall.Seconds(), "calls/s")
	b.ReportMetric(float64(calls)/onBare.wall.Seconds(), "bare-calls/s")
	b.ReportMetric(float64(onBare.wall)/float64(onOurs.wall), "ratio")
	b.ReportMetric(float64(onBare.cpu)/float64(onOurs.cpu), "cpu-ratio")
}

// benchServer serves without instances, and returns where.
func benchServer(b *testing.B) (*servertest.Server, string) {
	b.Helper()
	srv := servertest.New(b, servertest.Options{
		Fleet: &instancedv1.CreateInstancesRequest{},
		// Slow enough for instances to be starting until the end: what is measured is
		// the call, and one change for each.
		Speed: 0.001,
		// Nor are they looked at meanwhile.
		PollInterval: time.Hour,
		Logger:       slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	lis := listen(b)
	srv.Serve(lis)
	return srv, lis.Addr().String()
}

// spent is what the turns of one server took: time, and processor time of the whole
// process, which hardly depends on what else the machine does.
type spent struct{ wall, cpu time.Duration }

// on adds what f takes.
func (s *spent) on(f func()) {
	begun, used := time.Now(), cpuTime()
	f()
	s.wall += time.Since(begun)
	s.cpu += cpuTime() - used
}

func cpuTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// turn starts instances, one a call.
func turn(b *testing.B, clients []instancedv1.InstanceServiceClient, callers int, instances []string) {
	var working sync.WaitGroup
	for caller := range callers {
		working.Go(func() {
			client := clients[caller%len(clients)]
			for n := caller; n < len(instances); n += callers {
				if _, err := client.StartInstances(b.Context(), &instancedv1.StartInstancesRequest{InstanceIds: instances[n : n+1]}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	working.Wait()
}

// create adds stopped instances, each with tags as a real one has them.
func create(b *testing.B, srv *servertest.Server, count int32) []string {
	b.Helper()
	resp, err := srv.Simulator().CreateInstances(b.Context(), &instancedv1.CreateInstancesRequest{Instances: []*instancedv1.InstanceSpec{{
		Count: count,
		Tags: map[string]string{
			"Name":        "worker of the nightly batch",
			"team":        "data-platform",
			"environment": "production",
			"cost-center": "4711-0815",
			"created-by":  strings.Repeat("terraform/", 8),
		},
	}}})
	if err != nil {
		b.Fatal(err)
	}
	return resp.GetInstanceIds()
}

// bareStart answers as instanced would.
type bareStart struct {
	instancedv1.UnimplementedInstanceServiceServer
}

func (bareStart) StartInstances(_ context.Context, req *instancedv1.StartInstancesRequest) (*instancedv1.StartInstancesResponse, error) {
	cursor := strings.Repeat("c", 56)
	resp := &instancedv1.StartInstancesResponse{Cursor: cursor, EndCursor: cursor}
	for _, id := range req.GetInstanceIds() {
		resp.StartingInstances = append(resp.StartingInstances, &instancedv1.InstanceStateChange{
			InstanceId:    id,
			CurrentState:  &instancedv1.InstanceState{Code: new(int32(0)), Name: pending},
			PreviousState: &instancedv1.InstanceState{Code: new(int32(80)), Name: stopped},
		})
	}
	return resp, nil
}

// bareServer serves without any interceptor, and returns where.
func bareServer(b *testing.B, service instancedv1.InstanceServiceServer) string {
	b.Helper()
	lis := listen(b)
	s := grpc.NewServer()
	instancedv1.RegisterInstanceServiceServer(s, service)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(lis)
	}()
	b.Cleanup(func() { s.Stop(); <-done })
	return lis.Addr().String()
}

func listen(b testing.TB) net.Listener {
	b.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	return lis
}

// connect makes the connections that callers and subscribers share.
func connect(b *testing.B, address string, opts ...grpc.DialOption) []*grpc.ClientConn {
	b.Helper()
	opts = append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))
	conns := make([]*grpc.ClientConn, 8)
	for i := range conns {
		conn, err := grpc.NewClient(address, opts...)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = conn.Close() })
		conns[i] = conn
	}
	return conns
}

func clientsOf(conns []*grpc.ClientConn) []instancedv1.InstanceServiceClient {
	clients := make([]instancedv1.InstanceServiceClient, len(conns))
	for i, conn := range conns {
		clients[i] = instancedv1.NewInstanceServiceClient(conn)
	}
	return clients
}
