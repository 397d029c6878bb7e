package client_test

import (
	"errors"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// The tests beside this one have a service that says what they need; this one has the
// real one.
func TestAgainstTheService(t *testing.T) {
	const (
		fallsBack = "i-0a0000000000000fa"
		absent    = "i-0ffffffffffffff01"
	)
	c := client.New(servertest.New(t, servertest.Options{}).Conn(), client.Options{Principal: "tester"})

	info, err := c.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	_, err = c.Start(t.Context(), &instancedv1.StartInstancesRequest{InstanceIds: []string{id}, DryRun: true})
	if err != nil {
		t.Errorf("a dry run: %v", err)
	}

	_, err = c.Start(t.Context(), &instancedv1.StartInstancesRequest{InstanceIds: []string{absent}})
	refused, ok := errors.AsType[*client.Error](err)
	if !ok || refused.Code != codes.NotFound || refused.EC2Code != "InvalidInstanceID.NotFound" || len(refused.InstanceIDs) != 1 || refused.RequestID == "" {
		t.Errorf("an instance that does not exist: %#v", err)
	}

	running, err := c.StartAndWait(t.Context(), &instancedv1.StartInstancesRequest{InstanceIds: []string{id}})
	if err != nil || running[0].GetPublicIpAddress() == "" {
		t.Errorf("start and wait: %v, %v", running, err)
	}

	_, err = c.StartAndWait(t.Context(), &instancedv1.StartInstancesRequest{InstanceIds: []string{fallsBack}})
	missed, ok := errors.AsType[*client.NotReachedError](err)
	if !ok || missed.Results[0].GetStateReason().GetCode() != "Client.InternalError" {
		t.Errorf("a start that falls back: %v", err)
	}

	var seen []string
	for msg, err := range c.Watch(t.Context(), &instancedv1.WatchInstancesRequest{
		AfterCursor: info.GetCursor(),
		Filter:      &instancedv1.InstanceFilter{InstanceIds: []string{id, fallsBack}},
	}) {
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range msg.GetEvents().GetEvents() {
			seen = append(seen, e.GetInstance().GetState().GetName().String())
			if e.GetCause().GetPrincipal() != "tester" || e.GetCause().GetClientToken() == "" {
				t.Errorf("the cause of %v is %v", e.GetInstance().GetState(), e.GetCause())
			}
		}
		if len(seen) == 4 {
			break
		}
	}

	events := 0
	for page, err := range c.Events(t.Context(), &instancedv1.ListEventsRequest{
		InstanceIds: []string{id, fallsBack}, AfterCursor: info.GetCursor(), PageSize: 1,
	}) {
		if err != nil {
			t.Fatal(err)
		}
		events += len(page.GetEvents())
	}
	if events != 4 {
		t.Errorf("%d events in pages of one", events)
	}

	instances := 0
	for page, err := range c.Describe(t.Context(), &instancedv1.DescribeInstancesRequest{PageSize: 5}) {
		if err != nil {
			t.Fatal(err)
		}
		instances += len(page.GetInstances())
	}
	if int64(instances) != info.GetInstanceCount() {
		t.Errorf("%d instances in pages of five, and %d in all", instances, info.GetInstanceCount())
	}
}
