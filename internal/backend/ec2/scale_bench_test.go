package ec2

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	awsec2 "github.com/aws/aws-sdk-go-v2/service/ec2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
	"github.com/instanced/instanced/internal/lifecycle"
	"github.com/instanced/instanced/server"
	"github.com/instanced/instanced/server/servertest"
)

// many is how many callers, or streams, a service under test lets in.
const many = 40_000

// service is the whole service in front of an EC2.
type service struct {
	lifecycle *lifecycle.Service
	address   string
	// took is how long it was until it had seen all instances and was ready.
	took time.Duration
}

// front returns the service in front of an EC2 when it is ready. It ends with the
// benchmark.
func front(b *testing.B, backend *Backend) service {
	b.Helper()
	began := time.Now()
	j, err := journal.Open(b.Context(), journal.Config{DataDir: b.TempDir(), MinFreeDisk: -1, Address: "test"})
	if err != nil {
		b.Fatal(err)
	}
	layer := lifecycle.New(lifecycle.Config{Journal: j, Backend: backend, ReconcileInterval: time.Hour})
	srv := server.New(server.Config{Lifecycle: layer, Backend: "ec2", MaxRequests: many, MaxStreams: many})
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := layer.Run(ctx); err != nil {
			b.Error(err)
		}
	})
	running.Go(func() {
		if err := srv.Serve(lis); err != nil {
			b.Error(err)
		}
	})
	b.Cleanup(func() {
		if err := srv.Shutdown(context.Background()); err != nil {
			b.Error(err)
		}
		cancel()
		running.Wait()
		if err := j.Close(context.Background()); err != nil {
			b.Error(err)
		}
	})
	<-layer.Ready()
	return service{layer, lis.Addr().String(), time.Since(began)}
}

// clients returns clients on a few connections to the service.
func (s service) clients(b *testing.B) []instancedv1.InstanceServiceClient {
	b.Helper()
	list := make([]instancedv1.InstanceServiceClient, 8)
	for i := range list {
		conn, err := grpc.NewClient(s.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = conn.Close() })
		list[i] = instancedv1.NewInstanceServiceClient(conn)
	}
	return list
}

// BenchmarkTenThousandWaits has 10,000 callers wait for instances that are starting, for
// half a minute: by WaitInstances, and by a waiter of the SDK each, as in as many programs.
// What counts is how often EC2 is asked meanwhile.
func BenchmarkTenThousandWaits(b *testing.B) {
	for _, instances := range []int{100, 10_000} {
		b.Run(fmt.Sprintf("instances=%d", instances), func(b *testing.B) { benchmarkWaits(b, instances) })
	}
}

func benchmarkWaits(b *testing.B, instances int) {
	const (
		waiting = 10_000
		window  = 30 * time.Second
	)
	var ours, sdks int64
	windows := 0
	for b.Loop() {
		// A start takes far longer than the window.
		ec2 := served(b, servertest.Options{Speed: 0.01, MaxRequests: many}, int32(instances), "DescribeInstances")
		api := awsec2.NewFromConfig(ec2.cfg)
		for part := range slices.Chunk(ec2.ids, 1000) {
			input := &awsec2.StartInstancesInput{}
			for _, id := range part {
				input.InstanceIds = append(input.InstanceIds, string(id))
			}
			if _, err := api.StartInstances(b.Context(), input); err != nil {
				b.Fatal(err)
			}
		}
		backend := New(Config{AWS: ec2.cfg})
		b.Cleanup(backend.Close)
		clients := front(b, backend).clients(b)
		ours += during(b, window, ec2.calls, waiting, func(ctx context.Context, n int) error {
			_, err := clients[n%len(clients)].WaitInstances(ctx, &instancedv1.WaitInstancesRequest{
				InstanceIds: []string{string(ec2.ids[n%instances])},
				States:      []instancedv1.InstanceStateName{instancedv1.InstanceStateName_INSTANCE_STATE_NAME_RUNNING},
				Timeout:     durationpb.New(time.Hour),
			})
			if status.FromContextError(ctx.Err()).Code() == status.Code(err) {
				return nil // the window has ended
			}
			return fmt.Errorf("the wait ended early: %w", err)
		})
		backend.Close()
		sdks += during(b, window, ec2.calls, waiting, func(ctx context.Context, n int) error {
			err := awsec2.NewInstanceRunningWaiter(api).Wait(ctx, &awsec2.DescribeInstancesInput{InstanceIds: []string{string(ec2.ids[n%instances])}}, time.Hour)
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("the SDK's waiter ended early: %w", err)
		})
		windows++
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(ours)/window.Seconds()/float64(windows), "describes/s")
	b.ReportMetric(float64(sdks)/window.Seconds()/float64(windows), "sdk-describes/s")
	b.ReportMetric(float64(sdks)/float64(ours), "ratio")
}

// during has callers wait for a while, and returns how many calls that makes.
func during(b *testing.B, window time.Duration, calls *counted, callers int, wait func(context.Context, int) error) int64 {
	b.Helper()
	before := calls.calls.Load()
	ctx, cancel := context.WithTimeout(b.Context(), window)
	defer cancel()
	var waiting sync.WaitGroup
	for n := range callers {
		waiting.Go(func() {
			if err := wait(ctx, n); err != nil {
				b.Error(err)
			}
		})
	}
	<-ctx.Done()
	made := calls.calls.Load() - before
	waiting.Wait()
	return made
}

// BenchmarkTracked is what it takes to know of 100,000 instances: until they are known, for
// a comparison with EC2 in which nothing is new, and while nothing happens. What EC2 sends
// is at hand.
func BenchmarkTracked(b *testing.B) {
	const (
		tracked = 100_000
		idle    = 10 * time.Second
	)
	pages := make([]reply, 0, tracked/maxPage)
	for from := 0; from < tracked; from += maxPage {
		var list []*instance.Instance
		for n := range maxPage {
			list = append(list, &instance.Instance{
				ID: id(from + n), AccountID: "123456789012", State: instance.StateRunning, Type: "t3.micro",
				AvailabilityZone: "us-east-1a", RootDeviceType: "ebs", Tenancy: "default",
				LaunchTime: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), PrivateIPAddress: "10.0.0.1", PublicIPAddress: "198.18.0.1",
				Tags: map[string]string{"Name": fmt.Sprintf("worker-%d", from+n), "team": "data-platform", "environment": "production"},
			})
		}
		next := ""
		if from+maxPage < tracked {
			next = strconv.Itoa(len(pages) + 1)
		}
		pages = append(pages, described(list, next))
	}
	e := &endpoint{answer: func(_ context.Context, c call) (reply, error) {
		n, _ := strconv.Atoi(c.form.Get("NextToken"))
		return pages[n], nil
	}}
	plenty := Limit{Capacity: 1e9, Refill: 1e9}
	backend := connect(b, e, func(c *Config) { c.Limits.Describe.Requests = &plenty })

	before, used := memory(), processorTime()
	s := front(b, backend)
	ready := processorTime() - used
	if n := s.lifecycle.Info().InstanceCount; n != tracked {
		b.Fatalf("%d instances are known", n)
	}
	held := memory() - before
	used = processorTime()
	time.Sleep(idle)
	resting := processorTime() - used
	used = processorTime()
	for b.Loop() {
		if _, err := s.lifecycle.Reconcile(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric((processorTime()-used).Seconds()/float64(b.N), "sweep-cpu-s")
	b.ReportMetric(s.took.Seconds(), "s-to-ready")
	b.ReportMetric(ready.Seconds(), "cpu-s-to-ready")
	b.ReportMetric(float64(held)/tracked, "bytes/instance")
	b.ReportMetric(100*resting.Seconds()/idle.Seconds(), "idle-cpu-%")
}

// memory returns the heap and stacks in use.
func memory() int {
	runtime.GC()
	runtime.GC() // pools let go of what they have only when it happens twice
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}

func processorTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
