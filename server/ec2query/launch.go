package ec2query

import (
	"context"
	"fmt"
	"slices"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

// defaultType is EC2's default instance type.
const defaultType = "m1.small"

// withoutEffect are parameters of RunInstances that configure what is not simulated:
// networks, volumes, keys, and what an operating system sees. They are accepted, so that
// programs which launch real instances run unchanged.
var withoutEffect = []string{
	"AdditionalInfo", "BlockDeviceMapping", "CapacityReservationSpecification", "CpuOptions", "EbsOptimized",
	"EnablePrimaryIpv6", "EnclaveOptions", "IamInstanceProfile", "InstanceInitiatedShutdownBehavior", "Ipv6Address",
	"Ipv6AddressCount", "KernelId", "KeyName", "MaintenanceOptions", "MetadataOptions", "Monitoring", "NetworkInterface",
	"NetworkPerformanceOptions", "PrivateDnsNameOptions", "PrivateIpAddress", "RamdiskId", "SecurityGroup",
	"SecurityGroupId", "SubnetId", "UserData",
}

type runInstancesReply struct {
	head
	reservationItem
}

func (s *Server) runInstances(ctx context.Context, c *call) (reply, error) {
	launch := c.args.launch()
	dryRun := c.args.on("DryRun")
	if err := c.args.err(); err != nil {
		return nil, err
	}
	if dryRun {
		return nil, errDryRun()
	}
	launched, err := s.simulator.Launch(ctx, launch)
	if err != nil {
		return nil, err
	}
	c.ids = len(launched)
	return &runInstancesReply{reservationItem: *reservations(launched)[0]}, nil
}

// launch reads the parameters of RunInstances.
func (a args) launch() instance.Launch {
	placement, market := a.group("Placement"), a.group("InstanceMarketOptions")
	launch := instance.Launch{
		ImageID:               a.required("ImageId"),
		Type:                  a.text("InstanceType"),
		AvailabilityZone:      placement.text("AvailabilityZone"),
		Tenancy:               placement.text("Tenancy"),
		CPUCredits:            a.group("CreditSpecification").text("CpuCredits"),
		Lifecycle:             market.text("MarketType"),
		HibernationConfigured: a.group("HibernationOptions").on("Configured"),
		DisableAPIStop:        a.on("DisableApiStop"),
		DisableAPITermination: a.on("DisableApiTermination"),
		Count:                 a.count(),
		ClientToken:           a.text("ClientToken"),
	}
	launch.Tags, launch.Forgotten = a.instanceTags()
	if launch.Type == "" {
		launch.Type = defaultType
	}
	launch.Forgotten += placement.forget("Affinity", "AvailabilityZoneId", "GroupId", "GroupName", "HostId", "HostResourceGroupArn", "PartitionNumber", "SpreadDomain")
	spot := market.group("SpotOptions")
	launch.SpotInstanceType, launch.InterruptionBehavior = spot.text("SpotInstanceType"), spot.text("InstanceInterruptionBehavior")
	launch.Forgotten += spot.forget("BlockDurationMinutes", "MaxPrice", "ValidUntil")
	launch.Forgotten += a.forget(withoutEffect...)
	if token := launch.ClientToken; token != "" && !printable(token, lifecycle.MaxClientTokenLength) {
		a.refuse(errInvalid(codeInvalidValue, "Invalid value '%s' for clientToken; at most %d characters of printable ASCII are allowed.", clip(token), lifecycle.MaxClientTokenLength))
	}
	return launch
}

// count returns how many instances to launch: always the maximum, for which the simulator has
// room.
func (a args) count() int {
	minCount, maxCount := a.number("MinCount"), a.number("MaxCount")
	switch {
	case minCount == nil:
		a.refuse(errMissing("MinCount"))
		return 0
	case maxCount == nil:
		a.refuse(errMissing("MaxCount"))
		return 0
	case *minCount < 1 || *maxCount < 1:
		a.refuse(errInvalid(codeInvalidValue, "Value (%d) for parameter minCount or maxCount is invalid. Expecting a value greater than 0.", min(*minCount, *maxCount)))
	case *minCount > *maxCount:
		a.refuse(errInvalid(codeInvalidValue, "Value (%d) for parameter minCount is invalid. It is greater than maxCount (%d).", *minCount, *maxCount))
	}
	return *maxCount
}

// instanceTags returns the tags that a launch gives to instances and, in one string, the tags
// of what is launched with them, which are accepted and ignored.
func (a args) instanceTags() (tags map[string]string, forgotten string) {
	for _, g := range a.groups("TagSpecification") {
		kind := g.required("ResourceType")
		given := g.tags("Tag")
		switch {
		case kind != "instance" && !slices.Contains([]string{"volume", "network-interface", "spot-instances-request", ""}, kind):
			a.refuse(errInvalid(codeInvalidValue, "'%s' is not a valid taggable resource type for this operation.", clip(kind)))
		case kind != "instance":
			forgotten += fmt.Sprintf("%q: %q\n", kind, tagMap(given))
		case tags != nil:
			a.refuse(errInvalid(codeInvalidValue, "Tag specification resource type 'instance' has already been specified."))
		default:
			tags = tagMap(given)
		}
	}
	return tags, forgotten
}

type attribute[T any] struct {
	Value T `xml:"value"`
}

type attributeReply struct {
	head
	ID                    string             `xml:"instanceId"`
	DisableAPIStop        *attribute[bool]   `xml:"disableApiStop"`
	DisableAPITermination *attribute[bool]   `xml:"disableApiTermination"`
	Type                  *attribute[string] `xml:"instanceType"`
}

// The attributes that are kept, and those that EC2 has beside them.
const (
	attributeStop        = "disableApiStop"
	attributeTermination = "disableApiTermination"
	attributeType        = "instanceType"
)

var otherAttributes = []string{
	"blockDeviceMapping", "ebsOptimized", "enaSupport", "enclaveOptions", "groupSet", "instanceInitiatedShutdownBehavior",
	"kernel", "productCodes", "ramdisk", "rootDeviceName", "sourceDestCheck", "sriovNetSupport", "userData",
}

func (a args) attribute(name string) {
	switch {
	case name == attributeStop, name == attributeTermination, name == attributeType:
	case slices.Contains(otherAttributes, name):
		a.refuse(errUnkept(name))
	default:
		a.refuse(errInvalid(codeInvalidValue, "Value (%s) for parameter attribute is invalid. Unknown attribute.", clip(name)))
	}
}

func errUnkept(name string) error {
	return &instance.Error{
		Kind: instance.KindPrecondition, Code: instance.CodeUnsupportedOperation,
		Message: fmt.Sprintf("The attribute '%s' is not simulated; only %s, %s and %s are.", name, attributeStop, attributeTermination, attributeType),
	}
}

func (s *Server) describeInstanceAttribute(ctx context.Context, c *call) (reply, error) {
	id, name := c.args.required("InstanceId"), c.args.required("Attribute")
	c.ids = 1
	dryRun := c.args.on("DryRun")
	if name != "" {
		c.args.attribute(name)
	}
	if err := c.args.err(); err != nil {
		return nil, err
	}
	sel := selection{ids: []string{id}, filter: &filter{}, page: page{size: 1}}
	if err := s.read(ctx, c, &sel, dryRun); err != nil {
		return nil, err
	}
	found, _, err := s.instances(ctx, c, sel)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 { // it has just vanished
		return nil, instance.NotFound(instance.ID(id))
	}
	answer := &attributeReply{ID: id}
	switch i := found[0]; name {
	case attributeStop:
		answer.DisableAPIStop = &attribute[bool]{i.Simulator.DisableAPIStop}
	case attributeTermination:
		answer.DisableAPITermination = &attribute[bool]{i.Simulator.DisableAPITermination}
	case attributeType:
		answer.Type = &attribute[string]{i.Type}
	}
	return answer, nil
}

func (s *Server) modifyInstanceAttribute(ctx context.Context, c *call) (reply, error) {
	change := c.args.modification()
	c.ids = 1
	dryRun := c.args.on("DryRun")
	if err := c.args.err(); err != nil {
		return nil, err
	}
	if dryRun {
		return nil, errDryRun()
	}
	if err := s.simulator.Modify(ctx, change); err != nil {
		return nil, err
	}
	return &returnReply{Return: true}, nil
}

// modification reads the attribute to change. It may be given by its own name, or as Attribute
// and Value.
func (a args) modification() instance.Modification {
	change := instance.Modification{IDs: []instance.ID{a.id(a.required("InstanceId"))}}
	given := 0
	if a.has("Attribute") {
		given++
		name := a.text("Attribute")
		a.attribute(name)
		a.take("Value") // is known, whatever the attribute is
		switch name {
		case attributeStop:
			change.DisableAPIStop = a.flag("Value")
		case attributeTermination:
			change.DisableAPITermination = a.flag("Value")
		case attributeType:
			change.Type = a.required("Value")
		}
		if !a.has("Value") {
			a.refuse(errMissing("Value"))
		}
	}
	if a.has("DisableApiStop") {
		given++
		change.DisableAPIStop = a.group("DisableApiStop").flag("Value")
	}
	if a.has("DisableApiTermination") {
		given++
		change.DisableAPITermination = a.group("DisableApiTermination").flag("Value")
	}
	if a.has("InstanceType") {
		given++
		change.Type = a.group("InstanceType").required("Value")
	}
	for _, name := range []string{"SourceDestCheck", "BlockDeviceMapping", "Kernel", "Ramdisk", "UserData", "InstanceInitiatedShutdownBehavior", "GroupId", "EbsOptimized", "SriovNetSupport", "EnaSupport"} {
		if a.has(name) {
			given++
			a.ignore(name)
			a.refuse(errUnkept(name))
		}
	}
	switch {
	case given == 0:
		a.refuse(errInvalid(codeInvalidCombination, "No attributes specified."))
	case given > 1:
		a.refuse(errInvalid(codeInvalidCombination, "Fields for multiple attribute types specified."))
	}
	return change
}
