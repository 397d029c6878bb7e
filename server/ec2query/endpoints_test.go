package ec2query_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// command is a call of one of the four verbs.
type command struct {
	verb      string
	ids       []string
	dryRun    bool
	hibernate bool
	force     bool
	skip      bool
	info      string
}

// outcome is what became of a command, in terms that both endpoints have.
type outcome struct {
	Code, Message string
	Status        int
	Changes       []string
}

// endpoint carries a command out through an endpoint.
type endpoint func(ctx context.Context, c command) outcome

// grpcEndpoint translates statuses of gRPC to those that the EC2 endpoint has to have.
func grpcEndpoint(srv *servertest.Server) endpoint {
	changes := func(list []*instancedv1.InstanceStateChange, err error) outcome {
		if err != nil {
			return refusedByGRPC(err)
		}
		out := outcome{Status: http.StatusOK}
		for _, c := range list {
			name := func(s *instancedv1.InstanceState) string {
				short := strings.TrimPrefix(s.GetName().String(), "INSTANCE_STATE_NAME_")
				return fmt.Sprintf("%s(%d)", strings.ReplaceAll(strings.ToLower(short), "_", "-"), s.GetCode())
			}
			out.Changes = append(out.Changes, c.GetInstanceId()+" "+name(c.GetPreviousState())+" "+name(c.GetCurrentState()))
		}
		return out
	}
	return func(ctx context.Context, c command) outcome {
		ctx = metadata.AppendToOutgoingContext(ctx, "instanced-principal", "alice")
		switch c.verb {
		case "start":
			r, err := srv.Instances().StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: c.ids, DryRun: c.dryRun, AdditionalInfo: c.info})
			return changes(r.GetStartingInstances(), err)
		case "stop":
			r, err := srv.Instances().StopInstances(ctx, &instancedv1.StopInstancesRequest{InstanceIds: c.ids, DryRun: c.dryRun, Hibernate: c.hibernate, Force: c.force, SkipOsShutdown: c.skip})
			return changes(r.GetStoppingInstances(), err)
		case "terminate":
			r, err := srv.Instances().TerminateInstances(ctx, &instancedv1.TerminateInstancesRequest{InstanceIds: c.ids, DryRun: c.dryRun, Force: c.force, SkipOsShutdown: c.skip})
			return changes(r.GetTerminatingInstances(), err)
		default:
			_, err := srv.Instances().RebootInstances(ctx, &instancedv1.RebootInstancesRequest{InstanceIds: c.ids, DryRun: c.dryRun})
			return changes(nil, err) // EC2 says nothing of rebooted instances
		}
	}
}

func refusedByGRPC(err error) outcome {
	out := outcome{Message: status.Convert(err).Message()}
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			out.Code = info.GetMetadata()["ec2_error_code"]
		}
	}
	switch status.Code(err) {
	case codes.InvalidArgument, codes.NotFound:
		out.Status = http.StatusBadRequest
	case codes.FailedPrecondition:
		out.Status = http.StatusBadRequest
		if out.Code == "DryRunOperation" {
			out.Status = http.StatusPreconditionFailed
		}
	case codes.PermissionDenied:
		out.Status = http.StatusForbidden
	case codes.ResourceExhausted:
		out.Status = map[string]int{
			"InsufficientInstanceCapacity": http.StatusInternalServerError,
			"RequestLimitExceeded":         http.StatusServiceUnavailable,
		}[out.Code]
		out.Status = cmp.Or(out.Status, http.StatusBadRequest)
	case codes.Unavailable:
		out.Status = http.StatusServiceUnavailable
		if out.Code == "InternalError" {
			out.Status = http.StatusInternalServerError
		}
	default:
		out.Status = -1
	}
	return out
}

func ec2Endpoint(client *ec2.Client) endpoint {
	changes := func(list []types.InstanceStateChange, err error) outcome {
		if err != nil {
			refused, _ := errors.AsType[smithy.APIError](err)
			response, _ := errors.AsType[*smithyhttp.ResponseError](err)
			if refused == nil || response == nil {
				return outcome{Message: err.Error()}
			}
			return outcome{Code: refused.ErrorCode(), Message: refused.ErrorMessage(), Status: response.HTTPStatusCode()}
		}
		out := outcome{Status: http.StatusOK}
		for _, c := range list {
			name := func(s *types.InstanceState) string { return fmt.Sprintf("%s(%d)", s.Name, *s.Code) }
			out.Changes = append(out.Changes, *c.InstanceId+" "+name(c.PreviousState)+" "+name(c.CurrentState))
		}
		return out
	}
	return func(ctx context.Context, c command) outcome {
		ids := append([]string{}, c.ids...) // nil would be refused by the SDK itself
		switch c.verb {
		case "start":
			r, err := client.StartInstances(ctx, &ec2.StartInstancesInput{InstanceIds: ids, DryRun: &c.dryRun, AdditionalInfo: &c.info})
			if err != nil {
				return changes(nil, err)
			}
			return changes(r.StartingInstances, nil)
		case "stop":
			r, err := client.StopInstances(ctx, &ec2.StopInstancesInput{InstanceIds: ids, DryRun: &c.dryRun, Hibernate: &c.hibernate, Force: &c.force, SkipOsShutdown: &c.skip})
			if err != nil {
				return changes(nil, err)
			}
			return changes(r.StoppingInstances, nil)
		case "terminate":
			r, err := client.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: ids, DryRun: &c.dryRun, Force: &c.force, SkipOsShutdown: &c.skip})
			if err != nil {
				return changes(nil, err)
			}
			return changes(r.TerminatingInstances, nil)
		default:
			_, err := client.RebootInstances(ctx, &ec2.RebootInstancesInput{InstanceIds: ids, DryRun: &c.dryRun})
			return changes(nil, err)
		}
	}
}

// scenario is a fleet and a sequence of commands.
type scenario struct {
	name     string
	fleet    []*instancedv1.InstanceSpec
	faults   []*instancedv1.Fault
	commands []command
	// code is EC2's where the endpoints say the same in different words: where the service
	// has no code of EC2, or a protocol of its own has a better one.
	code string
}

// cases are numbered fleets: the n-th instance of a case has the id %n in commands.
func cases() []scenario {
	plain := func(state instancedv1.InstanceStateName) []*instancedv1.InstanceSpec {
		return []*instancedv1.InstanceSpec{{State: state}}
	}
	all := []scenario{
		{name: "start, start again, stop, stop again", fleet: plain(stopped), commands: []command{
			{verb: "start", ids: []string{"%0"}}, {verb: "start", ids: []string{"%0"}}, {verb: "stop", ids: []string{"%0"}}, {verb: "stop", ids: []string{"%0"}},
		}},
		{name: "terminate, terminate again, start, stop", fleet: plain(running), commands: []command{
			{verb: "terminate", ids: []string{"%0"}}, {verb: "terminate", ids: []string{"%0"}}, {verb: "start", ids: []string{"%0"}}, {verb: "stop", ids: []string{"%0"}},
		}},
		{name: "several, one of them twice", fleet: []*instancedv1.InstanceSpec{{}, {State: running}, {}}, commands: []command{{verb: "start", ids: []string{"%2", "%0", "%1", "%0"}}}},
		{name: "one more than a thousand times", fleet: []*instancedv1.InstanceSpec{{}}, commands: []command{{verb: "start", ids: slices.Repeat([]string{"%0"}, 1001)}}},
		{name: "more than a thousand", commands: []command{{verb: "start", ids: distinctIDs(1001)}}, code: "ResourceCountExceeded"},
		{name: "one that does not exist", fleet: plain(stopped), commands: []command{{verb: "start", ids: []string{"%0", "i-0fffffffffffffff1"}}, {verb: "start", ids: []string{"%0"}}}},
		{name: "two that do not exist", commands: []command{{verb: "stop", ids: []string{"i-0fffffffffffffff2", "i-0fffffffffffffff3"}}}},
		{name: "malformed ids", commands: []command{{verb: "reboot", ids: []string{"foobar"}}, {verb: "terminate", ids: []string{"i-12345678", "i-1234567890ABCDEF0"}}, {verb: "start", ids: []string{"<&>"}}}},
		{name: "no ids", commands: []command{{verb: "terminate"}, {verb: "start"}, {verb: "stop"}, {verb: "reboot"}}, code: "InvalidParameterCombination"},
		{name: "an empty id", commands: []command{{verb: "start", ids: []string{""}}}, code: "MissingParameter"},
		{name: "additional info", fleet: plain(stopped), commands: []command{{verb: "start", ids: []string{"%0"}, info: "<reserved & ignored>"}}},
		{name: "additional info that is too long", fleet: plain(stopped), commands: []command{{verb: "start", ids: []string{"%0"}, info: strings.Repeat("x", 1025)}}, code: "InvalidParameterValue"},
		{name: "instance-store root", fleet: []*instancedv1.InstanceSpec{{State: running, RootDeviceType: "instance-store"}}, commands: []command{
			{verb: "stop", ids: []string{"%0"}}, {verb: "start", ids: []string{"%0"}}, {verb: "reboot", ids: []string{"%0"}}, {verb: "terminate", ids: []string{"%0"}},
		}},
		{name: "T3 on a host with unlimited credits", fleet: []*instancedv1.InstanceSpec{{InstanceType: "t3.large", Tenancy: "host", CpuCredits: "unlimited"}}, commands: []command{{verb: "start", ids: []string{"%0"}}}},
		{name: "stop protection", fleet: []*instancedv1.InstanceSpec{{State: running, DisableApiStop: true}}, commands: []command{{verb: "stop", ids: []string{"%0"}}, {verb: "terminate", ids: []string{"%0"}}}},
		{name: "termination protection in one of two zones", fleet: []*instancedv1.InstanceSpec{
			{State: running, DisableApiTermination: true}, {State: running}, {State: running, AvailabilityZone: "b"},
		}, commands: []command{{verb: "terminate", ids: []string{"%0", "%1", "%2"}}, {verb: "terminate", ids: []string{"%2"}}, {verb: "terminate", ids: []string{"%1"}}}},
		{name: "hibernation", fleet: []*instancedv1.InstanceSpec{{State: running, HibernationConfigured: true}, {State: running}}, commands: []command{
			{verb: "stop", ids: []string{"%0"}, hibernate: true}, {verb: "stop", ids: []string{"%1"}, hibernate: true},
		}},
		{name: "force and skip", fleet: []*instancedv1.InstanceSpec{{State: running}, {State: running}}, commands: []command{
			{verb: "stop", ids: []string{"%0"}, force: true, skip: true}, {verb: "terminate", ids: []string{"%1"}, force: true, skip: true},
		}},
		{name: "a Spot Instance", fleet: []*instancedv1.InstanceSpec{{State: running, InstanceLifecycle: "spot"}}, commands: []command{{verb: "stop", ids: []string{"%0"}}}},
		{name: "dry runs", fleet: plain(stopped), commands: []command{
			{verb: "start", ids: []string{"%0"}, dryRun: true},
			{verb: "stop", ids: []string{"%0"}, dryRun: true},
			{verb: "reboot", ids: []string{"%0"}, dryRun: true},
			{verb: "terminate", ids: []string{"%0"}, dryRun: true},
			{verb: "start", ids: []string{"%0"}},
		}},
		{name: "a start that is not authorized", fleet: plain(stopped), faults: []*instancedv1.Fault{{Kind: instancedv1.FaultKind_FAULT_KIND_UNAUTHORIZED}}, commands: []command{
			{verb: "start", ids: []string{"%0"}}, {verb: "start", ids: []string{"%0"}, dryRun: true},
		}},
	}
	for _, verb := range []string{"start", "stop", "reboot", "terminate"} {
		for name, state := range instancedv1.InstanceStateName_value {
			if state != 0 {
				all = append(all, scenario{name: verb + " what is " + name, fleet: plain(instancedv1.InstanceStateName(state)), commands: []command{{verb: verb, ids: []string{"%0"}}}})
			}
		}
	}
	for _, kind := range []instancedv1.FaultKind{
		instancedv1.FaultKind_FAULT_KIND_INSUFFICIENT_CAPACITY, instancedv1.FaultKind_FAULT_KIND_INSTANCE_LIMIT_EXCEEDED,
		instancedv1.FaultKind_FAULT_KIND_VCPU_LIMIT_EXCEEDED, instancedv1.FaultKind_FAULT_KIND_REQUEST_LIMIT_EXCEEDED,
		instancedv1.FaultKind_FAULT_KIND_UNAVAILABLE, instancedv1.FaultKind_FAULT_KIND_INTERNAL_ERROR,
	} {
		all = append(all, scenario{name: kind.String(), fleet: plain(stopped), faults: []*instancedv1.Fault{{Kind: kind}}, commands: []command{{verb: "start", ids: []string{"%0"}}}})
	}
	all = append(all, scenario{name: "an answer that is lost", fleet: plain(stopped), faults: []*instancedv1.Fault{{Kind: instancedv1.FaultKind_FAULT_KIND_ANSWER_LOST}}, commands: []command{{verb: "start", ids: []string{"%0"}}}, code: "Unavailable"})
	slices.SortFunc(all, func(a, b scenario) int { return strings.Compare(a.name, b.name) })
	return all
}

// prepare creates the fleet of a case with ids that belong to it, and returns its
// commands with these ids.
func (c *scenario) prepare(t *testing.T, srv *servertest.Server, number int) []command {
	t.Helper()
	name := func(n int) string { return fmt.Sprintf("i-0%08x%08x", number+1, n) }
	req := &instancedv1.CreateInstancesRequest{}
	var ids []string
	for n, spec := range c.fleet {
		own := &instancedv1.InstanceSpec{
			InstanceId: name(n), State: spec.GetState(), InstanceType: spec.GetInstanceType(), AvailabilityZone: spec.GetAvailabilityZone(),
			Tenancy: spec.GetTenancy(), RootDeviceType: spec.GetRootDeviceType(), InstanceLifecycle: spec.GetInstanceLifecycle(), CpuCredits: spec.GetCpuCredits(),
			HibernationConfigured: spec.GetHibernationConfigured(), DisableApiStop: spec.GetDisableApiStop(), DisableApiTermination: spec.GetDisableApiTermination(),
		}
		if own.GetState() == 0 {
			own.State = stopped
		}
		ids = append(ids, name(n))
		req.Instances = append(req.Instances, own)
	}
	for _, fault := range c.faults {
		req.Faults = append(req.Faults, &instancedv1.Fault{Kind: fault.GetKind(), Match: &instancedv1.FaultMatch{InstanceIds: ids}})
	}
	if len(req.GetInstances()) > 0 {
		if _, err := srv.Simulator().CreateInstances(patient(t), req); err != nil {
			t.Fatal(err)
		}
	}
	var commands []command
	for _, cmd := range c.commands {
		own := cmd
		own.ids = nil
		for _, id := range cmd.ids {
			if n, ok := strings.CutPrefix(id, "%"); ok {
				id = ids[int(n[0]-'0')]
			}
			own.ids = append(own.ids, id)
		}
		commands = append(commands, own)
	}
	return commands
}

// TestBothEndpointsGiveTheSameOutcome runs the same commands through gRPC and through EC2's
// protocol, each against a service of its own with the same instances.
func TestBothEndpointsGiveTheSameOutcome(t *testing.T) {
	t.Parallel()
	opts := servertest.Options{Fleet: &instancedv1.CreateInstancesRequest{}, Speed: 0.001} // so slow that nothing happens by itself
	byGRPC, byEC2 := servertest.New(t, opts), servertest.New(t, opts)
	throughGRPC, throughEC2 := grpcEndpoint(byGRPC), ec2Endpoint(sdk(t, byEC2, once))
	for number, c := range cases() {
		t.Run(c.name, func(t *testing.T) {
			commands := c.prepare(t, byGRPC, number)
			c.prepare(t, byEC2, number)
			for n, cmd := range commands {
				want, got := throughGRPC(patient(t), cmd), throughEC2(patient(t), cmd)
				if want.Status != http.StatusOK && c.code != "" {
					want.Code, got.Message = c.code, want.Message
				}
				if want.Code != got.Code || want.Message != got.Message || want.Status != got.Status || !slices.Equal(want.Changes, got.Changes) {
					t.Errorf("%s (command %d)\nby gRPC %+v\nby EC2  %+v", cmd.verb, n, want, got)
				}
			}
			if a, b := statesOf(t, byGRPC), statesOf(t, byEC2); !slices.Equal(a, b) {
				t.Errorf("the instances differ afterwards:\nby gRPC %v\nby EC2  %v", a, b)
			}
		})
	}
}

// statesOf returns what there is, and how it is.
func statesOf(t *testing.T, srv *servertest.Server) []string {
	t.Helper()
	states, err := srv.BackendStates(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for id, state := range states {
		all = append(all, id+" "+state.String())
	}
	slices.Sort(all)
	return all
}

func TestBothEndpointsDescribeTheSame(t *testing.T) {
	srv := servertest.New(t, servertest.Options{Speed: 1})
	byGRPC, err := srv.Instances().DescribeInstances(patient(t), &instancedv1.DescribeInstancesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	byEC2, err := sdk(t, srv).DescribeInstances(patient(t), &ec2.DescribeInstancesInput{})
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, i := range byGRPC.GetInstances() {
		want = append(want, fmt.Sprint(
			i.GetInstanceId(), i.GetAccountId(), i.GetAvailabilityZone(), i.GetInstanceType(), i.GetState().GetCode(), i.GetStateReason().GetCode(),
			i.GetStateReason().GetMessage(), i.GetStateTransitionReason(), i.GetLaunchTime().AsTime(), i.GetPrivateIpAddress(), i.GetPublicIpAddress(),
			i.GetTenancy(), i.GetRootDeviceType(), i.GetInstanceLifecycle(), i.GetTags(), i.GetSimulator().GetHibernationConfigured(),
			i.GetImageId(), i.GetAmiLaunchIndex(), i.GetPrivateDnsName(), i.GetPublicDnsName(),
		))
	}
	for _, r := range byEC2.Reservations {
		for _, i := range r.Instances {
			reason := types.StateReason{Code: new(""), Message: new("")}
			if i.StateReason != nil {
				reason = *i.StateReason
			}
			tags := map[string]string{}
			for _, tag := range i.Tags {
				tags[*tag.Key] = *tag.Value
			}
			text := func(p *string) string {
				if p == nil {
					return ""
				}
				return *p
			}
			got = append(got, fmt.Sprint(
				*i.InstanceId, *r.OwnerId, *i.Placement.AvailabilityZone, i.InstanceType, *i.State.Code, *reason.Code, *reason.Message,
				*i.StateTransitionReason, i.LaunchTime.UTC(), text(i.PrivateIpAddress), text(i.PublicIpAddress), i.Placement.Tenancy,
				i.RootDeviceType, i.InstanceLifecycle, tags, *i.HibernationOptions.Configured,
				*i.ImageId, *i.AmiLaunchIndex, *i.PrivateDnsName, *i.PublicDnsName,
			))
		}
	}
	if len(want) < 10 || !slices.Equal(want, got) {
		t.Errorf("by gRPC\n%s\nby EC2\n%s", strings.Join(want, "\n"), strings.Join(got, "\n"))
	}
}
