package sim

import "github.com/instanced/instanced/internal/instance"

// The instances of the built-in fleet that have faults.
const (
	fallsBack  instance.ID = "i-0a0000000000000fa"
	noCapacity instance.ID = "i-0a0000000000000ca"
)

// deniedTag marks instances on which every verb is unauthorized.
const deniedTag = "access"

// BuiltinFleet is a dozen instances, one for each warning in EC2's documentation of
// StartInstances and for each common surprise. The tag "about" says what each is for. Use
// it with [BuiltinFaults].
func BuiltinFleet() []Spec {
	tags := func(name, about string) map[string]string { return map[string]string{"Name": name, "about": about} }
	return []Spec{
		{ID: "i-1234567890abcdef0", Type: "t3.micro", Tags: tags("docs-example", "stopped, as in the documentation's example")},
		{ID: "i-0a000000000000001", Type: "m5.large", State: instance.StateRunning, Tags: tags("build-1", "running; its RAM is lost when it stops")},
		{ID: "i-0a000000000000002", Type: "m5.large", State: instance.StateRunning, HibernationConfigured: true, Tags: tags("cache-1", "running; keeps its RAM when it hibernates")},
		{ID: "i-0a000000000000003", Type: "m3.medium", State: instance.StateRunning, RootDeviceType: rootInstanceStore, Tags: tags("scratch-1", "instance-store root: can be neither stopped nor started")},
		{ID: "i-0a000000000000004", Type: "t3.large", Tenancy: tenancyHost, CPUCredits: creditsUnlimited, Tags: tags("licensed-1", "T3 on a Dedicated Host with unlimited credits: cannot be started")},
		{ID: "i-0a000000000000005", Type: "m5.large", State: instance.StateRunning, DisableAPIStop: true, Tags: tags("db-1", "stop protection: can be neither stopped nor terminated")},
		{ID: "i-0a000000000000006", Type: "m5.large", State: instance.StateRunning, DisableAPITermination: true, AvailabilityZone: "b", Tags: tags("db-2", "termination protection: cannot be terminated")},
		{ID: "i-0a000000000000007", Type: "c5.large", State: instance.StateRunning, Lifecycle: lifecycleSpot, AvailabilityZone: "b", Tags: tags("batch-1", "Spot Instance: can be interrupted")},
		{ID: fallsBack, Type: "m5.large", Tags: tags("flaky-1", "start is accepted, then falls back to stopped")},
		{ID: noCapacity, Type: "p4d.24xlarge", AvailabilityZone: "b", Tags: tags("gpu-1", "no capacity to start it")},
		{ID: "i-0a0000000000000de", Type: "t3.micro", Tags: map[string]string{"Name": "vault-1", "about": "not authorized to start, stop, reboot or terminate it", deniedTag: "denied"}},
		{ID: "i-0a000000000000011", Type: "t3.micro", Tags: tags("web-1", "stopped, in zone a")},
		{ID: "i-0a000000000000012", Type: "t3.micro", AvailabilityZone: "b", Tags: tags("web-2", "stopped, in zone b")},
		{ID: "i-0a000000000000013", Type: "t3.small", AvailabilityZone: "b", State: instance.StateRunning, Tags: tags("web-3", "running, in zone b")},
	}
}

// BuiltinFaults are the faults of [BuiltinFleet].
func BuiltinFaults() []Fault {
	return []Fault{
		{Kind: FallBackToStopped, Match: Match{IDs: []instance.ID{fallsBack}}},
		{Kind: InsufficientCapacity, Match: Match{IDs: []instance.ID{noCapacity}}},
		{Kind: Unauthorized, Match: Match{Tags: map[string]string{deniedTag: "denied"}}},
	}
}
