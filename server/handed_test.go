package server_test

import (
	"context"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
	"github.com/instanced/instanced/server/servertest"
)

// sluice leads to an etcd, and can be shut: nothing gets through until it is opened, and
// nothing is lost.
type sluice struct {
	address string
	gate    sync.RWMutex // held to read by whatever flows, to write while it is shut
}

func newSluice(t *testing.T, etcd string) *sluice {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sluice{address: lis.Addr().String()}
	var running sync.WaitGroup
	var mu sync.Mutex
	var ends []net.Conn
	running.Go(func() {
		for {
			near, err := lis.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("unix", strings.TrimPrefix(etcd, "unix://"))
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			ends = append(ends, near, far)
			mu.Unlock()
			running.Go(func() { s.flow(near, far) })
			running.Go(func() { s.flow(far, near) })
		}
	})
	t.Cleanup(func() {
		_ = lis.Close()
		mu.Lock()
		for _, end := range ends {
			_ = end.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return s
}

func (s *sluice) flow(from, to net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		s.gate.RLock()
		_, wrong := to.Write(buf[:n])
		s.gate.RUnlock()
		if err != nil || wrong != nil {
			_, _ = to.Close(), from.Close()
			return
		}
	}
}

// shut keeps everything back until the returned function is called.
func (s *sluice) shut() (open func()) {
	s.gate.Lock()
	return s.gate.Unlock
}

// beside returns two servers on one etcd: the owner, and one whose way to etcd leads
// through a sluice.
func beside(t *testing.T) (owner, follower *servertest.Server, way *sluice) {
	t.Helper()
	address := etcd(t)
	owner = servertest.New(t, servertest.Options{Endpoints: []string{address}, Fleet: fleet(12), Seed: 7, Speed: 2000})
	way = newSluice(t, address)
	follower = servertest.New(t, servertest.Options{Endpoints: []string{way.address}})
	return owner, follower, way
}

func TestCursorsAreHandedBetweenProcessesOfWhichOneLags(t *testing.T) {
	t.Parallel()
	owner, follower, way := beside(t)
	servers := []*servertest.Server{owner, follower}
	all, err := conformance.Watch(t.Context(), owner.Instances(), &instancedv1.WatchInstancesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	until(t, all, conformance.SnapshotSeen)
	stop := writing(t, owner, ids(12), nil, nil)

	// The follower lags time and again, for longer than most streams last.
	cut := make(chan struct{})
	var lagging sync.WaitGroup
	lagging.Go(func() {
		random := rand.New(rand.NewPCG(4, 4))
		for !closed(cut) {
			open := way.shut()
			pause(t.Context(), time.Duration(50+random.IntN(150))*time.Millisecond)
			open()
			pause(t.Context(), time.Duration(20+random.IntN(50))*time.Millisecond)
		}
	})
	points := cutPoints() / 5
	cutters := flakyCutters(4)
	for _, c := range cutters {
		c.mayWait = true
	}
	var left atomic.Int64
	left.Store(int64(points))
	var cutting sync.WaitGroup
	for n, c := range cutters {
		cutting.Go(func() { c.run(t, servers, &left, make(chan struct{}, points), rand.New(rand.NewPCG(6, uint64(n)))) })
	}
	cutting.Wait()
	close(cut)
	lagging.Wait()
	log := logUpTo(t, all, stop())
	if err := log.Agrees(history(t, follower, ids(12), log.Begin())); err != nil {
		t.Error(err)
	}
	if made := keptPromises(t, servers, cutters, log); made.elsewhere != points {
		t.Errorf("the cuts are %+v, want %d", made, points)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

func TestALaggingProcessWaitsForACursorThatIsAheadOfIt(t *testing.T) {
	t.Parallel()
	owner, follower, way := beside(t)
	open := sync.OnceFunc(way.shut())
	t.Cleanup(open)
	start, err := owner.Instances().StartInstances(as(patient(t), "alice", "ahead"), &instancedv1.StartInstancesRequest{InstanceIds: ids(1)})
	if err != nil {
		t.Fatal(err)
	}
	ahead := start.GetEndCursor()
	calls := map[string]func(ctx context.Context) error{
		"WatchInstances": func(ctx context.Context) error {
			stream, err := follower.Instances().WatchInstances(ctx, &instancedv1.WatchInstancesRequest{
				AfterCursor: ahead, ProgressInterval: durationpb.New(time.Second),
			})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		},
		"WatchInstances with a snapshot if need be": func(ctx context.Context) error {
			c, err := cutAfter(ctx, follower.Instances(), &instancedv1.WatchInstancesRequest{
				AfterCursor: ahead, OnUnusableCursor: instancedv1.UnusableCursorPolicy_UNUSABLE_CURSOR_POLICY_SNAPSHOT,
				ProgressInterval: durationpb.New(time.Second),
			}, 2)
			if err == nil && c.Messages[1].GetSnapshot() != nil {
				t.Errorf("a cursor that is only ahead is answered by a snapshot: %v", c.Messages[1].GetSnapshot().GetReason())
			}
			return err
		},
		"WaitInstances": func(ctx context.Context) error {
			_, err := follower.Instances().WaitInstances(ctx, &instancedv1.WaitInstancesRequest{
				InstanceIds: ids(1), States: []instancedv1.InstanceStateName{running}, AfterCursor: ahead,
			})
			return err
		},
		"DescribeInstances": func(ctx context.Context) error {
			resp, err := follower.Instances().DescribeInstances(ctx, &instancedv1.DescribeInstancesRequest{
				Filter: &instancedv1.InstanceFilter{InstanceIds: ids(1)}, MinCursor: ahead,
			})
			if err == nil && resp.GetInstances()[0].GetState().GetName() == stopped {
				t.Error("DescribeInstances does not show what its cursor is behind")
			}
			return err
		},
		"ListEvents": func(ctx context.Context) error {
			_, err := follower.Instances().ListEvents(ctx, &instancedv1.ListEventsRequest{InstanceIds: ids(1), AfterCursor: ahead})
			return err
		},
	}
	var waiting sync.WaitGroup
	var opened atomic.Bool
	for name, call := range calls {
		waiting.Go(func() {
			if err := call(patient(t)); err != nil || !opened.Load() {
				t.Errorf("%s was answered while the log could not be read (%v), or in vain: %v", name, !opened.Load(), err)
			}
		})
	}
	pause(t.Context(), 200*time.Millisecond)
	opened.Store(true)
	open()
	waiting.Wait()
}
