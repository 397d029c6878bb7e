package client_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

func TestAnErrorSaysNothingTwice(t *testing.T) {
	c := client.New(servertest.New(t, servertest.Options{}).Conn(), client.Options{})
	start := func(req *instancedv1.StartInstancesRequest) error {
		_, err := c.Start(t.Context(), req)
		return err
	}
	watch := func(req *instancedv1.WatchInstancesRequest) error {
		for _, err := range c.Watch(t.Context(), req) {
			return err
		}
		return nil
	}
	const malformed = `: Invalid id: "x": want "i-" followed by 8 or 17 hex digits in lower case`
	var many string
	for n := range 20 {
		many += fmt.Sprintf("; instance_ids[%d]%s", n, malformed)
	}
	for name, test := range map[string]struct {
		err  error
		want string
	}{
		"of one field": {
			watch(&instancedv1.WatchInstancesRequest{FromNow: true, AfterCursor: "x"}), "INVALID_REQUEST: from_now: excludes after_cursor: set only one of them",
		},
		"of EC2":         {start(&instancedv1.StartInstancesRequest{InstanceIds: []string{"x"}}), "InvalidInstanceID.Malformed: instance_ids[0]" + malformed},
		"of more fields": {start(&instancedv1.StartInstancesRequest{InstanceIds: slices.Repeat([]string{"x"}, 22)}), "InvalidInstanceID.Malformed: " + many[2:] + " (and 2 more)"},
	} {
		if test.err == nil || test.err.Error() != test.want {
			t.Errorf("%s:\n%v\nwant\n%s", name, test.err, test.want)
		}
	}
}

func TestDialRefusesWhatCanBeNoTarget(t *testing.T) {
	for _, target := range []string{
		"127.0.0.1:50051", "instanced.example:50051", "[::1]:50051", ":50051", "instanced.example:grpc", "dns:///instanced.example", "dns:instanced.example:50051",
		"dns://8.8.8.8/instanced.example:50051", "unix:/run/instanced.sock", "unix:///run/instanced.sock", "unix-abstract:instanced", "passthrough:///x", "xds:///x", "custom:x",
	} {
		c, err := client.Dial(target, client.Options{})
		if err != nil {
			t.Errorf("%q: %v", target, err)
			continue
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, target := range []string{"", "foo", "instanced.example", "instanced.example:", "10.0.0.1", "::1", "dns:///", "unix:", "/run/instanced.sock"} {
		if _, err := client.Dial(target, client.Options{}); err == nil || !strings.Contains(err.Error(), "want a host and a port such as 127.0.0.1:50051") {
			t.Errorf("%q: %v", target, err)
		}
	}
}

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

func TestPagesThatLeadBackAreNotFollowedForEver(t *testing.T) {
	for name, next := range map[string]map[string]string{
		"to themselves":       {"": "a", "a": "a"},
		"to each other":       {"": "a", "a": "b", "b": "a"},
		"after some pages":    {"": "x", "x": "y", "y": "z", "z": "a", "a": "b", "b": "c", "c": "a"},
		"to the second again": {"": "a", "a": "b", "b": "c", "c": "d", "d": "b"},
	} {
		calls := 0
		c, end := dial(t, &service{describe: func(_ context.Context, req *instancedv1.DescribeInstancesRequest) (*instancedv1.DescribeInstancesResponse, error) {
			calls++
			return &instancedv1.DescribeInstancesResponse{NextPageToken: next[req.GetPageToken()]}, nil
		}}, client.Options{})
		var last error
		for page, err := range c.Describe(t.Context(), &instancedv1.DescribeInstancesRequest{}) {
			if last = err; page == nil != (err != nil) {
				t.Errorf("%s: the page is %v beside %v", name, page, err)
			}
		}
		end()
		e, ok := errors.AsType[*client.Error](last)
		if !ok || e.Code != codes.Internal || !strings.Contains(e.Message, "the service at passthrough:///bufconn repeats a page token") {
			t.Errorf("%s: %v", name, last)
		}
		if calls > 12 {
			t.Errorf("%s: %d calls", name, calls)
		}
	}
}
