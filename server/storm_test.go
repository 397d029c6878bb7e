package server_test

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
	"github.com/instanced/instanced/server/servertest"
)

// TestAReconnectStorm has many clients, each with a connection of its own, begin with a
// snapshot of a large fleet at once, as after a restart: all get it, the snapshots share
// their instances, and another caller's calls succeed meanwhile. In a soak they are
// 2,000 clients and 10,000 instances.
func TestAReconnectStorm(t *testing.T) {
	// Not in parallel with others: it looks at the memory of the process.
	clients, instances := 100, 1000
	if soaking() {
		clients, instances = 2000, 10_000
	}
	srv := servertest.New(t, servertest.Options{Fleet: fleet(instances)})
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv.Serve(lis)
	conns := make([]*grpc.ClientConn, clients)
	for i := range conns {
		if conns[i], err = grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conns[i].Close() })
	}
	before := memoryInUse()
	peak := highWater(t)
	ctx, hangUp := context.WithTimeout(t.Context(), 5*time.Minute)
	defer hangUp()
	var (
		storm sync.WaitGroup
		back  atomic.Int64
		quiet = make(chan struct{})
	)
	begun := time.Now()
	for _, conn := range conns {
		storm.Go(func() {
			if got, err := snapshotSize(ctx, conn); err != nil || got != instances {
				t.Errorf("a snapshot has %d instances, want %d (%v)", got, instances, err)
			}
			back.Add(1)
		})
	}
	go func() { storm.Wait(); close(quiet) }()
	slowest := time.Duration(0)
	for calls := 0; ; calls++ {
		at := time.Now()
		if _, err := srv.Instances().DescribeInstances(ctx, &instancedv1.DescribeInstancesRequest{PageSize: 1}); err != nil {
			t.Fatalf("another caller, when %d are back: %v", back.Load(), err)
		}
		slowest = max(slowest, time.Since(at))
		select {
		case <-quiet:
			took := time.Since(begun)
			high := peak() - before
			t.Logf("%d clients have snapshots of %d instances after %v; %d KiB a client at the peak, both ends; the slowest of another caller's %d calls took %v",
				clients, instances, took.Round(time.Millisecond), high/clients>>10, calls+1, slowest.Round(time.Microsecond))
			// Two ends of a connection with a message of 128 KiB on its way on each.
			if maxBytes := clients*(1<<20) + 64<<20; high > maxBytes {
				t.Errorf("the storm takes %d MiB, want at most %d", high>>20, maxBytes>>20)
			}
			return
		default:
		}
	}
}

// snapshotSize subscribes and counts the instances of the snapshot.
func snapshotSize(ctx context.Context, conn *grpc.ClientConn) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := instancedv1.NewInstanceServiceClient(conn).WatchInstances(ctx, &instancedv1.WatchInstancesRequest{}, grpc.WaitForReady(true))
	for count := 0; err == nil; {
		var msg *instancedv1.WatchInstancesResponse
		if msg, err = stream.Recv(); err == nil {
			count += len(msg.GetSnapshot().GetInstances())
			if msg.GetSnapshot().GetLast() {
				return count, nil
			}
		}
	}
	return 0, err
}

// highWater begins to watch the memory of the process, and returns what ends that and
// tells the most that heap and stacks held, in bytes, garbage included.
func highWater(t testing.TB) func() int {
	runtime.GC()
	stop := make(chan struct{})
	var watching sync.WaitGroup
	var high atomic.Int64
	watching.Go(func() {
		samples := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
		for ticker := time.Tick(5 * time.Millisecond); ; {
			metrics.Read(samples)
			high.Store(max(high.Load(), int64(samples[0].Value.Uint64()+samples[1].Value.Uint64())))
			select {
			case <-ticker:
			case <-stop:
				return
			}
		}
	})
	end := sync.OnceFunc(func() { close(stop); watching.Wait() })
	t.Cleanup(end)
	return func() int { end(); return int(high.Load()) }
}

// TestRequestsOfFourMegabytes has many of them sent at once: they are refused before they
// are received. So are meaningless ones of 1 MB, after they were received.
func TestRequestsOfFourMegabytes(t *testing.T) {
	// Not in parallel with others: it looks at the memory of the process.
	const calls = 100
	srv := servertest.New(t, servertest.Options{Fleet: fleet(3)})
	for name, test := range map[string]struct {
		method string
		body   []byte
		code   codes.Code
	}{
		"too large":            {instancedv1.InstanceService_StartInstances_FullMethodName, make([]byte, 4_000_000), codes.ResourceExhausted},
		"not a message":        {instancedv1.InstanceService_StartInstances_FullMethodName, make([]byte, 1_000_000), codes.InvalidArgument},
		"of 500,000 ids":       {instancedv1.InstanceService_StartInstances_FullMethodName, emptyElements(500_000), codes.InvalidArgument},
		"of 500,000 instances": {instancedv1.SimulatorService_CreateInstances_FullMethodName, emptyElements(500_000), codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			before := memoryInUse()
			peak := highWater(t)
			var sending sync.WaitGroup
			for range calls {
				sending.Go(func() {
					var answer []byte
					wantCode(t, srv.Conn().Invoke(patient(t), test.method, test.body, &answer, grpc.ForceCodecV2(rawCodec{})), test.code)
				})
			}
			for range 10 {
				if _, err := srv.Instances().DescribeInstances(patient(t), &instancedv1.DescribeInstancesRequest{}); err != nil {
					t.Errorf("another caller: %v", err)
				}
			}
			sending.Wait()
			high := peak() - before
			t.Logf("%d requests of %d bytes take %d MiB at the peak, both ends and garbage included", calls, len(test.body), high>>20)
			if high > 1<<30 {
				t.Errorf("the requests take %d MiB", high>>20)
			}
		})
	}
}

// emptyElements returns a request with so many elements of two bytes each, which is the
// most that a request can be blown up to when it is decoded.
func emptyElements(count int) []byte {
	body := make([]byte, 0, 2*count)
	for range count {
		body = append(body, 1<<3|2, 0)
	}
	return body
}

// TestConnectionsThatSayNothing has many clients connect and say nothing: a client with a
// call in flight and one that calls occasionally are served anyway, and the silent ones are
// closed.
func TestConnectionsThatSayNothing(t *testing.T) {
	t.Parallel()
	const maxConnections = 50
	silent := 200
	if soaking() {
		silent = 1000
	}
	srv := servertest.New(t, servertest.Options{MaxConnections: maxConnections})
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv.Serve(lis)
	busy := watch(t, srv, &instancedv1.WatchInstancesRequest{FromNow: true})
	conns := make([]net.Conn, silent)
	for i := range conns {
		if conns[i], err = net.Dial("tcp", lis.Addr().String()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conns[i].Close() })
		if i%2 == 0 {
			// HTTP/2, and nothing after it.
			if _, err := fmt.Fprint(conns[i], "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
				continue // closed already
			}
		}
	}
	start(t, srv, example)
	until(t, busy, func(c *conformance.Connection) bool { return len(c.Events()) > 0 })
	newcomer, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = newcomer.Close() })
	if _, err := instancedv1.NewInstanceServiceClient(newcomer).GetServerInfo(patient(t), &instancedv1.GetServerInfoRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Errorf("a client that comes later: %v", err)
	}
	var closed atomic.Int64
	var reading sync.WaitGroup
	for _, conn := range conns {
		reading.Go(func() {
			_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
			for buf := make([]byte, 512); ; {
				if _, err := conn.Read(buf); err != nil {
					closed.Add(1)
					return
				}
			}
		})
	}
	// All but those that fit, and of these the ones that did not speak HTTP/2.
	eventually(t, "the silent connections are closed", func() bool { return closed.Load() >= int64(silent-maxConnections/2) })
	for _, conn := range conns {
		_ = conn.Close()
	}
	reading.Wait()
}
