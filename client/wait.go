package client

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

const (
	// What the service makes of a request without a timeout, and the longest that it
	// allows.
	defaultWait = 5 * time.Minute
	maxWait     = time.Hour

	// A call is given so much longer than the wait that it asks for, so that the
	// answer comes before its deadline.
	waitGrace = 5 * time.Second
)

// Wait returns when every instance has reached one of the wanted states, or no
// longer can, or the time is over, which is an answer and not an error. A request
// without a timeout waits for as long as the deadline of ctx allows, with a little
// left for the answer, and for 5 minutes where there is none.
//
// A wait changes nothing, and is repeated, for what is left of its time, whenever the
// service goes away. One that has not got through before is given up after
// [Options].MaxAttempts; one with a cursor continues what got through.
func (c *Client) Wait(ctx context.Context, req *instancedv1.WaitInstancesRequest) (*instancedv1.WaitInstancesResponse, error) {
	if err := c.checkRequest(req); err != nil {
		return nil, err
	}
	req = proto.CloneOf(req)
	if req.GetTimeout() == nil {
		req.Timeout = durationpb.New(waitFor(ctx))
	}
	timeout := req.GetTimeout().AsDuration()
	end := time.Now().Add(timeout)
	first := true
	made := &tries{until: end, through: req.GetAfterCursor() != ""}
	return retry(ctx, c, made, func(ctx context.Context, opts ...grpc.CallOption) (*instancedv1.WaitInstancesResponse, error) {
		// A try after the first waits only for what the others have left over.
		if !first {
			timeout = max(time.Until(end), time.Millisecond)
			req.Timeout = durationpb.New(timeout)
		}
		first = false
		// What is beyond the limits is for the service to refuse.
		ctx, cancel := context.WithTimeout(ctx, min(max(timeout, 0), maxWait)+waitGrace)
		defer cancel()
		return c.service.WaitInstances(ctx, req, opts...)
	})
}

// waitFor is the longest wait that leaves time for its answer before the deadline.
func waitFor(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return defaultWait
	}
	left := time.Until(deadline)
	return min(max(left-min(waitGrace, left/10), time.Millisecond), maxWait)
}

// StartAndWait starts instances and waits until all of them run. It returns them in
// full, with the addresses that they were given, in the order asked for.
//
// The error has an *[Error] in it when the start was refused or, as its text then says,
// when the instances are starting and the wait for them failed. It is a
// *[NotReachedError] when some instance does not run: because it fell back to stopped,
// because the time was over, or, of a per-instance call, because it could not be
// started; all that were accepted are returned beside it, whatever their states. The
// wait ends shortly before the deadline of ctx, after an hour at most, and after 5
// minutes where there is none. For a dry run there is nothing to wait for, and no
// instance is returned.
func (c *Client) StartAndWait(ctx context.Context, req *instancedv1.StartInstancesRequest) ([]*instancedv1.Instance, error) {
	started, err := c.Start(ctx, req)
	if err != nil {
		return nil, err
	}
	ids := make([]string, 0, len(started.GetStartingInstances()))
	for _, change := range started.GetStartingInstances() {
		ids = append(ids, change.GetInstanceId())
	}
	missed := &NotReachedError{
		States:   []instancedv1.InstanceStateName{instancedv1.InstanceStateName_INSTANCE_STATE_NAME_RUNNING},
		Failures: started.GetFailedInstances(),
	}
	instances := make([]*instancedv1.Instance, 0, len(ids))
	if len(ids) > 0 {
		waited, err := c.Wait(ctx, &instancedv1.WaitInstancesRequest{
			InstanceIds: ids,
			States:      missed.States,
			AfterCursor: started.GetCursor(),
		})
		if err != nil {
			return nil, fmt.Errorf("the start was accepted, and the wait for it failed: %w", err)
		}
		for _, result := range waited.GetResults() {
			instances = append(instances, result.GetInstance())
			if result.GetOutcome() != instancedv1.WaitOutcome_WAIT_OUTCOME_REACHED {
				missed.Results = append(missed.Results, result)
			}
		}
	}
	if len(missed.Results)+len(missed.Failures) > 0 {
		return instances, missed
	}
	return instances, nil
}

// NotReachedError says which instances did not get to where they were wanted.
type NotReachedError struct {
	// States are the states that were wanted.
	States []instancedv1.InstanceStateName
	// Results has the instances that were waited for in vain.
	Results []*instancedv1.WaitResult
	// Failures has the instances that the command did not accept.
	Failures []*instancedv1.InstanceFailure
}

// Error names each instance and says why.
func (e *NotReachedError) Error() string {
	lines := make([]string, 0, len(e.Results)+len(e.Failures))
	for _, f := range e.Failures {
		lines = append(lines, f.GetInstanceId()+": "+f.GetMessage())
	}
	for _, r := range e.Results {
		lines = append(lines, r.GetInstanceId()+": "+describeOutcome(r))
	}
	return fmt.Sprintf("not every instance came to be %s: %s", stateNames(e.States), strings.Join(lines, "; "))
}

func describeOutcome(r *instancedv1.WaitResult) string {
	state := stateName(r.GetInstance().GetState().GetName())
	if r.GetOutcome() != instancedv1.WaitOutcome_WAIT_OUTCOME_UNREACHABLE {
		return "still " + state
	}
	if reason := r.GetStateReason().GetMessage(); reason != "" {
		return state + " (" + reason + ")"
	}
	return state
}

func stateNames(states []instancedv1.InstanceStateName) string {
	names := make([]string, 0, len(states))
	for _, s := range states {
		names = append(names, stateName(s))
	}
	return strings.Join(names, " or ")
}

// stateName returns EC2's name of a state, such as "shutting-down".
func stateName(s instancedv1.InstanceStateName) string {
	name := strings.TrimPrefix(s.String(), "INSTANCE_STATE_NAME_")
	return strings.ReplaceAll(strings.ToLower(name), "_", "-")
}
