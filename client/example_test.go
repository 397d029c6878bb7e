package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

const (
	running = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_RUNNING
	stopped = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_STOPPED
)

// Connect to the service. Nothing is sent before the first call.
func ExampleDial() {
	c, err := client.Dial("127.0.0.1:50051", client.Options{Principal: "night-jobs"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(c.Close())
	// Output: <nil>
}

// Use a connection of one's own, here to a server inside of the test.
func ExampleNew() {
	srv, stop := newServer(&instancedv1.CreateInstancesRequest{})
	defer stop()
	c := client.New(srv.Conn(), client.Options{Principal: "night-jobs"})

	info, err := c.Info(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(info.GetBackend(), info.GetInstanceCount())
	// Output: simulator 0
}

// Start instances, and take the error apart if it is refused.
func ExampleClient_Start() {
	srv, stop := newServer(&instancedv1.CreateInstancesRequest{Instances: []*instancedv1.InstanceSpec{
		{InstanceId: "i-1234567890abcdef0"},
		{InstanceId: "i-0123456789abcdef0", RootDeviceType: "instance-store", State: running},
	}})
	defer stop()
	c := client.New(srv.Conn(), client.Options{Principal: "night-jobs"})

	for _, id := range []string{"i-1234567890abcdef0", "i-0123456789abcdef0"} {
		started, err := c.Start(context.Background(), &instancedv1.StartInstancesRequest{InstanceIds: []string{id}})
		var refused *client.Error
		switch {
		case errors.As(err, &refused) && refused.RetryDelay > 0:
			fmt.Println("try again in", refused.RetryDelay)
		case errors.As(err, &refused) && refused.OutcomeUnknown:
			fmt.Println("it may be starting: look, or repeat it with the same client token")
		case err != nil:
			fmt.Println(refused.Code, refused.EC2Code, refused.InstanceIDs)
		default:
			for _, change := range started.GetStartingInstances() {
				// Of several callers at once only one is told that it was stopped before.
				fmt.Println(change.GetInstanceId(), change.GetPreviousState().GetCode(), "->", change.GetCurrentState().GetCode())
			}
		}
	}
	// Output:
	// i-1234567890abcdef0 80 -> 0
	// FailedPrecondition UnsupportedOperation [i-0123456789abcdef0]
}

// A dry run that would have been permitted is no error.
func ExampleClient_Start_dryRun() {
	srv, stop := newServer(&instancedv1.CreateInstancesRequest{Instances: []*instancedv1.InstanceSpec{{InstanceId: "i-1234567890abcdef0"}}})
	defer stop()
	c := client.New(srv.Conn(), client.Options{Principal: "night-jobs"})

	_, err := c.Start(context.Background(), &instancedv1.StartInstancesRequest{
		InstanceIds: []string{"i-1234567890abcdef0"},
		DryRun:      true,
	})
	fmt.Println("may start it:", err == nil)
	// Output: may start it: true
}

// Start instances, wait until they run, and find out why one does not.
func ExampleClient_StartAndWait() {
	srv, stop := newServer(&instancedv1.CreateInstancesRequest{
		Instances: []*instancedv1.InstanceSpec{{InstanceId: "i-1234567890abcdef0"}, {InstanceId: "i-0a0000000000000fa"}},
		Faults: []*instancedv1.Fault{{
			Kind:  instancedv1.FaultKind_FAULT_KIND_FALL_BACK_TO_STOPPED,
			Match: &instancedv1.FaultMatch{InstanceIds: []string{"i-0a0000000000000fa"}},
		}},
	})
	defer stop()
	c := client.New(srv.Conn(), client.Options{Principal: "night-jobs"})

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	started, err := c.StartAndWait(ctx, &instancedv1.StartInstancesRequest{
		InstanceIds: []string{"i-1234567890abcdef0", "i-0a0000000000000fa"},
	})
	var missed *client.NotReachedError
	var refused *client.Error
	switch {
	case errors.As(err, &missed):
		for _, r := range missed.Results {
			fmt.Println(r.GetInstanceId(), "does not run:", r.GetStateReason().GetCode())
		}
	case errors.As(err, &refused):
		fmt.Println("refused:", refused)
	}
	for _, i := range started {
		if i.GetState().GetName() == running {
			fmt.Println(i.GetInstanceId(), "has an address:", i.GetPublicIpAddress() != "")
		}
	}
	// Output:
	// i-0a0000000000000fa does not run: Client.InternalError
	// i-1234567890abcdef0 has an address: true
}

// Wait for the effect of a command: its cursor lets the wait see all that has happened
// since, and end at once for an instance that fell back.
func ExampleClient_Wait() {
	srv, stop := newServer(&instancedv1.CreateInstancesRequest{Instances: []*instancedv1.InstanceSpec{{InstanceId: "i-1234567890abcdef0", State: running}}})
	defer stop()
	c := client.New(srv.Conn(), client.Options{Principal: "night-jobs"})

	stopping, err := c.Stop(context.Background(), &instancedv1.StopInstancesRequest{InstanceIds: []string{"i-1234567890abcdef0"}})
	if err != nil {
		log.Fatal(err)
	}
	waited, err := c.Wait(context.Background(), &instancedv1.WaitInstancesRequest{
		InstanceIds: []string{"i-1234567890abcdef0"},
		States:      []instancedv1.InstanceStateName{stopped},
		AfterCursor: stopping.GetCursor(),
		Timeout:     durationpb.New(10 * time.Minute),
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, r := range waited.GetResults() {
		fmt.Println(r.GetInstanceId(), r.GetOutcome())
	}
	// Output: i-1234567890abcdef0 WAIT_OUTCOME_REACHED
}

// Keep a map of the fleet: a snapshot first, then each change, over any number of
// reconnects. When the watch has to begin again, so does the map.
func ExampleClient_Watch() {
	srv, stop := newServer(&instancedv1.CreateInstancesRequest{Instances: []*instancedv1.InstanceSpec{{InstanceId: "i-1234567890abcdef0"}}})
	defer stop()
	c := client.New(srv.Conn(), client.Options{Principal: "inventory"})

	fleet := make(map[string]*instancedv1.Instance)
	for msg, err := range c.Watch(context.Background(), &instancedv1.WatchInstancesRequest{}) {
		if err != nil {
			log.Fatal(err)
		}
		if part := msg.GetSnapshot(); part != nil {
			if part.GetFirst() {
				clear(fleet)
			}
			for _, i := range part.GetInstances() {
				fleet[i.GetInstanceId()] = i
			}
			if part.GetLast() {
				fmt.Println("instances:", len(fleet))
				_, err := c.Start(context.Background(), &instancedv1.StartInstancesRequest{InstanceIds: []string{"i-1234567890abcdef0"}})
				if err != nil {
					log.Fatal(err)
				}
			}
		}
		for _, e := range msg.GetEvents().GetEvents() {
			i := e.GetInstance()
			if e.GetType() == instancedv1.EventType_EVENT_TYPE_REMOVED {
				delete(fleet, i.GetInstanceId())
			} else {
				fleet[i.GetInstanceId()] = i
			}
			fmt.Println(i.GetInstanceId(), e.GetPreviousState().GetName(), "->", i.GetState().GetName(), "by", e.GetCause().GetPrincipal())
		}
		if fleet["i-1234567890abcdef0"].GetState().GetName() == running {
			break
		}
	}
	// Output:
	// instances: 1
	// i-1234567890abcdef0 INSTANCE_STATE_NAME_STOPPED -> INSTANCE_STATE_NAME_PENDING by inventory
	// i-1234567890abcdef0 INSTANCE_STATE_NAME_PENDING -> INSTANCE_STATE_NAME_RUNNING by inventory
}

// Go on where the last run of the program ended: the cursor is stored together with
// what was derived from the messages up to it, here the number of starts.
func ExampleClient_Watch_storedCursor() {
	srv, stop := newServer(&instancedv1.CreateInstancesRequest{Instances: []*instancedv1.InstanceSpec{{InstanceId: "i-1234567890abcdef0"}}})
	defer stop()
	c := client.New(srv.Conn(), client.Options{Principal: "billing"})

	stored := struct {
		cursor string
		starts int
	}{}
	run := func() {
		next := stored
		for msg, err := range c.Watch(context.Background(), &instancedv1.WatchInstancesRequest{
			AfterCursor: stored.cursor,
			// The cursor may have expired meanwhile.
			OnUnusableCursor: instancedv1.UnusableCursorPolicy_UNUSABLE_CURSOR_POLICY_SNAPSHOT,
		}) {
			if err != nil {
				log.Fatal(err)
			}
			if msg.GetSnapshot().GetFirst() {
				next.starts = 0
			}
			for _, e := range msg.GetEvents().GetEvents() {
				if e.GetPreviousState().GetName() == stopped {
					next.starts++
				}
			}
			if cursor := msg.GetCursor(); cursor != "" {
				// A database would do this in one transaction.
				next.cursor = cursor
				stored = next
			}
			if msg.GetSnapshot().GetLast() || msg.GetEvents() != nil {
				return // as if the program had been killed
			}
		}
	}
	run()
	fmt.Println("starts:", stored.starts)
	if _, err := c.Start(context.Background(), &instancedv1.StartInstancesRequest{InstanceIds: []string{"i-1234567890abcdef0"}}); err != nil {
		log.Fatal(err)
	}
	run()
	fmt.Println("starts:", stored.starts)
	// Output:
	// starts: 0
	// starts: 1
}

// List all instances of a kind, page by page.
func ExampleClient_Describe() {
	srv, stop := newServer(&instancedv1.CreateInstancesRequest{Instances: []*instancedv1.InstanceSpec{
		{Count: 5},
		{Count: 2, State: running},
	}})
	defer stop()
	c := client.New(srv.Conn(), client.Options{Principal: "inventory"})

	for page, err := range c.Describe(context.Background(), &instancedv1.DescribeInstancesRequest{
		Filter:   &instancedv1.InstanceFilter{States: []instancedv1.InstanceStateName{stopped}},
		PageSize: 2,
	}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(len(page.GetInstances()), "instances, more to come:", page.GetNextPageToken() != "")
	}
	// Output:
	// 2 instances, more to come: true
	// 2 instances, more to come: true
	// 1 instances, more to come: false
}
