package sim

import "github.com/instanced/instanced/internal/instance"

// The instances of the built-in fleet that faults are planned for.
const (
	fallsBack  instance.ID = "i-0a0000000000000fa"
	noCapacity instance.ID = "i-0a0000000000000ca"
)

// deniedTag marks instances that nobody may start, stop, reboot or terminate.
const deniedTag = "access"

// BuiltinFleet is a dozen instances, one for each warning in EC2's documentation
// of StartInstances and for what surprises its users. The tag Name says what each
// is for. Use it with [BuiltinFaults].
func BuiltinFleet() []Spec {
	name := func(s string) map[string]string { return map[string]string{"Name": s} }
	return []Spec{
		{ID: "i-1234567890abcdef0", Type: "t3.micro", Tags: name("stopped, as in the documentation's example")},
		{ID: "i-0a000000000000001", Type: "m5.large", State: instance.StateRunning, Tags: name("running; its RAM is lost when it stops")},
		{ID: "i-0a000000000000002", Type: "m5.large", State: instance.StateRunning, HibernationConfigured: true, Tags: name("running; keeps its RAM when it hibernates")},
		{ID: "i-0a000000000000003", Type: "m3.medium", State: instance.StateRunning, RootDeviceType: rootInstanceStore, Tags: name("instance-store root: can be neither stopped nor started")},
		{ID: "i-0a000000000000004", Type: "t3.large", Tenancy: tenancyHost, CPUCredits: creditsUnlimited, Tags: name("T3 on a Dedicated Host with unlimited credits: cannot be started")},
		{ID: "i-0a000000000000005", Type: "m5.large", State: instance.StateRunning, DisableAPIStop: true, Tags: name("stop protection: can be neither stopped nor terminated")},
		{ID: "i-0a000000000000006", Type: "m5.large", State: instance.StateRunning, DisableAPITermination: true, AvailabilityZone: "b", Tags: name("termination protection: cannot be terminated")},
		{ID: "i-0a000000000000007", Type: "c5.large", State: instance.StateRunning, Lifecycle: lifecycleSpot, AvailabilityZone: "b", Tags: name("Spot Instance: can be interrupted")},
		{ID: fallsBack, Type: "m5.large", Tags: name("start is accepted, then falls back to stopped")},
		{ID: noCapacity, Type: "p4d.24xlarge", AvailabilityZone: "b", Tags: name("no capacity to start it")},
		{ID: "i-0a0000000000000de", Type: "t3.micro", Tags: map[string]string{"Name": "nobody may start, stop, reboot or terminate it", deniedTag: "denied"}},
		{ID: "i-0a000000000000011", Type: "t3.micro", Tags: name("stopped, in zone a")},
		{ID: "i-0a000000000000012", Type: "t3.micro", AvailabilityZone: "b", Tags: name("stopped, in zone b")},
		{ID: "i-0a000000000000013", Type: "t3.small", AvailabilityZone: "b", State: instance.StateRunning, Tags: name("running, in zone b")},
	}
}

// BuiltinFaults are what goes wrong in [BuiltinFleet].
func BuiltinFaults() []Fault {
	return []Fault{
		{Kind: FallBackToStopped, Match: Match{IDs: []instance.ID{fallsBack}}},
		{Kind: InsufficientCapacity, Match: Match{IDs: []instance.ID{noCapacity}}},
		{Kind: Unauthorized, Match: Match{Tags: map[string]string{deniedTag: "denied"}}},
	}
}
