package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

const (
	running      = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_RUNNING
	stopped      = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_STOPPED
	shuttingDown = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_SHUTTING_DOWN
	terminated   = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_TERMINATED
)

// node is one node and what became of it.
type node struct {
	name       string
	instanceID string
	address    string
	failure    string
}

// find returns the nodes of these names, each with its instance.
func find(ctx context.Context, c *client.Client, names []string) ([]*node, error) {
	nodes := make([]*node, 0, len(names))
	byName := make(map[string]*node)
	for _, name := range names {
		n := &node{name: name, failure: "no instance has this name as its tag \"node\""}
		nodes, byName[name] = append(nodes, n), n
	}
	for page, err := range c.Describe(ctx, &instancedv1.DescribeInstancesRequest{Filter: &instancedv1.InstanceFilter{
		Tags: []*instancedv1.TagFilter{{Key: "node", Values: names}},
	}}) {
		if err != nil {
			return nil, err
		}
		for _, i := range page.GetInstances() {
			state := i.GetState().GetName()
			if state == shuttingDown || state == terminated {
				continue
			}
			n := byName[i.GetTags()["node"]]
			if n.failure = ""; n.instanceID != "" {
				n.failure = fmt.Sprintf("%s and %s both have this name", n.instanceID, i.GetInstanceId())
			}
			n.instanceID = i.GetInstanceId()
		}
	}
	return nodes, nil
}

func resume(ctx context.Context, c *client.Client, nodes []*node, timeout time.Duration) error {
	byID := usable(nodes)
	if len(byID) == 0 {
		return nil
	}
	started, err := c.Start(ctx, &instancedv1.StartInstancesRequest{
		InstanceIds: ids(byID),
		FailureMode: instancedv1.FailureMode_FAILURE_MODE_PER_INSTANCE,
	})
	if err != nil {
		return err
	}
	return settle(ctx, c, byID, started.GetFailedInstances(), running, started.GetCursor(), timeout)
}

func suspend(ctx context.Context, c *client.Client, nodes []*node, timeout time.Duration) error {
	byID := usable(nodes)
	if len(byID) == 0 {
		return nil
	}
	stopping, err := c.Stop(ctx, &instancedv1.StopInstancesRequest{
		InstanceIds: ids(byID),
		FailureMode: instancedv1.FailureMode_FAILURE_MODE_PER_INSTANCE,
	})
	if err != nil {
		return err
	}
	return settle(ctx, c, byID, stopping.GetFailedInstances(), stopped, stopping.GetCursor(), timeout)
}

// usable returns the nodes that nothing is wrong with so far, by their instances.
func usable(nodes []*node) map[string]*node {
	byID := make(map[string]*node)
	for _, n := range nodes {
		if n.failure == "" {
			byID[n.instanceID] = n
		}
	}
	return byID
}

func ids(byID map[string]*node) []string {
	return slices.Sorted(maps.Keys(byID))
}

// settle notes why nodes were refused, and waits until each of the others is in a state or
// can no longer get there.
func settle(ctx context.Context, c *client.Client, byID map[string]*node, refused []*instancedv1.InstanceFailure,
	wanted instancedv1.InstanceStateName, after string, timeout time.Duration,
) error {
	for _, f := range refused {
		byID[f.GetInstanceId()].failure = strings.TrimPrefix(f.GetEc2ErrorCode()+": "+f.GetMessage(), ": ")
		delete(byID, f.GetInstanceId())
	}
	if len(byID) == 0 {
		return nil
	}
	waited, err := c.Wait(ctx, &instancedv1.WaitInstancesRequest{
		InstanceIds: ids(byID),
		States:      []instancedv1.InstanceStateName{wanted},
		AfterCursor: after,
		Timeout:     durationpb.New(timeout),
		Until:       instancedv1.WaitUntil_WAIT_UNTIL_ALL_SETTLED,
	})
	if err != nil {
		return err
	}
	for _, r := range waited.GetResults() {
		n := byID[r.GetInstanceId()]
		n.address = r.GetInstance().GetPrivateIpAddress()
		switch r.GetOutcome() {
		case instancedv1.WaitOutcome_WAIT_OUTCOME_REACHED:
		case instancedv1.WaitOutcome_WAIT_OUTCOME_TIMED_OUT:
			n.failure = fmt.Sprintf("it took longer than %v", timeout)
		case instancedv1.WaitOutcome_WAIT_OUTCOME_UNREACHABLE, instancedv1.WaitOutcome_WAIT_OUTCOME_UNSETTLED, instancedv1.WaitOutcome_WAIT_OUTCOME_UNSPECIFIED:
			n.failure = cmp.Or(r.GetStateReason().GetMessage(), "it can no longer get there")
		}
	}
	return nil
}
