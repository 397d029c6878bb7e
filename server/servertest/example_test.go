package servertest_test

import (
	"testing"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// A test of code that starts instances: the fleet has one that is stopped and one for
// which there is no capacity.
func Example() {
	_ = func(t *testing.T) {
		srv := servertest.New(t, servertest.Options{Fleet: &instancedv1.CreateInstancesRequest{
			Instances: []*instancedv1.InstanceSpec{
				{InstanceId: "i-1234567890abcdef0"},
				{InstanceId: "i-0123456789abcdef0", InstanceType: "p4d.24xlarge"},
			},
			Faults: []*instancedv1.Fault{{
				Kind:  instancedv1.FaultKind_FAULT_KIND_INSUFFICIENT_CAPACITY,
				Match: &instancedv1.FaultMatch{InstanceTypes: []string{"p4d.24xlarge"}},
			}},
		}})
		started, err := srv.Instances().StartInstances(t.Context(), &instancedv1.StartInstancesRequest{
			InstanceIds: []string{"i-1234567890abcdef0"},
		})
		if err != nil {
			t.Fatal(err)
		}
		running, err := srv.Instances().WaitInstances(t.Context(), &instancedv1.WaitInstancesRequest{
			InstanceIds: []string{"i-1234567890abcdef0"},
			States:      []instancedv1.InstanceStateName{instancedv1.InstanceStateName_INSTANCE_STATE_NAME_RUNNING},
			AfterCursor: started.GetCursor(),
		})
		if err != nil {
			t.Fatal(err)
		}
		if outcome := running.GetResults()[0].GetOutcome(); outcome != instancedv1.WaitOutcome_WAIT_OUTCOME_REACHED {
			t.Errorf("the instance does not run: %v", outcome)
		}
	}
}
