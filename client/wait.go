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
	// defaultWait is the default timeout of a wait, and maxWait the maximum that the service
	// accepts.
	defaultWait = 5 * time.Minute
	maxWait     = time.Hour

	// waitGrace is how much longer than its wait a call may take, so that the response arrives
	// before its deadline.
	waitGrace = 5 * time.Second
)

// Wait returns when every instance has reached one of the wanted states or no longer can, or
// after the timeout, which is a response and not an error. A request without a timeout waits
// until shortly before the deadline of ctx, or for 5 minutes without one.
//
// A wait is retried for the rest of its timeout whenever the service becomes unreachable. If
// it has never reached the service, it is given up after [Options].MaxAttempts, unless it has
// a cursor.
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
	made := &attempts{until: end, through: req.GetAfterCursor() != ""}
	return retry(ctx, c, made, func(ctx context.Context, opts ...grpc.CallOption) (*instancedv1.WaitInstancesResponse, error) {
		// A retry waits only for the rest of the timeout.
		if !first {
			timeout = max(time.Until(end), time.Millisecond)
			req.Timeout = durationpb.New(timeout)
		}
		first = false
		// The service rejects timeouts beyond its limits.
		ctx, cancel := context.WithTimeout(ctx, min(max(timeout, 0), maxWait)+waitGrace)
		defer cancel()
		return c.service.WaitInstances(ctx, req, opts...)
	})
}

// waitFor returns the longest wait that leaves time for its response before the deadline.
func waitFor(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return defaultWait
	}
	left := time.Until(deadline)
	return min(max(left-min(waitGrace, left/10), time.Millisecond), maxWait)
}

// StartAndWait starts instances and waits until all are running. It returns them in full, with
// their new addresses, in the order of the request.
//
// The error wraps an *[Error] if the start was rejected or, as its text then says, if the
// instances are starting but the wait failed. It is a *[NotReachedError] if an instance is not
// running: because it fell back to stopped, because of the timeout, or, in a per-instance
// request, because it could not be started. All accepted instances are returned with it,
// whatever their states. The wait ends shortly before the deadline of ctx, at most after an
// hour, and after 5 minutes without a deadline. A dry run does not wait and returns no
// instances.
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
			return nil, fmt.Errorf("the start was accepted, but waiting for it failed: %w", err)
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

// NotReachedError says which instances did not reach the wanted state.
type NotReachedError struct {
	// States are the wanted states.
	States []instancedv1.InstanceStateName
	// Results has the instances that did not reach them.
	Results []*instancedv1.WaitResult
	// Failures has the instances for which the command was rejected.
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
	return fmt.Sprintf("not every instance is %s: %s", stateNames(e.States), strings.Join(lines, "; "))
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
