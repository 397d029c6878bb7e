package server_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// bend changes an answer on its way to the caller, and reports whether it did.
type bend func(answer any) bool

func (b bend) between(bent *atomic.Int32) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		err := invoke(ctx, method, req, reply, cc, opts...)
		if err == nil && b(reply) {
			bent.Add(1)
		}
		return err
	}
}

// starting applies a bend to the changes that starts were told of.
func starting(f func(*instancedv1.InstanceStateChange) bool) bend {
	return func(answer any) bool {
		bent := false
		if resp, ok := answer.(*instancedv1.StartInstancesResponse); ok {
			for _, c := range resp.GetStartingInstances() {
				bent = f(c) || bent
			}
		}
		return bent
	}
}

// staleDescriptions answers every description of an instance with the first one.
func staleDescriptions() bend {
	var mu sync.Mutex
	first := make(map[string]*instancedv1.DescribeInstancesResponse)
	return func(answer any) bool {
		resp, ok := answer.(*instancedv1.DescribeInstancesResponse)
		if !ok || len(resp.GetInstances()) != 1 {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		id := resp.GetInstances()[0].GetInstanceId()
		if first[id] == nil {
			first[id] = proto.CloneOf(resp)
			return false
		}
		bent := resp.GetInstances()[0].GetState().GetName() != first[id].GetInstances()[0].GetState().GetName()
		proto.Reset(resp)
		proto.Merge(resp, first[id])
		return bent
	}
}

// TestTheModelRejectsBrokenRules has the answers of a real server broken on the way, each
// test in one way, and demands that the model sees it.
func TestTheModelRejectsBrokenRules(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		bend bend
	}{
		{"a second caller is told that it caused the start", starting(func(c *instancedv1.InstanceStateChange) bool {
			second := c.GetPreviousState().GetName() == pending
			if second {
				c.PreviousState = &instancedv1.InstanceState{Code: new(int32(80)), Name: stopped}
			}
			return second
		})},
		{"no caller is told that it caused the start", starting(func(c *instancedv1.InstanceStateChange) bool {
			first := c.GetPreviousState().GetName() == stopped
			if first {
				c.PreviousState = c.CurrentState
			}
			return first
		})},
		{"descriptions are from before acknowledged changes", staleDescriptions()},
		{"a refused start is carried out", func(answer any) bool {
			resp, ok := answer.(*instancedv1.StartInstancesResponse)
			if !ok || len(resp.GetStartingInstances()) == 0 {
				return false
			}
			for _, c := range resp.GetStartingInstances() {
				resp.FailedInstances = append(resp.FailedInstances, &instancedv1.InstanceFailure{InstanceId: c.GetInstanceId(), Ec2ErrorCode: "IncorrectInstanceState"})
			}
			resp.StartingInstances = nil
			return true
		}},
		{"a wait says that a state was reached that was not", func(answer any) bool {
			resp, ok := answer.(*instancedv1.WaitInstancesResponse)
			bent := false
			for _, r := range resp.GetResults() {
				if r.GetOutcome() == instancedv1.WaitOutcome_WAIT_OUTCOME_TIMED_OUT {
					r.Outcome, bent = instancedv1.WaitOutcome_WAIT_OUTCOME_REACHED, true
				}
			}
			return ok && bent
		}},
		{"a wait says that a start fell back that did not", func(answer any) bool {
			resp, ok := answer.(*instancedv1.WaitInstancesResponse)
			bent := false
			for _, r := range resp.GetResults() {
				if r.GetOutcome() == instancedv1.WaitOutcome_WAIT_OUTCOME_REACHED {
					r.Outcome, bent = instancedv1.WaitOutcome_WAIT_OUTCOME_UNREACHABLE, true
				}
			}
			return ok && bent
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			// Whether an answer comes that can be bent is a matter of chance.
			var bent atomic.Int32
			h := scenario{speed: 5000}.run(t, 1, test.bend.between(&bent))
			for seed := uint64(2); bent.Load() == 0; seed++ {
				if seed > 20 {
					t.Fatal("no answer was bent")
				}
				h = scenario{speed: 5000}.run(t, seed, test.bend.between(&bent))
			}
			bad, err := h.check()
			if err != nil {
				t.Fatal(err)
			}
			if len(bad) == 0 {
				t.Errorf("%d answers were bent, and the model accepts them all", bent.Load())
			}
		})
	}
}
