package server_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// TestLookUpsOfOnePrincipalLeaveRoomForOthers has one principal ask for thousands of ids
// that are unknown, which are looked up at a backend that takes its time.
func TestLookUpsOfOnePrincipalLeaveRoomForOthers(t *testing.T) {
	t.Parallel()
	const calls, each = 6, 1000
	srv := servertest.New(t, servertest.Options{})
	if _, err := srv.Simulator().SetFaults(patient(t), &instancedv1.SetFaultsRequest{Faults: []*instancedv1.Fault{{
		Kind:  instancedv1.FaultKind_FAULT_KIND_SLOW_CALL,
		Match: &instancedv1.FaultMatch{Verbs: []string{"DescribeInstances"}},
		Delay: durationpb.New(300 * time.Millisecond),
	}}}); err != nil {
		t.Fatal(err)
	}
	describe := func(principal string, ids ...string) error {
		_, err := srv.Instances().DescribeInstances(as(patient(t), principal, "r"), &instancedv1.DescribeInstancesRequest{
			Filter: &instancedv1.InstanceFilter{InstanceIds: ids},
		})
		return err
	}
	var flood sync.WaitGroup
	var shed, answered atomic.Int64
	for call := range calls {
		ids := make([]string, each)
		for i := range ids {
			ids[i] = fmt.Sprintf("i-f%016x", call*each+i)
		}
		flood.Go(func() {
			err := describe("flood", ids...)
			if status.Code(err) == codes.ResourceExhausted {
				wantRefusal(t, err, codes.ResourceExhausted, "TOO_MANY_LOOK_UPS")
				shed.Add(1)
				return
			}
			wantCode(t, err, codes.NotFound)
			answered.Add(1)
		})
	}
	eventually(t, "the flood is refused more than half of all look-ups", func() bool { return shed.Load() == 1 })
	wantCode(t, describe("alice", "i-a0000000000000001"), codes.NotFound)
	if n := answered.Load(); n != 0 {
		t.Errorf("another principal was answered after %d calls of the flood", n)
	}
	if _, err := srv.Simulator().SetFaults(patient(t), &instancedv1.SetFaultsRequest{}); err != nil {
		t.Fatal(err)
	}
	flood.Wait()
	wantCode(t, describe("flood", "i-f1000000000000000"), codes.NotFound)
}

// TestLargeRequestsOfOnePrincipalLeaveRoomForOthers has one principal, on connections of
// its own, take as many places of large requests as it gets, for as long as it likes.
func TestLargeRequestsOfOnePrincipalLeaveRoomForOthers(t *testing.T) {
	t.Parallel()
	const places, calls = 4, 10
	held := newStuck()
	srv := servertest.New(t, servertest.Options{Register: held.register})
	large := &instancedv1.GetServerInfoRequest{}
	large.ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 1000, protowire.BytesType), make([]byte, 100<<10)))
	var flood sync.WaitGroup
	for range calls {
		conn := srv.Dial()
		flood.Go(func() {
			if err := conn.Invoke(as(patient(t), "flood", "r"), troubleUnary, large, &instancedv1.GetServerInfoResponse{}); err != nil {
				t.Errorf("the flood: %v", err)
			}
		})
	}
	eventually(t, "half of the places are taken", func() bool { return held.entered.Load() == places/2 })
	if _, err := srv.Instances().GetServerInfo(as(patient(t), "alice", "r"), large); err != nil {
		t.Errorf("another caller: %v", err)
	}
	if n := held.entered.Load(); n != places/2 {
		t.Errorf("the flood has %d places of %d", n, places)
	}
	close(held.released)
	flood.Wait()
}
