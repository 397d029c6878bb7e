package ec2query_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// launchInput asks for all that a launch can say.
func launchInput(token string) *ec2.RunInstancesInput {
	return &ec2.RunInstancesInput{
		ImageId: new("ami-0123456789abcdef0"), InstanceType: types.InstanceTypeT3Large, MinCount: aws.Int32(1), MaxCount: aws.Int32(3),
		ClientToken:         &token,
		Placement:           &types.Placement{AvailabilityZone: new("us-east-1b"), Tenancy: types.TenancyDedicated, GroupName: new("ignored")},
		CreditSpecification: &types.CreditSpecificationRequest{CpuCredits: new("standard")},
		HibernationOptions:  &types.HibernationOptionsRequest{Configured: new(true)},
		DisableApiStop:      new(true),
		InstanceMarketOptions: &types.InstanceMarketOptionsRequest{MarketType: types.MarketTypeSpot, SpotOptions: &types.SpotMarketOptions{
			MaxPrice: new("1"), SpotInstanceType: types.SpotInstanceTypePersistent, InstanceInterruptionBehavior: types.InstanceInterruptionBehaviorHibernate,
		}},
		TagSpecifications: []types.TagSpecification{
			{ResourceType: types.ResourceTypeInstance, Tags: []types.Tag{{Key: new("team"), Value: new("red")}}},
			{ResourceType: types.ResourceTypeVolume, Tags: []types.Tag{{Key: new("team"), Value: new("disk")}}},
		},
		// What is not simulated.
		KeyName: new("key"), UserData: new("c2g="), SecurityGroupIds: []string{"sg-1"}, SubnetId: new("subnet-1"), EbsOptimized: new(true),
		BlockDeviceMappings: []types.BlockDeviceMapping{{DeviceName: new("/dev/xvda"), Ebs: &types.EbsBlockDevice{VolumeSize: aws.Int32(8)}}},
		IamInstanceProfile:  &types.IamInstanceProfileSpecification{Name: new("role")},
		Monitoring:          &types.RunInstancesMonitoringEnabled{Enabled: new(true)},
		MetadataOptions:     &types.InstanceMetadataOptionsRequest{HttpTokens: types.HttpTokensStateRequired},
	}
}

func idsOf(instances []types.Instance) (ids []string) {
	for _, i := range instances {
		ids = append(ids, *i.InstanceId)
	}
	return ids
}

func TestALaunchIsRecordedStreamedAndMadeOnce(t *testing.T) {
	dir := t.TempDir()
	srv := servertest.New(t, servertest.Options{Fleet: &instancedv1.CreateInstancesRequest{}, Speed: 0.001, DataDir: dir})
	client, ctx := sdk(t, srv), patient(t)

	_, err := client.RunInstances(ctx, &ec2.RunInstancesInput{ImageId: new("ami-1"), MinCount: aws.Int32(1), MaxCount: aws.Int32(1), DryRun: new(true)})
	wantAPIError(t, err, 412, "DryRunOperation", "")
	launched, err := client.RunInstances(ctx, launchInput("token-1"))
	if err != nil {
		t.Fatal(err)
	}
	ids := idsOf(launched.Instances)
	if len(ids) != 3 || *launched.OwnerId != "123456789012" || launched.Instances[0].State.Name != types.InstanceStateNamePending {
		t.Fatalf("%+v", launched)
	}
	// It is in the journal by then: gRPC callers see all of it.
	events, err := srv.Instances().ListEvents(ctx, &instancedv1.ListEventsRequest{InstanceIds: ids})
	if err != nil || len(events.GetEvents()) != 3 {
		t.Fatalf("%v, %v", events, err)
	}
	i := events.GetEvents()[0].GetInstance()
	if i.GetInstanceType() != "t3.large" || i.GetAvailabilityZone() != "us-east-1b" || i.GetTenancy() != "dedicated" || i.GetInstanceLifecycle() != "spot" ||
		i.GetTags()["team"] != "red" || len(i.GetTags()) != 1 || i.GetSimulator().GetCpuCredits() != "standard" || !i.GetSimulator().GetHibernationConfigured() ||
		!i.GetSimulator().GetDisableApiStop() || i.GetSimulator().GetSpotInstanceType() != "persistent" || i.GetSimulator().GetInstanceInterruptionBehavior() != "hibernate" {
		t.Errorf("recorded as %v", i)
	}

	again, err := client.RunInstances(ctx, launchInput("token-1"))
	if err != nil || !slices.Equal(idsOf(again.Instances), ids) || *again.ReservationId != *launched.ReservationId {
		t.Errorf("with the same token: %+v, %v", again, err)
	}
	for name, change := range map[string]func(*ec2.RunInstancesInput){
		"the number":          func(in *ec2.RunInstancesInput) { in.MaxCount = aws.Int32(2) },
		"the key":             func(in *ec2.RunInstancesInput) { in.KeyName = new("other") },
		"the subnet":          func(in *ec2.RunInstancesInput) { in.SubnetId = new("subnet-2") },
		"what is executed":    func(in *ec2.RunInstancesInput) { in.UserData = new("b3RoZXI=") },
		"a volume":            func(in *ec2.RunInstancesInput) { in.BlockDeviceMappings[0].Ebs.VolumeSize = aws.Int32(9) },
		"the placement group": func(in *ec2.RunInstancesInput) { in.Placement.GroupName = new("other") },
		"the price":           func(in *ec2.RunInstancesInput) { in.InstanceMarketOptions.SpotOptions.MaxPrice = new("2") },
		"what an interruption does": func(in *ec2.RunInstancesInput) {
			in.InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior = types.InstanceInterruptionBehaviorStop
		},
		"the tags of volumes":      func(in *ec2.RunInstancesInput) { in.TagSpecifications[1].Tags[0].Value = new("other") },
		"that there are any of it": func(in *ec2.RunInstancesInput) { in.TagSpecifications = in.TagSpecifications[:1] },
	} {
		other := launchInput("token-1")
		change(other)
		t.Run("another launch that differs in "+name, func(t *testing.T) {
			_, err := client.RunInstances(ctx, other)
			wantAPIError(t, err, 400, "IdempotentParameterMismatch", "Arguments on this idempotent request are inconsistent with arguments used in previous request(s).")
		})
	}
	if more, err := client.RunInstances(ctx, launchInput("token-2")); err != nil || slices.Contains(ids, *more.Instances[0].InstanceId) {
		t.Errorf("with another token: %+v, %v", more, err)
	}

	srv.Close()
	srv = servertest.New(t, servertest.Options{Fleet: &instancedv1.CreateInstancesRequest{}, Speed: 0.001, DataDir: dir})
	client = sdk(t, srv)
	if again, err := client.RunInstances(ctx, launchInput("token-1")); err != nil || !slices.Equal(idsOf(again.Instances), ids) {
		t.Errorf("with the same token after a restart: %+v, %v", again, err)
	}
	out, err := client.DescribeInstances(ctx, &ec2.DescribeInstancesInput{Filters: []types.Filter{
		{Name: new("reservation-id"), Values: []string{*launched.ReservationId}}, {Name: new("image-id"), Values: []string{"ami-*"}}, {Name: new("client-token"), Values: []string{"token-1"}},
	}})
	if err != nil || len(out.Reservations) != 1 || *out.Reservations[0].ReservationId != *launched.ReservationId || !slices.Equal(idsOf(out.Reservations[0].Instances), ids) {
		t.Fatalf("its reservation: %+v, %v", out, err)
	}
	if i := out.Reservations[0].Instances[0]; *i.ImageId != "ami-0123456789abcdef0" || *i.ClientToken != "token-1" {
		t.Errorf("described as %+v", i)
	}
}

func TestAClientTokenOfTerminatedInstancesIsRefused(t *testing.T) {
	srv := servertest.New(t, servertest.Options{})
	client, ctx := sdk(t, srv, once), patient(t)
	input := &ec2.RunInstancesInput{ImageId: new("ami-1"), MinCount: aws.Int32(1), MaxCount: aws.Int32(1), ClientToken: new("t")}
	launched, err := client.RunInstances(ctx, input)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: idsOf(launched.Instances)}); err != nil {
		t.Fatal(err)
	}
	_, err = client.RunInstances(ctx, input)
	wantAPIError(t, err, 400, "IdempotentInstanceTerminated", "")
}

func TestLaunchesAreThrottledAsEC2DoesIt(t *testing.T) {
	srv := servertest.New(t, servertest.Options{Throttle: true})
	client := sdk(t, srv, once)
	var err error
	for range 12 {
		if _, err = client.RunInstances(patient(t), &ec2.RunInstancesInput{ImageId: new("ami-1"), MinCount: aws.Int32(1), MaxCount: aws.Int32(1)}); err != nil {
			break
		}
	}
	wantAPIError(t, err, 503, "RequestLimitExceeded", "Request limit exceeded. Account 123456789012 has been throttled on ec2:RunInstances because it exceeded its request rate limit.")
}

func TestTagsAreSetRemovedAndFound(t *testing.T) {
	srv := servertest.New(t, servertest.Options{Fleet: &instancedv1.CreateInstancesRequest{Instances: []*instancedv1.InstanceSpec{
		{InstanceId: id(0), Tags: map[string]string{"Name": "web-1"}}, {InstanceId: id(1), Tags: map[string]string{"Name": "web-2"}}, {InstanceId: id(2)},
	}}})
	client, ctx := sdk(t, srv), patient(t)
	tags := func(filters ...types.Filter) string {
		out, err := client.DescribeTags(ctx, &ec2.DescribeTagsInput{Filters: filters})
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, tag := range out.Tags {
			if tag.ResourceType != types.ResourceTypeInstance {
				t.Errorf("of type %s", tag.ResourceType)
			}
			all = append(all, (*tag.ResourceId)[len(*tag.ResourceId)-1:]+*tag.Key+"="+*tag.Value)
		}
		return strings.Join(all, " ")
	}
	create := func(ids []string, list ...types.Tag) {
		if _, err := client.CreateTags(ctx, &ec2.CreateTagsInput{Resources: ids, Tags: list}); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(ids []string, list ...types.Tag) {
		if _, err := client.DeleteTags(ctx, &ec2.DeleteTagsInput{Resources: ids, Tags: list}); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(want string, filters ...types.Filter) {
		t.Helper()
		if got := tags(filters...); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	create([]string{id(0), id(1), id(1)}, types.Tag{Key: new("team"), Value: new("red")}, types.Tag{Key: new("empty")})
	expect("1Name=web-1 1empty= 1team=red 2Name=web-2 2empty= 2team=red")
	expect("1Name=web-1", types.Filter{Name: new("value"), Values: []string{"web-1", "blue"}})
	expect("2Name=web-2 2empty= 2team=red", types.Filter{Name: new("resource-id"), Values: []string{id(1)}})
	expect("1team=red 2team=red", types.Filter{Name: new("key"), Values: []string{"te*"}}, types.Filter{Name: new("resource-type"), Values: []string{"instance"}})
	expect("1Name=web-1 2Name=web-2", types.Filter{Name: new("tag:Name"), Values: []string{"web-?"}})
	expect("", types.Filter{Name: new("resource-type"), Values: []string{"volume"}})
	remove([]string{id(0)}, types.Tag{Key: new("team"), Value: new("blue")}, types.Tag{Key: new("Name")}, types.Tag{Key: new("empty"), Value: new("")})
	expect("1team=red 2Name=web-2 2empty= 2team=red")
	remove([]string{id(0), id(1)})
	expect("")

	_, err := client.CreateTags(ctx, &ec2.CreateTagsInput{Resources: []string{id(2)}, Tags: []types.Tag{{Key: new("a")}}, DryRun: new(true)})
	wantAPIError(t, err, 412, "DryRunOperation", "")
	_, err = client.CreateTags(ctx, &ec2.CreateTagsInput{Resources: []string{id(2), "i-0ffffffffffffffff"}, Tags: []types.Tag{{Key: new("a")}}})
	wantAPIError(t, err, 400, "InvalidInstanceID.NotFound", "The instance ID 'i-0ffffffffffffffff' does not exist")
	expect("")
}

func TestAttributesAreModifiedAndDescribed(t *testing.T) {
	srv := servertest.New(t, servertest.Options{})
	client, ctx := sdk(t, srv, once), patient(t)
	const i = "i-0a000000000000011"
	describe := func(name types.InstanceAttributeName) *ec2.DescribeInstanceAttributeOutput {
		t.Helper()
		out, err := client.DescribeInstanceAttribute(ctx, &ec2.DescribeInstanceAttributeInput{InstanceId: new(i), Attribute: name})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	modify := func(input *ec2.ModifyInstanceAttributeInput) {
		t.Helper()
		input.InstanceId = new(i)
		if _, err := client.ModifyInstanceAttribute(ctx, input); err != nil {
			t.Fatal(err)
		}
	}
	if *describe(types.InstanceAttributeNameDisableApiStop).DisableApiStop.Value || *describe(types.InstanceAttributeNameDisableApiTermination).DisableApiTermination.Value ||
		*describe(types.InstanceAttributeNameInstanceType).InstanceType.Value != "t3.micro" {
		t.Error("other attributes than it was made with")
	}
	modify(&ec2.ModifyInstanceAttributeInput{InstanceType: &types.AttributeValue{Value: new("m5.large")}})
	modify(&ec2.ModifyInstanceAttributeInput{DisableApiTermination: &types.AttributeBooleanValue{Value: new(true)}})
	modify(&ec2.ModifyInstanceAttributeInput{Attribute: types.InstanceAttributeNameDisableApiStop, Value: new("true")})
	if !*describe(types.InstanceAttributeNameDisableApiStop).DisableApiStop.Value || !*describe(types.InstanceAttributeNameDisableApiTermination).DisableApiTermination.Value ||
		*describe(types.InstanceAttributeNameInstanceType).InstanceType.Value != "m5.large" {
		t.Error("the attributes are not what they were changed to")
	}
	_, err := client.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{i}})
	wantAPIError(t, err, 400, "OperationNotPermitted", "The instance '"+i+"' may not be terminated. Modify its 'disableApiTermination' instance attribute and try again.")
	modify(&ec2.ModifyInstanceAttributeInput{DisableApiTermination: &types.AttributeBooleanValue{Value: new(false)}})
	modify(&ec2.ModifyInstanceAttributeInput{DisableApiStop: &types.AttributeBooleanValue{Value: new(false)}})
	if _, err := client.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{i}}); err != nil {
		t.Error(err)
	}
	_, err = client.ModifyInstanceAttribute(ctx, &ec2.ModifyInstanceAttributeInput{InstanceId: new("i-0a000000000000001"), InstanceType: &types.AttributeValue{Value: new("m5.large")}})
	wantAPIError(t, err, 400, "IncorrectInstanceState", "The instance 'i-0a000000000000001' is not in the 'stopped' state.")
}

func TestFiltersSelectByAllThatIsKnown(t *testing.T) {
	srv := servertest.New(t, servertest.Options{Speed: 1})
	client, ctx := sdk(t, srv), patient(t)
	for _, test := range []struct {
		name   string
		values []string
		want   int
	}{
		{"availability-zone", []string{"us-east-1b"}, 5},
		{"availability-zone", []string{"us-east-1?"}, 14},
		{"instance-id", []string{documented, "i-0a00000000000000[1]", "i-nothing"}, 1},
		{"instance-id", []string{"i-0a00000000000000?"}, 7},
		{"instance-lifecycle", []string{"spot"}, 1},
		{"instance-state-code", []string{"80"}, 7},
		{"instance-state-name", []string{"stopped", "terminated"}, 7},
		{"instance-type", []string{"t3.*"}, 6},
		{"instance-type", []string{"T3.*"}, 0},
		{"ip-address", []string{"198.1?.*"}, 7},
		{"private-ip-address", []string{"10.*"}, 14},
		{"launch-time", []string{"20*T*Z"}, 14},
		{"owner-id", []string{"123456789012"}, 14},
		{"reason", []string{"User initiated (*GMT)"}, 7},
		{"root-device-type", []string{"instance-store"}, 1},
		{"state-reason-code", []string{"Client.UserInitiatedShutdown"}, 7},
		{"state-reason-message", []string{"*: User initiated shutdown"}, 7},
		{"tenancy", []string{"host"}, 1},
		{"hibernation-options.configured", []string{"true"}, 1},
		{"tag:Name", []string{"web*"}, 3},
		{"tag:access", []string{"*"}, 1},
		{"tag:nothing", []string{"*"}, 0},
		{"tag-key", []string{"access"}, 1},
		{"reservation-id", []string{"r-1234567890abcdef0"}, 1},
	} {
		out, err := client.DescribeInstances(ctx, &ec2.DescribeInstancesInput{Filters: []types.Filter{{Name: &test.name, Values: test.values}}})
		if err != nil || len(out.Reservations) != test.want {
			t.Errorf("%s %q: %d instances, %v; want %d", test.name, test.values, len(out.Reservations), err, test.want)
		}
	}
	out, err := client.DescribeInstances(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{documented, "i-0a000000000000001"}, Filters: []types.Filter{
		{Name: new("instance-state-name"), Values: []string{"running"}}, {Name: new("tenancy"), Values: []string{"default"}},
	}})
	if err != nil || len(out.Reservations) != 1 || *out.Reservations[0].Instances[0].InstanceId != "i-0a000000000000001" {
		t.Errorf("ids and filters together: %+v, %v", out, err)
	}
}

func TestASpotInstanceObeysItsRequest(t *testing.T) {
	srv := servertest.New(t, servertest.Options{Fleet: &instancedv1.CreateInstancesRequest{}})
	client, ctx := sdk(t, srv), patient(t)
	launch := func(kind types.SpotInstanceType, behavior types.InstanceInterruptionBehavior, protected bool) (string, error) {
		in := &ec2.RunInstancesInput{
			ImageId: new("ami-1"), MinCount: aws.Int32(1), MaxCount: aws.Int32(1), InstanceMarketOptions: &types.InstanceMarketOptionsRequest{
				MarketType: types.MarketTypeSpot, SpotOptions: &types.SpotMarketOptions{SpotInstanceType: kind, InstanceInterruptionBehavior: behavior},
			},
		}
		if protected {
			in.DisableApiTermination = &protected
		}
		out, err := client.RunInstances(ctx, in)
		if err != nil {
			return "", err
		}
		return *out.Instances[0].InstanceId, nil
	}
	const (
		oneTime, persistent   = types.SpotInstanceTypeOneTime, types.SpotInstanceTypePersistent
		terminate, stop       = types.InstanceInterruptionBehaviorTerminate, types.InstanceInterruptionBehaviorStop
		notSupported          = "The request with type 'one-time' is not supported when instanceInterruptionBehavior is set to 'stop'."
		persistentTerminates  = "The terminate InstanceInterruptionBehavior is not supported when requestType is set to persistent."
		notForSpot            = "'disableApiTermination' is not supported for spot instances."
		combination, spotCode = "InvalidParameterCombination", "UnsupportedOperation"
	)
	for name, test := range map[string]struct {
		kind          types.SpotInstanceType
		behavior      types.InstanceInterruptionBehavior
		protected     bool
		code, message string
	}{
		"a one-time request that stops":                {oneTime, stop, false, combination, notSupported},
		"a request of the default type that stops":     {"", stop, false, combination, notSupported},
		"a persistent request without behavior":        {persistent, "", false, combination, persistentTerminates},
		"a persistent request that terminates":         {persistent, terminate, false, combination, persistentTerminates},
		"a type that does not exist":                   {"monthly", "", false, "InvalidParameterValue", "Value (monthly) for parameter spotInstanceType is invalid. Expecting one-time or persistent."},
		"termination protection of a Spot Instance":    {"", "", true, spotCode, "The parameter " + notForSpot},
		"termination protection of a persistent one":   {persistent, stop, true, spotCode, "The parameter " + notForSpot},
		"an interruption behavior that does not exist": {persistent, "pause", false, "InvalidParameterValue", "Value (pause) for parameter instanceInterruptionBehavior is invalid. Expecting terminate, stop or hibernate."},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := launch(test.kind, test.behavior, test.protected)
			wantAPIError(t, err, 400, test.code, test.message)
		})
	}
	for _, kind := range []types.SpotInstanceType{"", oneTime} {
		id, err := launch(kind, "", false)
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.StopInstances(ctx, &ec2.StopInstancesInput{InstanceIds: []string{id}})
		wantAPIError(t, err, 400, spotCode, "You can't stop the Spot Instance '"+id+"' because it is associated with a one-time Spot Instance request. "+
			"You can only stop Spot Instances associated with persistent Spot Instance requests.")
		_, err = client.ModifyInstanceAttribute(ctx, &ec2.ModifyInstanceAttributeInput{InstanceId: &id, DisableApiTermination: &types.AttributeBooleanValue{Value: new(true)}})
		wantAPIError(t, err, 400, spotCode, "Modifying "+notForSpot)
	}
	id, err := launch(persistent, stop, false)
	if err == nil {
		_, err = client.StopInstances(ctx, &ec2.StopInstancesInput{InstanceIds: []string{id}})
	}
	if err != nil {
		t.Error(err)
	}
}
