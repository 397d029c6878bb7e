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

// EC2's values of some attributes.
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
	// maxCreate is the maximum number of instances in a call.
	maxCreate = 10_000
	// maxFleet is the maximum number of instances in a fleet: more than a journal of the
	// default size can hold.
	maxFleet = 1_000_000
)

// Spec describes instances to create. The zero value is one stopped t3.micro.
type Spec struct {
	// ID is generated if empty; it must be empty if Count is above 1.
	ID instance.ID
	// Type is t3.micro if empty.
	Type string
	// AvailabilityZone is a zone of Config.Region, such as us-east-1b, or just its letter;
	// a if empty.
	AvailabilityZone string
	// State is [instance.StateStopped] if unspecified. In a transitional state the instance
	// continues by itself; in pending, as if it was being launched.
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
	// CPUCredits is standard or unlimited, for burstable types only. Empty means EC2's
	// default: unlimited, but standard for T2 and on a Dedicated Host.
	CPUCredits            string
	HibernationConfigured bool
	DisableAPIStop        bool
	DisableAPITermination bool
	// Count is the number of instances to create; 0 means 1.
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

// check reports the problems of a completed specification.
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

// checkSpot reports the problems of the Spot request.
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

// spotError returns EC2's error for an impossible Spot request.
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

// maxTags is the maximum number of tags of an instance, and codeTagLimit the error code
// beyond it.
const (
	maxTags      = 50
	codeTagLimit = "TagLimitExceeded"
)

// checkTags checks tags against EC2's limits. Source: EC2 User Guide, "Tag restrictions".
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
