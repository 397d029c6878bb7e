package server_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

func TestBadInput(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(3)})
	other := servertest.New(t, servertest.Options{Fleet: fleet(3)})
	good := id(0)
	cursor := head(t, srv)
	firstPage, err := srv.Instances().DescribeInstances(patient(t), &instancedv1.DescribeInstancesRequest{PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	starting := func(ids ...string) func() error {
		return func() error {
			_, err := srv.Instances().StartInstances(patient(t), &instancedv1.StartInstancesRequest{InstanceIds: ids})
			if _, perInstanceErr := srv.Instances().StartInstances(patient(t), &instancedv1.StartInstancesRequest{InstanceIds: ids, FailureMode: perInstance}); status.Code(perInstanceErr) != status.Code(err) {
				return fmt.Errorf("whole call: %w; per instance: %w", err, perInstanceErr)
			}
			return err
		}
	}
	startingWith := func(req *instancedv1.StartInstancesRequest) func() error {
		return func() error {
			req.InstanceIds = []string{good}
			_, err := srv.Instances().StartInstances(patient(t), req)
			return err
		}
	}
	describing := func(req *instancedv1.DescribeInstancesRequest) func() error {
		return func() error {
			_, err := srv.Instances().DescribeInstances(patient(t), req)
			return err
		}
	}
	waiting := func(req *instancedv1.WaitInstancesRequest) func() error {
		return func() error {
			_, err := srv.Instances().WaitInstances(patient(t), req)
			return err
		}
	}
	watching := func(req *instancedv1.WatchInstancesRequest) func() error {
		return func() error {
			stream, err := srv.Instances().WatchInstances(patient(t), req)
			if err != nil {
				return err
			}
			_, err = stream.Recv()
			return err
		}
	}
	const malformed = "INVALID_INSTANCE_ID_MALFORMED"
	for _, test := range []struct {
		name   string
		call   func() error
		code   codes.Code
		reason string
		says   []string
	}{
		{"no ids", starting(), codes.InvalidArgument, "INVALID_REQUEST", []string{"instance_ids", "1 to 1000"}},
		{"an empty id", starting(""), codes.InvalidArgument, "MISSING_PARAMETER", []string{"instance_ids[0]", "must contain the parameter InstanceId"}},
		{"not an id", starting("foobar"), codes.InvalidArgument, malformed, []string{"instance_ids[0]", `Invalid id: "foobar"`, "hex digits"}},
		{"1001 ids", starting(ids(1001)...), codes.InvalidArgument, "INVALID_REQUEST", []string{"instance_ids", "1001", "1000"}},
		{"an id in upper case", starting("i-1234567890ABCDEF0"), codes.InvalidArgument, malformed, []string{"lower case"}},
		{"an id with a blank behind it", starting(good + " "), codes.InvalidArgument, malformed, []string{good + " "}},
		{"good and malformed", starting(good, "foobar"), codes.InvalidArgument, malformed, []string{"instance_ids[1]"}},
		{"malformed ids, all reported", starting("a", good, "b"), codes.InvalidArgument, malformed, []string{"instance_ids[0]", "instance_ids[2]"}},
		{"a token of 65 characters", startingWith(&instancedv1.StartInstancesRequest{ClientToken: strings.Repeat("t", 65)}), codes.InvalidArgument, "INVALID_REQUEST", []string{"client_token", "65", "64"}},
		{"a token that is not ASCII", startingWith(&instancedv1.StartInstancesRequest{ClientToken: "tökèn"}), codes.InvalidArgument, "INVALID_REQUEST", []string{"client_token", "ASCII"}},
		{"an unknown failure mode", startingWith(&instancedv1.StartInstancesRequest{FailureMode: 99}), codes.InvalidArgument, "INVALID_REQUEST", []string{"failure_mode", "FAILURE_MODE_PER_INSTANCE"}},
		{"too much additional info", startingWith(&instancedv1.StartInstancesRequest{AdditionalInfo: strings.Repeat("x", 1025)}), codes.InvalidArgument, "INVALID_REQUEST", []string{"additional_info", "1024"}},
		{"a message over the limit", startingWith(&instancedv1.StartInstancesRequest{AdditionalInfo: strings.Repeat("x", 4_000_000)}), codes.ResourceExhausted, "", []string{"1048576"}},

		{"a cursor that is none", describing(&instancedv1.DescribeInstancesRequest{MinCursor: "garbage"}), codes.InvalidArgument, "CURSOR_UNREADABLE", []string{"min_cursor"}},
		{"a cursor that was cut short", watching(&instancedv1.WatchInstancesRequest{AfterCursor: cursor[:len(cursor)-2]}), codes.InvalidArgument, "CURSOR_UNREADABLE", []string{"after_cursor"}},
		{"a cursor that is none, with a snapshot asked for", watching(&instancedv1.WatchInstancesRequest{AfterCursor: "garbage", OnUnusableCursor: instancedv1.UnusableCursorPolicy_UNUSABLE_CURSOR_POLICY_SNAPSHOT}), codes.InvalidArgument, "CURSOR_UNREADABLE", []string{"after_cursor"}},
		{"a cursor of another log", watching(&instancedv1.WatchInstancesRequest{AfterCursor: head(t, other)}), codes.OutOfRange, "CURSOR_OF_OTHER_LOG", []string{"another log"}},
		{"a cursor and from now", watching(&instancedv1.WatchInstancesRequest{AfterCursor: cursor, FromNow: true}), codes.InvalidArgument, "INVALID_REQUEST", []string{"from_now", "after_cursor"}},
		{"a progress interval that is too short", watching(&instancedv1.WatchInstancesRequest{ProgressInterval: durationpb.New(time.Millisecond)}), codes.InvalidArgument, "INVALID_REQUEST", []string{"progress_interval", "1ms", "1m0s"}},
		{"a progress interval that Go cannot hold", watching(&instancedv1.WatchInstancesRequest{ProgressInterval: &durationpb.Duration{Seconds: 1 << 60}}), codes.InvalidArgument, "INVALID_REQUEST", []string{"progress_interval"}},
		{"an unknown policy", watching(&instancedv1.WatchInstancesRequest{OnUnusableCursor: -1}), codes.InvalidArgument, "INVALID_REQUEST", []string{"on_unusable_cursor"}},

		{"a page token that is none", describing(&instancedv1.DescribeInstancesRequest{PageToken: "x"}), codes.InvalidArgument, "INVALID_REQUEST", []string{"page_token"}},
		{"a page token of another filter", describing(&instancedv1.DescribeInstancesRequest{PageToken: firstPage.GetNextPageToken(), Filter: &instancedv1.InstanceFilter{InstanceIds: []string{good}}}), codes.InvalidArgument, "INVALID_REQUEST", []string{"page_token", "another"}},
		{"a page that is too large", describing(&instancedv1.DescribeInstancesRequest{PageSize: 1001}), codes.InvalidArgument, "INVALID_REQUEST", []string{"page_size", "1000"}},
		{"a state that is none", describing(&instancedv1.DescribeInstancesRequest{Filter: &instancedv1.InstanceFilter{States: []instancedv1.InstanceStateName{0, 77}}}), codes.InvalidArgument, "INVALID_REQUEST", []string{"filter.states[0]", "stopped", "and 1 more"}},
		{"an unknown id", describing(&instancedv1.DescribeInstancesRequest{Filter: &instancedv1.InstanceFilter{InstanceIds: []string{good, missing}}}), codes.NotFound, "INVALID_INSTANCE_ID_NOT_FOUND", []string{"The instance ID '" + missing + "' does not exist"}},

		{"a wait for no state", waiting(&instancedv1.WaitInstancesRequest{InstanceIds: []string{good}}), codes.InvalidArgument, "INVALID_REQUEST", []string{"states"}},
		{"a wait of no time", waiting(&instancedv1.WaitInstancesRequest{InstanceIds: []string{good}, States: []instancedv1.InstanceStateName{running}, Timeout: durationpb.New(0)}), codes.InvalidArgument, "INVALID_REQUEST", []string{"timeout"}},
		{"a wait for longer than an hour", waiting(&instancedv1.WaitInstancesRequest{InstanceIds: []string{good}, States: []instancedv1.InstanceStateName{running}, Timeout: durationpb.New(2 * time.Hour)}), codes.InvalidArgument, "INVALID_REQUEST", []string{"timeout", "1h0m0s"}},
		{"an unknown end of a wait", waiting(&instancedv1.WaitInstancesRequest{InstanceIds: []string{good}, States: []instancedv1.InstanceStateName{running}, Until: 9}), codes.InvalidArgument, "INVALID_REQUEST", []string{"until"}},
		{"a wait for an unknown instance", waiting(&instancedv1.WaitInstancesRequest{InstanceIds: []string{missing}, States: []instancedv1.InstanceStateName{running}}), codes.NotFound, "INVALID_INSTANCE_ID_NOT_FOUND", nil},

		{"events of nothing", func() error {
			_, err := srv.Instances().ListEvents(patient(t), &instancedv1.ListEventsRequest{})
			return err
		}, codes.InvalidArgument, "INVALID_REQUEST", []string{"instance_ids"}},
		{"a principal that is too long", func() error {
			_, err := srv.Instances().GetServerInfo(as(patient(t), strings.Repeat("p", 129), "r"), &instancedv1.GetServerInfoRequest{})
			return err
		}, codes.InvalidArgument, "INVALID_METADATA", []string{"instanced-principal", "128"}},
		{"a request id given twice", func() error {
			ctx := metadata.AppendToOutgoingContext(patient(t), "request-id", "a", "request-id", "b")
			_, err := srv.Instances().GetServerInfo(ctx, &instancedv1.GetServerInfoRequest{})
			return err
		}, codes.InvalidArgument, "INVALID_METADATA", []string{"request-id", "once"}},
		{"a fault of an unknown kind", func() error {
			_, err := srv.Simulator().SetFaults(patient(t), &instancedv1.SetFaultsRequest{Faults: []*instancedv1.Fault{{Kind: 999}}})
			return err
		}, codes.InvalidArgument, "INVALID_REQUEST", []string{"faults[0].kind"}},
		{"an instance that exists already", func() error {
			_, err := srv.Simulator().CreateInstances(patient(t), fleet(1))
			return err
		}, codes.InvalidArgument, "INVALID_REQUEST", []string{"instances[0].instance_id", "exists already"}},
		{"a change of an unknown instance", func() error {
			_, err := srv.Simulator().ChangeInstances(patient(t), &instancedv1.ChangeInstancesRequest{Changes: []*instancedv1.OutsideChange{{InstanceIds: []string{missing}, Action: instancedv1.OutsideAction_OUTSIDE_ACTION_STOP}}})
			return err
		}, codes.NotFound, "INVALID_INSTANCE_ID_NOT_FOUND", []string{missing}},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.call()
			if test.reason == "" {
				wantCode(t, err, test.code)
			} else {
				wantRefusal(t, err, test.code, test.reason)
			}
			for _, part := range test.says {
				if text := allThatIsSaid(err); !strings.Contains(text, part) {
					t.Errorf("the error does not say %q: %s", part, text)
				}
			}
		})
	}
	if events := history(t, srv, ids(3), cursor); len(events) > 0 {
		t.Errorf("something was changed anyway: %v", events)
	}
}

// allThatIsSaid returns the message of an error and its violations.
func allThatIsSaid(err error) string {
	var b strings.Builder
	b.WriteString(status.Convert(err).Message())
	for _, d := range status.Convert(err).Details() {
		if bad, ok := d.(*errdetails.BadRequest); ok {
			for _, v := range bad.GetFieldViolations() {
				fmt.Fprintf(&b, "\n%s: %s", v.GetField(), v.GetDescription())
			}
		}
	}
	return b.String()
}
