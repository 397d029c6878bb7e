package server_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
	"github.com/instanced/instanced/server/servertest"
)

func TestSameLog(t *testing.T) {
	t.Parallel()
	one := servertest.New(t, servertest.Options{})
	other := servertest.New(t, servertest.Options{})
	t.Run("a cursor of another log", func(t *testing.T) {
		refusedEverywhere(t, one, head(t, other), "CURSOR_OF_OTHER_LOG")
		beginsAgain(t, one, head(t, other), instancedv1.UnusableCursorReason_UNUSABLE_CURSOR_REASON_OTHER_LOG)
	})
	t.Run("a cursor from beyond the end of the log", func(t *testing.T) {
		for _, by := range []uint64{1, 1_000_000} {
			future := beyond(t, head(t, one), by)
			refusedEverywhere(t, one, future, "CURSOR_AHEAD")
			beginsAgain(t, one, future, instancedv1.UnusableCursorReason_UNUSABLE_CURSOR_REASON_AHEAD)
		}
	})
	t.Run("a log that was restored from an older copy and written to", restoredAndWrittenTo)
}

// refusedEverywhere gives a cursor to all that take one.
func refusedEverywhere(t *testing.T, srv *servertest.Server, cursor, reason string) {
	t.Helper()
	for name, call := range map[string]func() error{
		"WatchInstances": func() error {
			r, err := conformance.Watch(patient(t), srv.Instances(), &instancedv1.WatchInstancesRequest{AfterCursor: cursor})
			if err != nil {
				return err
			}
			c, err := r.End(patient(t))
			if err != nil {
				return err
			}
			if len(c.Messages) > 0 {
				t.Errorf("WatchInstances served %v", c.Messages[0])
			}
			return c.Err
		},
		"WaitInstances": func() error {
			_, err := srv.Instances().WaitInstances(patient(t), &instancedv1.WaitInstancesRequest{
				InstanceIds: []string{id(0)},
				States:      []instancedv1.InstanceStateName{running},
				AfterCursor: cursor,
			})
			return err
		},
		"DescribeInstances": func() error {
			_, err := srv.Instances().DescribeInstances(patient(t), &instancedv1.DescribeInstancesRequest{MinCursor: cursor})
			return err
		},
		"ListEvents": func() error {
			_, err := srv.Instances().ListEvents(patient(t), &instancedv1.ListEventsRequest{InstanceIds: []string{id(0)}, AfterCursor: cursor})
			return err
		},
	} {
		if err := conformance.Refused(call(), codes.OutOfRange, reason); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// beginsAgain asks for a snapshot in place of what the cursor cannot give.
func beginsAgain(t *testing.T, srv *servertest.Server, cursor string, reason instancedv1.UnusableCursorReason) {
	t.Helper()
	r := watch(t, srv, &instancedv1.WatchInstancesRequest{
		AfterCursor:      cursor,
		OnUnusableCursor: instancedv1.UnusableCursorPolicy_UNUSABLE_CURSOR_POLICY_SNAPSHOT,
	})
	c := until(t, r, conformance.SnapshotSeen)
	first := c.Messages[1].GetSnapshot()
	if !first.GetFirst() || first.GetReason() != reason {
		t.Errorf("the snapshot is %v, want the reason %v", first, reason)
	}
}

func TestExpired(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(50), JournalMaxBytes: 1 << 20})
	begin := head(t, srv)
	var oldest string
	for oldest == "" {
		outgrow(t, srv, ids(50))
		err := watchError(t, srv, begin)
		if err == nil {
			continue
		}
		wantRefusal(t, err, codes.OutOfRange, "CURSOR_EXPIRED")
		for _, d := range status.Convert(err).Details() {
			if info, ok := d.(*errdetails.ErrorInfo); ok {
				oldest = info.GetMetadata()["oldest_cursor"]
			}
		}
		if oldest == "" {
			t.Fatalf("the error does not name the oldest cursor: %v", err)
		}
	}
	refusedEverywhere(t, srv, begin, "CURSOR_EXPIRED")
	beginsAgain(t, srv, begin, instancedv1.UnusableCursorReason_UNUSABLE_CURSOR_REASON_EXPIRED)
	watch(t, srv, &instancedv1.WatchInstancesRequest{AfterCursor: oldest})
}

// watchError returns how a watch is refused, nil if it is not.
func watchError(t testing.TB, srv *servertest.Server, cursor string) error {
	t.Helper()
	ctx, cancel := context.WithCancel(patient(t))
	defer cancel()
	r, err := conformance.Watch(ctx, srv.Instances(), &instancedv1.WatchInstancesRequest{AfterCursor: cursor})
	if err != nil {
		return err
	}
	if c, err := r.Until(ctx, conformance.Subscribed); err != nil {
		return c.Err
	}
	return nil
}

func TestGoodbye(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	srv := servertest.New(t, servertest.Options{DataDir: dir, Fleet: fleet(12), Seed: 7, Speed: 2000})
	all := reference(t, srv)
	begin := head(t, srv)
	requests := map[string]*instancedv1.WatchInstancesRequest{}
	subscribers := map[string]*conformance.Recorder{}
	for name, filter := range filters() {
		requests[name] = &instancedv1.WatchInstancesRequest{AfterCursor: begin, Filter: filter, ProgressInterval: durationpb.New(time.Second)}
		subscribers[name] = watch(t, srv, requests[name])
	}
	busy(t, srv, ids(12), 20)
	if err := srv.Shutdown(patient(t)); err != nil {
		t.Fatal(err)
	}
	delays := map[time.Duration]bool{}
	ended := map[string]*conformance.Connection{}
	for name, r := range subscribers {
		c, err := r.End(patient(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := conformance.Goodbye(c, instancedv1.GoodbyeReason_GOODBYE_REASON_DRAIN); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if pushback := c.Messages[len(c.Messages)-1].GetGoodbye().GetRetryDelay().AsDuration(); delays[pushback] {
			t.Errorf("%s: the delay %v is that of another stream too", name, pushback)
		} else {
			delays[pushback] = true
		}
		ended[name] = c
	}
	before, err := all.End(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	srv.Close()

	again := servertest.New(t, servertest.Options{DataDir: dir, Seed: 7, Speed: 2000})
	rest := watch(t, again, &instancedv1.WatchInstancesRequest{AfterCursor: before.Cursor(), ProgressInterval: durationpb.New(time.Second)})
	busy(t, again, ids(12), 20)
	end := settled(t, again, ids(12))
	log, err := conformance.NewLog(before, until(t, rest, func(c *conformance.Connection) bool { return hasCursor(c, end) }))
	if err != nil {
		t.Fatal(err)
	}
	for name, first := range ended {
		requests[name].AfterCursor = first.Cursor()
		second := passed(t, watch(t, again, requests[name]), log)
		first.Request = &instancedv1.WatchInstancesRequest{AfterCursor: begin, Filter: first.Request.GetFilter()}
		if err := conformance.All(log, first, second); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTruthful(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{
		Fleet:        fleet(12),
		Seed:         11,
		Speed:        2000,
		PollInterval: 20 * time.Millisecond,
	})
	all := reference(t, srv)
	if _, err := srv.Simulator().SetFaults(patient(t), &instancedv1.SetFaultsRequest{Faults: []*instancedv1.Fault{
		{Kind: instancedv1.FaultKind_FAULT_KIND_NOTICE_LOST, Probability: 0.3},
		{Kind: instancedv1.FaultKind_FAULT_KIND_NOTICE_DOUBLED, Probability: 0.3},
		{Kind: instancedv1.FaultKind_FAULT_KIND_NOTICE_LATE, Probability: 0.3, Delay: durationpb.New(30 * time.Millisecond)},
		{Kind: instancedv1.FaultKind_FAULT_KIND_NOTICE_REORDERED, Probability: 0.3},
		{Kind: instancedv1.FaultKind_FAULT_KIND_FALL_BACK_TO_STOPPED, Probability: 0.2},
	}}); err != nil {
		t.Fatal(err)
	}
	busy(t, srv, ids(12), 40)
	log := logUpTo(t, all, settled(t, srv, ids(12)))
	backend, err := srv.BackendStates(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(conformance.Truthful(log, backend), conformance.Ordered(all.Seen())); err != nil {
		t.Error(err)
	}
}
