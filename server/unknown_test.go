package server_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// unknownField gives a message a field of later versions.
func unknownField[M proto.Message](m M, number protowire.Number, size int) M {
	wire := protowire.AppendTag(m.ProtoReflect().GetUnknown(), number, protowire.BytesType)
	m.ProtoReflect().SetUnknown(protowire.AppendBytes(wire, make([]byte, size)))
	return m
}

func TestACommandWithUnknownFieldsIsRefused(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(3)})
	api, sim, list := srv.Instances(), srv.Simulator(), []string{id(0)}
	before := head(t, srv)
	for name, test := range map[string]struct {
		call func(context.Context) error
		says string
	}{
		"start": {func(ctx context.Context) error {
			_, err := api.StartInstances(ctx, unknownField(&instancedv1.StartInstancesRequest{InstanceIds: list}, 99, 3))
			return err
		}, "\n99: "},
		"a large start": {func(ctx context.Context) error {
			_, err := api.StartInstances(ctx, unknownField(&instancedv1.StartInstancesRequest{InstanceIds: list}, 98, 100<<10))
			return err
		}, "\n98: "},
		"a dry run, with two": {func(ctx context.Context) error {
			_, err := api.StartInstances(ctx, unknownField(unknownField(&instancedv1.StartInstancesRequest{InstanceIds: list, DryRun: true}, 99, 3), 100, 3))
			return err
		}, "\n100: "},
		"stop": {func(ctx context.Context) error {
			_, err := api.StopInstances(ctx, unknownField(&instancedv1.StopInstancesRequest{InstanceIds: list}, 99, 3))
			return err
		}, "\n99: "},
		"reboot": {func(ctx context.Context) error {
			_, err := api.RebootInstances(ctx, unknownField(&instancedv1.RebootInstancesRequest{InstanceIds: list}, 99, 3))
			return err
		}, "\n99: "},
		"terminate": {func(ctx context.Context) error {
			_, err := api.TerminateInstances(ctx, unknownField(&instancedv1.TerminateInstancesRequest{InstanceIds: list}, 99, 3))
			return err
		}, "\n99: "},
		"create": {func(ctx context.Context) error {
			spec := unknownField(&instancedv1.InstanceSpec{}, 77, 3)
			_, err := sim.CreateInstances(ctx, &instancedv1.CreateInstancesRequest{Instances: []*instancedv1.InstanceSpec{{}, spec}})
			return err
		}, "\ninstances[1].77: "},
		"change": {func(ctx context.Context) error {
			change := unknownField(&instancedv1.OutsideChange{InstanceIds: list, Action: instancedv1.OutsideAction_OUTSIDE_ACTION_START}, 77, 3)
			_, err := sim.ChangeInstances(ctx, &instancedv1.ChangeInstancesRequest{Changes: []*instancedv1.OutsideChange{change}})
			return err
		}, "\nchanges[0].77: "},
		"faults": {func(ctx context.Context) error {
			fault := &instancedv1.Fault{Kind: instancedv1.FaultKind_FAULT_KIND_UNAVAILABLE, Match: unknownField(&instancedv1.FaultMatch{}, 77, 3)}
			_, err := sim.SetFaults(ctx, &instancedv1.SetFaultsRequest{Faults: []*instancedv1.Fault{fault}})
			return err
		}, "\nfaults[0].match.77: "},
		"reset": {func(ctx context.Context) error {
			_, err := sim.Reset(ctx, unknownField(&instancedv1.ResetRequest{}, 99, 3))
			return err
		}, "\n99: "},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.call(patient(t))
			wantRefusal(t, err, codes.InvalidArgument, "UNKNOWN_FIELD")
			if text := allThatIsSaid(err); !strings.Contains(text, test.says) {
				t.Errorf("the error does not say %q: %s", test.says, text)
			}
		})
	}
	if events := history(t, srv, ids(3), before); len(events) > 0 {
		t.Errorf("something was changed anyway: %v", events)
	}
	t.Run("thousands", func(t *testing.T) {
		req := &instancedv1.StartInstancesRequest{InstanceIds: list}
		for n := range protowire.Number(5000) {
			unknownField(req, 1000+n, 1)
		}
		_, err := api.StartInstances(patient(t), req)
		wantRefusal(t, err, codes.InvalidArgument, "UNKNOWN_FIELD")
	})
}

func TestAReadMayHaveUnknownFields(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(1)})
	api, ctx := srv.Instances(), patient(t)
	var errs []error
	note := func(_ any, err error) { errs = append(errs, err) }
	note(api.DescribeInstances(ctx, unknownField(&instancedv1.DescribeInstancesRequest{Filter: unknownField(&instancedv1.InstanceFilter{}, 77, 3)}, 99, 3)))
	note(api.WaitInstances(ctx, unknownField(&instancedv1.WaitInstancesRequest{InstanceIds: ids(1), States: []instancedv1.InstanceStateName{stopped}}, 99, 3)))
	note(api.ListEvents(ctx, unknownField(&instancedv1.ListEventsRequest{InstanceIds: ids(1)}, 99, 3)))
	note(api.GetServerInfo(ctx, unknownField(&instancedv1.GetServerInfoRequest{}, 99, 3)))
	note(srv.Simulator().GetFaults(ctx, unknownField(&instancedv1.GetFaultsRequest{}, 99, 3)))
	stream, err := api.WatchInstances(ctx, unknownField(&instancedv1.WatchInstancesRequest{}, 99, 3))
	if err == nil {
		_, err = stream.Recv()
	}
	for _, err := range append(errs, err) {
		if err != nil {
			t.Error(err)
		}
	}
}
