package client_test

import (
	"context"
	"errors"
	"log"
	"time"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// Start an instance, wait until it runs, and find out why it does not.
func ExampleClient_StartAndWait() {
	c, err := client.Dial("127.0.0.1:50051", client.Options{Principal: "night-jobs"})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = c.Close() }()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	running, err := c.StartAndWait(ctx, &instancedv1.StartInstancesRequest{
		InstanceIds: []string{"i-1234567890abcdef0"},
	})
	if missed, ok := errors.AsType[*client.NotReachedError](err); ok {
		for _, r := range missed.Results {
			log.Printf("%s fell back: %s", r.GetInstanceId(), r.GetStateReason().GetMessage())
		}
		return
	}
	if refused, ok := errors.AsType[*client.Error](err); ok {
		log.Printf("refused as %s; a retry may succeed in %v", refused.Reason, refused.RetryDelay)
		return
	}
	for _, i := range running {
		log.Printf("%s runs at %s", i.GetInstanceId(), i.GetPublicIpAddress())
	}
}

// Keep a map of the fleet: a snapshot first, then each change, over any number of
// reconnects.
func ExampleClient_Watch() {
	c, err := client.Dial("127.0.0.1:50051", client.Options{Principal: "inventory"})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = c.Close() }()

	fleet := make(map[string]*instancedv1.Instance)
	for msg, err := range c.Watch(context.Background(), &instancedv1.WatchInstancesRequest{}) {
		if err != nil {
			log.Fatal(err)
		}
		if msg.GetSnapshot().GetFirst() {
			clear(fleet)
		}
		for _, i := range msg.GetSnapshot().GetInstances() {
			fleet[i.GetInstanceId()] = i
		}
		for _, e := range msg.GetEvents().GetEvents() {
			fleet[e.GetInstance().GetInstanceId()] = e.GetInstance()
			if e.GetType() == instancedv1.EventType_EVENT_TYPE_REMOVED {
				delete(fleet, e.GetInstance().GetInstanceId())
			}
		}
	}
}
