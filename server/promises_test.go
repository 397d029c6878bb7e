package server_test

import (
	"context"
	"errors"
	"math/rand/v2"
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

// filters are those that the subscribers of a test have.
func filters() map[string]*instancedv1.InstanceFilter {
	return map[string]*instancedv1.InstanceFilter{
		"everything":    nil,
		"running":       {States: []instancedv1.InstanceStateName{running}},
		"in transition": {States: []instancedv1.InstanceStateName{pending, stopping}},
		"team red":      {Tags: []*instancedv1.TagFilter{{Key: "team", Values: []string{"red"}}}},
		"three ids":     {InstanceIds: []string{id(0), id(1), id(2)}},
		"nothing":       {Regions: []string{"nowhere"}},
	}
}

// quick is a server whose instances are in transition for some milliseconds.
func quick(t testing.TB, count int) *servertest.Server {
	return servertest.New(t, servertest.Options{Fleet: fleet(count), Seed: 7, Speed: 2000})
}

func TestOrdered(t *testing.T) {
	t.Parallel()
	srv := quick(t, 12)
	subscribers := map[string]*conformance.Recorder{}
	for name, filter := range filters() {
		subscribers[name] = watch(t, srv, &instancedv1.WatchInstancesRequest{Filter: filter, ProgressInterval: durationpb.New(time.Second)})
	}
	all := reference(t, srv)
	busy(t, srv, ids(12), 40)
	log := logUpTo(t, all, settled(t, srv, ids(12)))
	for name, r := range subscribers {
		if err := conformance.Ordered(passed(t, r, log)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := log.Agrees(history(t, srv, ids(12), log.Begin())); err != nil {
		t.Error(err)
	}
}

// passed waits until a subscriber has been told that the end of the log is behind it.
func passed(t testing.TB, r *conformance.Recorder, log *conformance.Log) *conformance.Connection {
	t.Helper()
	return until(t, r, func(c *conformance.Connection) bool {
		revision, err := log.Revision(c.Cursor())
		return err == nil && revision == log.Head()
	})
}

func TestComplete(t *testing.T) {
	t.Parallel()
	srv := quick(t, 12)
	all := reference(t, srv)
	begin := head(t, srv)
	subscribers := map[string]func() []*conformance.Connection{}
	for name, filter := range filters() {
		subscribers[name] = flakySubscriber(t, srv, &instancedv1.WatchInstancesRequest{AfterCursor: begin, Filter: filter})
	}
	busy(t, srv, ids(12), 40)
	log := logUpTo(t, all, settled(t, srv, ids(12)))
	for name, end := range subscribers {
		if err := conformance.Complete(log, end()...); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// flakySubscriber subscribes, leaves after a few messages and comes back with its cursor,
// until the returned function is called: then it stays until it has caught up.
func flakySubscriber(t testing.TB, srv *servertest.Server, req *instancedv1.WatchInstancesRequest) func() []*conformance.Connection {
	t.Helper()
	var connections []*conformance.Connection
	enough := make(chan struct{})
	done := make(chan struct{})
	ctx := patient(t)
	next := func(leave func(*conformance.Connection) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		again := &instancedv1.WatchInstancesRequest{
			AfterCursor:      req.GetAfterCursor(),
			Filter:           req.GetFilter(),
			ProgressInterval: durationpb.New(time.Second),
		}
		if len(connections) > 0 {
			again.AfterCursor = connections[len(connections)-1].Cursor()
		}
		r, err := conformance.Watch(ctx, srv.Instances(), again)
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := r.Until(ctx, leave); err != nil {
			t.Error(err)
		}
		cancel()
		c, err := r.End(context.WithoutCancel(ctx))
		if err != nil {
			t.Error(err)
		}
		connections = append(connections, c)
	}
	go func() {
		defer close(done)
		random := rand.New(rand.NewPCG(2, uint64(len(req.GetFilter().String()))))
		for !closed(enough) && !t.Failed() {
			enoughMessages := 2 + random.IntN(6)
			next(func(c *conformance.Connection) bool {
				return len(c.Messages) >= enoughMessages || closed(enough) && len(c.Messages) > 1
			})
		}
	}()
	return func() []*conformance.Connection {
		close(enough)
		<-done
		end := head(t, srv)
		next(func(c *conformance.Connection) bool { return hasCursor(c, end) })
		return connections
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestUnique(t *testing.T) {
	t.Parallel()
	srv := quick(t, 12)
	all := reference(t, srv)
	begin := head(t, srv)
	end := flakySubscriber(t, srv, &instancedv1.WatchInstancesRequest{AfterCursor: begin})
	busy(t, srv, ids(12), 40)
	log := logUpTo(t, all, settled(t, srv, ids(12)))
	connections := end()
	if len(connections) < 3 {
		t.Fatalf("only %d connections", len(connections))
	}
	if err := conformance.Unique(log, connections...); err != nil {
		t.Error(err)
	}
	// From every cursor that there was, the rest comes, and nothing else.
	for _, c := range all.Seen().Messages {
		if c.GetEvents() == nil {
			continue
		}
		r := watch(t, srv, &instancedv1.WatchInstancesRequest{AfterCursor: c.GetCursor(), ProgressInterval: durationpb.New(time.Second)})
		again := passed(t, r, log)
		if err := errors.Join(conformance.Unique(log, again), conformance.Complete(log, again)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAtomic(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Fleet: &instancedv1.CreateInstancesRequest{}})
	all := reference(t, srv)
	red := watch(t, srv, &instancedv1.WatchInstancesRequest{
		FromNow:          true,
		ProgressInterval: durationpb.New(time.Second),
		Filter:           &instancedv1.InstanceFilter{Tags: []*instancedv1.TagFilter{{Key: "team", Values: []string{"red"}}}},
	})
	// So much at once that no message can hold it.
	large := fleet(900)
	for _, spec := range large.GetInstances() {
		spec.Tags["note"] = strings.Repeat("x", 250)
	}
	created, err := srv.Simulator().CreateInstances(patient(t), large)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := srv.Instances().StartInstances(patient(t), &instancedv1.StartInstancesRequest{InstanceIds: created.GetInstanceIds()}); err != nil {
		t.Fatal(err)
	}
	log := logUpTo(t, all, settled(t, srv, created.GetInstanceIds()))
	for name, r := range map[string]*conformance.Recorder{"everything": all, "team red": red} {
		c := passed(t, r, log)
		if err := errors.Join(conformance.Atomic(log, c), conformance.Complete(log, c)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		divided := false
		for _, m := range c.Messages {
			divided = divided || m.GetEvents() != nil && m.GetCursor() == ""
		}
		if !divided {
			t.Errorf("%s: no batch was spread over several messages", name)
		}
	}
}

func TestSnapshot(t *testing.T) {
	t.Parallel()
	srv := quick(t, 12)
	if _, err := srv.Simulator().CreateInstances(patient(t), &instancedv1.CreateInstancesRequest{
		Instances: []*instancedv1.InstanceSpec{{Count: 2000, Tags: map[string]string{"team": "red"}}},
	}); err != nil {
		t.Fatal(err)
	}
	all := reference(t, srv)
	late := map[string]*conformance.Recorder{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		busy(t, srv, ids(12), 40)
	}()
	for name, filter := range filters() {
		late[name] = watch(t, srv, &instancedv1.WatchInstancesRequest{Filter: filter, ProgressInterval: durationpb.New(time.Second)})
		until(t, late[name], conformance.SnapshotSeen)
	}
	<-done
	log := logUpTo(t, all, settled(t, srv, ids(12)))
	for name, r := range late {
		c := passed(t, r, log)
		if err := errors.Join(conformance.Snapshot(log, c), conformance.Complete(log, c)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	parts := 0
	for _, m := range late["team red"].Seen().Messages {
		if m.GetSnapshot() != nil {
			parts++
		}
	}
	if parts < 2 {
		t.Errorf("the large snapshot came in %d parts", parts)
	}
}

func TestLive(t *testing.T) {
	t.Parallel()
	srv := quick(t, 12)
	all := reference(t, srv)
	subscribers := map[string]*conformance.Recorder{}
	for name, filter := range filters() {
		subscribers[name] = watch(t, srv, &instancedv1.WatchInstancesRequest{FromNow: true, Filter: filter, ProgressInterval: durationpb.New(time.Second)})
	}
	answers := busy(t, srv, ids(12), 40)
	log := logUpTo(t, all, settled(t, srv, ids(12)))
	for name, r := range subscribers {
		if err := conformance.Live(log, passed(t, r, log), answers...); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestProgress(t *testing.T) {
	t.Parallel()
	late := worstLateness(t)
	srv := quick(t, 12)
	subscribers := map[string]*conformance.Recorder{}
	for name, filter := range filters() {
		subscribers[name] = watch(t, srv, &instancedv1.WatchInstancesRequest{FromNow: true, Filter: filter, ProgressInterval: durationpb.New(time.Second)})
	}
	quiet := servertest.New(t, servertest.Options{})
	subscribers["a server where nothing happens"] = watch(t, quiet, &instancedv1.WatchInstancesRequest{ProgressInterval: durationpb.New(time.Second)})

	three := func(c *conformance.Connection) bool {
		count := 0
		for _, m := range c.Messages {
			if m.GetProgress() != nil {
				count++
			}
		}
		return count >= 3
	}
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				busy(t, srv, ids(12), 5)
			}
		}
	}()
	for name, r := range subscribers {
		c := until(t, r, three)
		// A message passes through half a dozen goroutines, each of which may be as late.
		if err := conformance.Progress(c, c.Messages[len(c.Messages)-1].At, 500*time.Millisecond+6*late()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	close(stop)
	<-done
	end := settled(t, srv, ids(12))
	until(t, subscribers["nothing"], func(c *conformance.Connection) bool { return c.Cursor() == end })
}

// worstLateness watches for how late a goroutine of this process wakes at the worst, which
// depends on what else the machine does; the function that it returns tells.
func worstLateness(t *testing.T) func() time.Duration {
	const nap = 10 * time.Millisecond
	var worst atomic.Int64
	stop := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		for last := time.Now(); ; {
			select {
			case <-stop:
				return
			case <-time.After(nap):
			}
			now := time.Now()
			worst.Store(max(worst.Load(), int64(now.Sub(last)-nap)))
			last = now
		}
	})
	t.Cleanup(func() { close(stop); watching.Wait() })
	return func() time.Duration { return time.Duration(worst.Load()) }
}

func TestReadYourStart(t *testing.T) {
	t.Parallel()
	srv := quick(t, 12)
	for n := range 12 {
		start, err := srv.Instances().StartInstances(as(patient(t), "alice", id(n)), &instancedv1.StartInstancesRequest{InstanceIds: []string{id(n)}})
		if err != nil {
			t.Fatal(err)
		}
		watching := watch(t, srv, &instancedv1.WatchInstancesRequest{AfterCursor: start.GetCursor()})
		waited, err := srv.Instances().WaitInstances(patient(t), &instancedv1.WaitInstancesRequest{
			InstanceIds: []string{id(n)},
			States:      []instancedv1.InstanceStateName{pending},
			AfterCursor: start.GetCursor(),
		})
		if err != nil {
			t.Fatal(err)
		}
		if outcome := waited.GetResults()[0].GetOutcome(); outcome != instancedv1.WaitOutcome_WAIT_OUTCOME_REACHED {
			t.Errorf("the wait after the start of %s: %v", id(n), outcome)
		}
		c := until(t, watching, func(c *conformance.Connection) bool { return hasCursor(c, start.GetEndCursor()) })
		if err := conformance.ReadYourStart(c, start, id(n)); err != nil {
			t.Error(err)
		}
	}
}
