package sim

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/instanced/instanced/internal/instance"
)

// The values that EC2 knows of some attributes.
const (
	tenancyDefault    = "default"
	tenancyDedicated  = "dedicated"
	tenancyHost       = "host"
	rootEBS           = "ebs"
	rootInstanceStore = "instance-store"
	lifecycleSpot     = "spot"
	creditsStandard   = "standard"
	creditsUnlimited  = "unlimited"
	spotOneTime       = "one-time"
	spotPersistent    = "persistent"
	terminateBehavior = "terminate"
	stopBehavior      = "stop"
	hibernateBehavior = "hibernate"
)

const (
	// maxCreate is how many instances one call creates.
	maxCreate = 10_000
	// maxFleet is how many instances a fleet has to begin with: more than a journal of the
	// default size keeps.
	maxFleet = 1_000_000
)

// Spec describes instances to create. The zero value is one stopped t3.micro.
type Spec struct {
	// ID is generated when empty, and must be when Count is above 1.
	ID instance.ID
	// Type is t3.micro when empty.
	Type string
	// AvailabilityZone is of Config.Region, such as us-east-1b. A single letter is
	// the zone of that letter; a when empty.
	AvailabilityZone string
	// State is [instance.StateStopped] when unspecified. From a transitional one the
	// instance goes on by itself, from pending as one that is launched.
	State instance.State
	// Tags are at most 50.
	Tags map[string]string
	// Tenancy is default, which is the default, dedicated or host.
	Tenancy string
	// RootDeviceType is ebs, which is the default, or instance-store.
	RootDeviceType string
	// Lifecycle is spot for a Spot Instance, else empty.
	Lifecycle string
	// SpotInstanceType is one-time or persistent, which is the default, and
	// InterruptionBehavior terminate, of one-time requests, or stop or hibernate, of
	// persistent ones. For Spot Instances only.
	SpotInstanceType     string
	InterruptionBehavior string
	// CPUCredits is standard or unlimited, of burstable types only. When empty it is
	// as EC2 has it: unlimited, but standard for a T2 and on a Dedicated Host.
	CPUCredits            string
	HibernationConfigured bool
	DisableAPIStop        bool
	DisableAPITermination bool
	// Count is how many to create; 0 means 1.
	Count int
}

// typeForm is the form of an instance type: a family, which is a class of up to four letters,
// a generation, and what is special about it, or one of the high-memory and mac forms; and a
// size. New families follow it.
var typeForm = regexp.MustCompile(`^([a-z]{1,4}[1-9][0-9]?[a-z]{0,4}(-[a-z0-9]{1,8})?|u-[0-9]{1,2}tb[1-9]|mac-m[1-9][a-z]{0,5})` +
	`\.(nano|micro|small|medium|large|([1-9][0-9]{0,2})?xlarge|metal(-[1-9][0-9]{0,2}xl)?)$`)

// burstable lists the families with CPU credits.
var burstable = []string{"t2", "t3", "t3a", "t4g"}

// complete fills in the defaults.
func (s Spec) complete(region string) Spec {
	orDefault := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	orDefault(&s.Type, "t3.micro")
	orDefault(&s.AvailabilityZone, "a")
	if len(s.AvailabilityZone) == 1 {
		s.AvailabilityZone = region + s.AvailabilityZone
	}
	orDefault(&s.Tenancy, tenancyDefault)
	orDefault(&s.RootDeviceType, rootEBS)
	orDefault(&s.CPUCredits, defaultCredits(s.Type, s.Tenancy))
	if s.Lifecycle == lifecycleSpot {
		orDefault(&s.SpotInstanceType, spotPersistent)
		orDefault(&s.InterruptionBehavior, map[bool]string{true: stopBehavior, false: terminateBehavior}[s.SpotInstanceType == spotPersistent])
		s.HibernationConfigured = s.HibernationConfigured || s.InterruptionBehavior == hibernateBehavior
	}
	if s.State == instance.StateUnspecified {
		s.State = instance.StateStopped
	}
	if s.Count == 0 {
		s.Count = 1
	}
	return s
}

// defaultCredits is EC2's choice. Source: EC2 User Guide, "Unlimited mode for
// burstable performance instances".
func defaultCredits(instanceType, tenancy string) string {
	f := family(instanceType)
	switch {
	case !slices.Contains(burstable, f):
		return ""
	case f == "t2" || tenancy == tenancyHost:
		return creditsStandard
	}
	return creditsUnlimited
}

// check reports what is wrong with a completed specification.
func (s *Spec) check(path, region string, problems *violations) {
	oneOf := func(field, value string, wanted ...string) {
		if !slices.Contains(wanted, value) {
			problems.add(path+field, "is %q: want one of %s", value, strings.Join(wanted, ", "))
		}
	}
	if s.ID != "" {
		if err := malformed(s.ID); err != nil {
			problems.refuse(path+".instance_id", err)
		}
	}
	if !typeForm.MatchString(s.Type) {
		problems.add(path+".instance_type", "is %q: want one such as t3.micro", s.Type)
	}
	if !inRegion(s.AvailabilityZone, region) {
		problems.add(path+".availability_zone", "is %q: want one of Region %s, such as %[2]sa", s.AvailabilityZone, region)
	}
	if !slices.Contains(instance.States(), s.State) {
		problems.add(path+".state", "is not a state of an instance")
	}
	checkTags(path+".tags", s.Tags, problems)
	oneOf(".tenancy", s.Tenancy, tenancyDefault, tenancyDedicated, tenancyHost)
	oneOf(".root_device_type", s.RootDeviceType, rootEBS, rootInstanceStore)
	if s.Lifecycle != "" {
		oneOf(".instance_lifecycle", s.Lifecycle, lifecycleSpot)
	}
	s.checkSpot(path, problems)
	if credits := []string{creditsStandard, creditsUnlimited}; s.CPUCredits != "" && !slices.Contains(credits, s.CPUCredits) {
		oneOf(".cpu_credits", s.CPUCredits, credits...)
	} else if s.CPUCredits != "" && !slices.Contains(burstable, family(s.Type)) {
		problems.add(path+".cpu_credits", "does not apply to %s: want a burstable type of %s", s.Type, strings.Join(burstable, ", "))
	}
	if s.RootDeviceType == rootInstanceStore {
		if s.State == instance.StateStopped || s.State == instance.StateStopping {
			problems.add(path+".state", "is %s: an instance with an instance-store root cannot be stopped", s.State)
		}
		if s.HibernationConfigured {
			problems.add(path+".hibernation_configured", "needs an ebs root device")
		}
	}
	switch {
	case s.Count < 0 || s.Count > maxFleet:
		problems.add(path+".count", "is %d: want 0, which means 1, to %d", s.Count, maxFleet)
	case s.Count > 1 && s.ID != "":
		problems.add(path+".count", "is %d: want 1 for an instance with an id", s.Count)
	}
}

// checkSpot reports what is wrong with the Spot request.
func (s *Spec) checkSpot(path string, problems *violations) {
	if s.Lifecycle != lifecycleSpot {
		if s.SpotInstanceType+s.InterruptionBehavior != "" {
			problems.add(path+".instance_lifecycle", "is %q: want %q for an instance with a Spot request", s.Lifecycle, lifecycleSpot)
		}
		return
	}
	if err := s.spotError(); err != nil {
		problems.refuse(path+".spot_instance_type", err)
	} else if s.SpotInstanceType == spotOneTime && (s.State == instance.StateStopped || s.State == instance.StateStopping) {
		problems.add(path+".state", "is %s: a Spot Instance of a one-time request cannot be stopped", s.State)
	}
	if s.DisableAPITermination {
		problems.refuse(path+".disable_api_termination", errSpotTerminationProtection("The parameter"))
	}
}

// spotError returns EC2's error for a Spot request that cannot be.
func (s *Spec) spotError() *instance.Error {
	switch {
	case s.SpotInstanceType != spotOneTime && s.SpotInstanceType != spotPersistent:
		return errInvalid("InvalidParameterValue", fmt.Sprintf("Value (%.40s) for parameter spotInstanceType is invalid. Expecting %s or %s.", s.SpotInstanceType, spotOneTime, spotPersistent))
	case !slices.Contains([]string{terminateBehavior, stopBehavior, hibernateBehavior}, s.InterruptionBehavior):
		return errInvalid("InvalidParameterValue", fmt.Sprintf("Value (%.40s) for parameter instanceInterruptionBehavior is invalid. Expecting %s, %s or %s.",
			s.InterruptionBehavior, terminateBehavior, stopBehavior, hibernateBehavior))
	case s.SpotInstanceType == spotOneTime && s.InterruptionBehavior != terminateBehavior:
		return errSpotBehavior(s.SpotInstanceType, s.InterruptionBehavior)
	case s.SpotInstanceType == spotPersistent && s.InterruptionBehavior == terminateBehavior:
		return errInvalid("InvalidParameterCombination", "The terminate InstanceInterruptionBehavior is not supported when requestType is set to persistent.")
	}
	return nil
}

func inRegion(zone, region string) bool {
	rest, ok := strings.CutPrefix(zone, region)
	if !ok || rest == "" || len(rest) > 16 {
		return false
	}
	last := rest[len(rest)-1]
	return last >= 'a' && last <= 'z' && utf8.ValidString(rest)
}

// maxTags is how many tags an instance can have, and codeTagLimit what more are refused
// with.
const (
	maxTags      = 50
	codeTagLimit = "TagLimitExceeded"
)

// checkTags holds tags to EC2's limits. Source: EC2 User Guide, "Tag
// restrictions".
func checkTags(path string, tags map[string]string, problems *violations) {
	const longestKey, longestValue = 128, 256
	if len(tags) > maxTags {
		problems.refuse(path, errInvalid(codeTagLimit, fmt.Sprintf("are %d: want at most %d", len(tags), maxTags)))
	}
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		switch value := tags[key]; {
		case key == "" || utf8.RuneCountInString(key) > longestKey || !utf8.ValidString(key):
			problems.add(path, "have the key %.40q: want 1 to %d characters", key, longestKey)
		case strings.HasPrefix(strings.ToLower(key), "aws:"):
			problems.add(path, "have the key %.40q: the prefix aws: is reserved", key)
		case utf8.RuneCountInString(value) > longestValue || !utf8.ValidString(value):
			problems.add(fmt.Sprintf("%s[%q]", path, key), "is too long: want at most %d characters", longestValue)
		}
	}
}
