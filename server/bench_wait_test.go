package server_test

import (
	"context"
	"io"
	"log/slog"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// BenchmarkBesideWaits is how fast instances are started while 10,000 callers wait for
// others, against when none does: in turns, within one run.
func BenchmarkBesideWaits(b *testing.B) {
	const waiting, callers, perTurn = 10_000, 256, 2_500
	srv := servertest.New(b, servertest.Options{
		Fleet: &instancedv1.CreateInstancesRequest{}, Speed: 0.001, PollInterval: time.Hour,
		MaxRequests: 4 * waiting, MaxStreams: 4 * waiting,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	lis := listen(b)
	srv.Serve(lis)
	conns := connect(b, lis.Addr().String())
	clients := clientsOf(conns)
	idle := create(b, srv, waiting)

	var without, with spent
	calls := 0
	for b.Loop() {
		fresh := create(b, srv, 2*perTurn)
		without.on(func() { turn(b, clients, callers, fresh[:perTurn]) })
		ctx, cancel := context.WithCancel(b.Context())
		waits := waitForEach(ctx, b, conns, idle)
		with.on(func() { turn(b, clients, callers, fresh[perTurn:]) })
		cancel()
		for _, wait := range waits {
			if err := wait.RecvMsg(&instancedv1.WaitInstancesResponse{}); status.Code(err) != codes.Canceled {
				b.Fatalf("a wait ended early: %v", err)
			}
		}
		calls += perTurn
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(calls)/without.wall.Seconds(), "alone-calls/s")
	b.ReportMetric(float64(calls)/with.wall.Seconds(), "calls/s")
	b.ReportMetric(float64(without.wall)/float64(with.wall), "ratio")
	b.ReportMetric(float64(without.cpu)/float64(with.cpu), "cpu-ratio")
}

// waitForEach has a call wait for each of some instances, and returns when the server has
// all of them.
func waitForEach(ctx context.Context, b *testing.B, conns []*grpc.ClientConn, instances []string) []grpc.ClientStream {
	b.Helper()
	waits := make([]grpc.ClientStream, len(instances))
	for n, instance := range instances {
		wait, err := conns[n%len(conns)].NewStream(ctx, &grpc.StreamDesc{}, instancedv1.InstanceService_WaitInstances_FullMethodName)
		if err == nil {
			err = wait.SendMsg(&instancedv1.WaitInstancesRequest{
				InstanceIds: []string{instance},
				States:      []instancedv1.InstanceStateName{running},
				Timeout:     durationpb.New(time.Hour),
			})
		}
		if err == nil {
			err = wait.CloseSend()
		}
		if err != nil {
			b.Fatal(err)
		}
		waits[n] = wait
	}
	for _, conn := range conns { // what it is asked last, it gets last
		if _, err := instancedv1.NewInstanceServiceClient(conn).GetServerInfo(ctx, &instancedv1.GetServerInfoRequest{}); err != nil {
			b.Fatal(err)
		}
	}
	return waits
}
