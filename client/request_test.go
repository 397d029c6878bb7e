package client_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// unused is a connection on which nothing may be sent.
type unused struct{ t *testing.T }

func (u unused) Invoke(_ context.Context, method string, _, _ any, _ ...grpc.CallOption) error {
	u.t.Errorf("%s is called", method)
	return errGone
}

func (u unused) NewStream(_ context.Context, _ *grpc.StreamDesc, method string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	u.t.Errorf("%s is called", method)
	return nil, errGone
}

func TestARequestThatCannotBeSentIsRefusedBefore(t *testing.T) {
	const bad = "a\xff"
	tests := map[string]struct {
		principal string
		call      func(ctx context.Context, c *client.Client) error
		field     string
	}{
		"an id of a start": {call: func(ctx context.Context, c *client.Client) error {
			_, err := c.Start(ctx, &instancedv1.StartInstancesRequest{InstanceIds: []string{"i-1", bad}})
			return err
		}, field: "instance_ids[1]"},
		"what a start adds": {call: func(ctx context.Context, c *client.Client) error {
			_, err := c.StartAndWait(ctx, &instancedv1.StartInstancesRequest{AdditionalInfo: bad})
			return err
		}, field: "additional_info"},
		"the token of a stop": {call: func(ctx context.Context, c *client.Client) error {
			_, err := c.Stop(ctx, &instancedv1.StopInstancesRequest{ClientToken: bad})
			return err
		}, field: "client_token"},
		"an id of a reboot": {call: func(ctx context.Context, c *client.Client) error {
			_, err := c.Reboot(ctx, &instancedv1.RebootInstancesRequest{InstanceIds: []string{bad}})
			return err
		}, field: "instance_ids[0]"},
		"an id of a termination": {call: func(ctx context.Context, c *client.Client) error {
			_, err := c.Terminate(ctx, &instancedv1.TerminateInstancesRequest{InstanceIds: []string{bad}})
			return err
		}, field: "instance_ids[0]"},
		"an id of a wait": {call: func(ctx context.Context, c *client.Client) error {
			_, err := c.Wait(ctx, &instancedv1.WaitInstancesRequest{InstanceIds: []string{bad}})
			return err
		}, field: "instance_ids[0]"},
		"a filter": {call: func(ctx context.Context, c *client.Client) error {
			return last(c.Describe(ctx, &instancedv1.DescribeInstancesRequest{Filter: &instancedv1.InstanceFilter{
				Tags: []*instancedv1.TagFilter{{Key: "team", Values: []string{"red"}}, {Key: "pool", Values: []string{bad}}},
			}}))
		}, field: "filter.tags[1].values[0]"},
		"the cursor of a history": {call: func(ctx context.Context, c *client.Client) error {
			return last(c.Events(ctx, &instancedv1.ListEventsRequest{AfterCursor: bad}))
		}, field: "after_cursor"},
		"the zone of a watch": {call: func(ctx context.Context, c *client.Client) error {
			return last(c.Watch(ctx, &instancedv1.WatchInstancesRequest{Filter: &instancedv1.InstanceFilter{AvailabilityZones: []string{bad}}}))
		}, field: "filter.availability_zones[0]"},
		"the caller": {principal: "Zoë", call: func(ctx context.Context, c *client.Client) error {
			_, err := c.Stop(ctx, &instancedv1.StopInstancesRequest{})
			return err
		}, field: "principal"},
		"more than the service takes": {call: func(ctx context.Context, c *client.Client) error {
			_, err := c.Start(ctx, &instancedv1.StartInstancesRequest{InstanceIds: slices.Repeat([]string{"i-1234567890abcdef0"}, 60_000)})
			return err
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := client.New(unused{t}, client.Options{Principal: test.principal, OnRetry: func(err error, _ time.Duration) { t.Errorf("it is tried again after %v", err) }})
			e, ok := errors.AsType[*client.Error](test.call(t.Context(), c))
			if !ok || e.Code != codes.InvalidArgument || e.OutcomeUnknown || !utf8.ValidString(e.Error()) || !strings.Contains(e.Message, "nothing was sent") {
				t.Fatalf("got %#v", e)
			}
			if field := e.Violations; test.field == "" && field != nil || test.field != "" && (len(field) != 1 || field[0].Field != test.field) {
				t.Errorf("it is about %v, want %s", field, test.field)
			}
		})
	}
}

// last returns the error that a sequence ends with.
func last[T any](seq func(yield func(T, error) bool)) (last error) {
	for _, err := range seq {
		last = err
	}
	return last
}
