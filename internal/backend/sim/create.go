package sim

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// Create adds instances, and faults to the plan: all or none. It returns the created
// instances in the order of the specifications. All problems are reported together.
func (b *Backend) Create(ctx context.Context, specs []Spec, faults ...Fault) ([]*instance.Instance, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	now, closed := b.lock()
	if closed != nil {
		return nil, closed
	}
	defer b.unlock(now)
	var problems violations
	if len(specs)+len(faults) == 0 {
		problems.add("instances", "are missing: want at least one")
	}
	fleet := b.expand(specs, maxCreate, "in a call", &problems)
	for i, s := range fleet {
		if b.machines[s.ID] != nil {
			problems.add(fmt.Sprintf("instances[%d].instance_id", i), "is %s, which exists already", s.ID)
		}
	}
	checkFaults(faults, &problems)
	if len(b.plan)+len(faults) > maxFaults {
		problems.add("faults", "would be %d together with the plan: want at maxSpecs %d", len(b.plan)+len(faults), maxFaults)
	}
	if err := problems.err(); err != nil {
		return nil, err
	}
	b.extendPlanLocked(faults)
	return b.add(fleet, now, nil), nil
}

// expand completes and checks specifications.
func (b *Backend) expand(specs []Spec, maxSpecs int, where string, problems *violations) []Spec {
	if len(specs) > maxSpecs {
		problems.add("instances", "are %d: want at maxSpecs %d %s", len(specs), maxSpecs, where)
		return nil
	}
	fleet := make([]Spec, 0, len(specs))
	seen := map[instance.ID]bool{}
	total := 0
	for i, s := range specs {
		path := fmt.Sprintf("instances[%d]", i)
		s = s.complete(b.config.Region)
		s.check(path, b.config.Region, problems)
		if s.ID != "" && seen[s.ID] {
			problems.add(path+".instance_id", "is %s, which comes twice", s.ID)
		}
		seen[s.ID] = true
		total += max(s.Count, 0)
		fleet = append(fleet, s)
	}
	if total > maxSpecs {
		problems.add("instances", "are %d: want at maxSpecs %d %s", total, maxSpecs, where)
	}
	return fleet
}

// add creates instances from checked specifications.
func (b *Backend) add(specs []Spec, now time.Time, l *launching) []*instance.Instance {
	taken := map[instance.ID]bool{}
	for _, s := range specs {
		taken[s.ID] = true
	}
	var created []*instance.Instance
	for _, s := range specs {
		for range s.Count {
			id := s.ID
			for id == "" || s.ID == "" && (taken[id] || b.machines[id] != nil) {
				id = b.newID()
			}
			created = append(created, b.launch(s, id, now, l, int32(len(created))))
			b.ids, b.unsorted = append(b.ids, id), true
		}
	}
	return created
}

// defaultImage is the AMI of instances that were created without one.
const defaultImage = "ami-0abcdef1234567890"

// launching is what all instances of a launch share.
type launching struct {
	imageID  string
	launched instance.Launched
}

// launch puts a new instance into its first state.
func (b *Backend) launch(s Spec, id instance.ID, now time.Time, l *launching, index int32) *instance.Instance {
	inst := &instance.Instance{
		ID:               id,
		AccountID:        b.config.AccountID,
		Region:           b.config.Region,
		AvailabilityZone: s.AvailabilityZone,
		Type:             s.Type,
		State:            s.State,
		LaunchTime:       instance.WallClock(now).Truncate(time.Second),
		ImageID:          defaultImage,
		PrivateIPAddress: b.privateAddress(id),
		Tenancy:          s.Tenancy,
		RootDeviceType:   s.RootDeviceType,
		Lifecycle:        s.Lifecycle,
		Tags:             maps.Clone(s.Tags),
		Simulator: &instance.SimulatorAttributes{
			DisableAPIStop:        s.DisableAPIStop,
			DisableAPITermination: s.DisableAPITermination,
			HibernationConfigured: s.HibernationConfigured,
			CPUCredits:            s.CPUCredits,
			SpotInstanceType:      s.SpotInstanceType,
			InterruptionBehavior:  s.InterruptionBehavior,
			EverRunning:           s.State != instance.StatePending,
		},
	}
	if l != nil {
		inst.ImageID, inst.AMILaunchIndex, inst.Simulator.Launched = l.imageID, index, &l.launched
	}
	m := &machine{slot: -1}
	b.machines[id] = m
	b.settleIn(m, inst, now)
	b.noteLaunch(inst)
	return inst
}

// name sets the host names of an image as in a default VPC.
func name(inst *instance.Instance) {
	inst.PrivateDNSName, inst.PublicDNSName = inst.UsualPrivateDNSName(), inst.UsualPublicDNSName()
}

// settleIn sets the attributes of a new instance that depend on its state.
func (b *Backend) settleIn(m *machine, inst *instance.Instance, now time.Time) {
	// The delay depends on the image, which must be set first.
	m.inst = inst
	sim := inst.Simulator
	var due time.Time
	goOn := func(to instance.State, s span) {
		due = now.Add(b.delay(m, s))
		sim.NextState, sim.NextAt = to, instance.WallClock(due)
	}
	if inst.State != instance.StatePending && inst.State != instance.StateRunning {
		inst.StateReason, inst.StateTransitionReason = reasonUserStop, userInitiated(now)
	}
	if inst.State != instance.StateStopped && inst.State != instance.StateTerminated {
		inst.PublicIPAddress = b.publicAddress(inst.ID, 0)
	}
	switch inst.State {
	case instance.StatePending:
		goOn(instance.StateRunning, startSpan)
	case instance.StateStopping:
		sim.MemoryLost = true
		goOn(instance.StateStopped, stopSpan)
	case instance.StateShuttingDown:
		goOn(instance.StateTerminated, terminateSpan)
	case instance.StateStopped:
		sim.MemoryLost = true
	case instance.StateTerminated:
		inst.PrivateIPAddress = ""
		due = now.Add(terminatedVisible)
		sim.NextAt = instance.WallClock(due)
	case instance.StateUnspecified, instance.StateRunning:
	}
	name(inst)
	at := m.stamp(now)
	meter(inst, at)
	m.inst = nil
	b.replaceLocked(m, inst, at)
	b.scheduleLocked(m, due)
}
