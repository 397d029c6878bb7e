package sim

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

const (
	// maxLaunch is the maximum number of instances of a launch.
	maxLaunch = 1000
	// statusDelay is how long after its launch an instance passes its status checks.
	statusDelay = 90 * time.Second
)

// Launch launches instances as EC2's RunInstances does, and returns them in the order of
// their ids: they are pending, and running after a delay. If the client token was used for
// the same launch before, it returns the instances of that launch as they are now, for as
// long as any of them is visible.
func (b *Backend) Launch(ctx context.Context, launch instance.Launch) ([]*instance.Instance, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	now, closed := b.lock()
	if closed != nil {
		return nil, closed
	}
	defer b.unlock(now)
	digest := digestOf(launch)
	if before, err := b.launchedBefore(launch.ClientToken, digest); err != nil || before != nil {
		return before, err
	}
	switch {
	case launch.AvailabilityZone != "" && !inRegion(launch.AvailabilityZone, b.config.Region):
		return nil, errInvalidValue("Invalid availability zone: [%s]", launch.AvailabilityZone)
	case !typeForm.MatchString(launch.Type):
		return nil, errInvalidType(launch.Type)
	}
	if launch.Count > maxLaunch {
		return nil, errInstanceLimit(launch.Count, maxLaunch)
	}
	spec := specOf(launch)
	if err := launchError(spec); err != nil {
		return nil, err
	}
	var problems violations
	fleet := b.expand([]Spec{spec}, maxCreate, "in a call", &problems)
	if err := problems.err(); err != nil {
		return nil, err
	}
	if b.config.Throttle {
		wait := b.buckets.request(verbRun, false).take(now, 1)
		if wait == 0 {
			wait = b.buckets.resource[verbRun].take(now, launch.Count)
		}
		if wait > 0 {
			return nil, b.errThrottled(verbRun, wait)
		}
	}
	launched := b.add(fleet, now, &launching{launch.ImageID, instance.Launched{
		ReservationID: "r-" + string(b.newID()[2:]),
		ClientToken:   launch.ClientToken,
		Digest:        digest,
	}})
	slices.SortFunc(launched, func(a, b *instance.Instance) int { return cmp.Compare(a.ID, b.ID) })
	return launched, nil
}

// StatusDelay is how long after its launch an instance passes its status checks.
func (b *Backend) StatusDelay() time.Duration { return b.scale(statusDelay) }

// launchError returns EC2's error for the Spot request of a launch, if it is invalid.
func launchError(s Spec) error {
	if s.Lifecycle != lifecycleSpot {
		return nil
	}
	if err := s.spotError(); err != nil {
		return err
	}
	if s.DisableAPITermination {
		return errSpotTerminationProtection("The parameter")
	}
	return nil
}

func specOf(l instance.Launch) Spec {
	if l.Lifecycle == lifecycleSpot {
		l.SpotInstanceType = cmp.Or(l.SpotInstanceType, spotOneTime)
		l.InterruptionBehavior = cmp.Or(l.InterruptionBehavior, terminateBehavior)
	}
	return Spec{
		Type:                  l.Type,
		AvailabilityZone:      l.AvailabilityZone,
		State:                 instance.StatePending,
		Tags:                  l.Tags,
		Tenancy:               l.Tenancy,
		Lifecycle:             l.Lifecycle,
		SpotInstanceType:      l.SpotInstanceType,
		InterruptionBehavior:  l.InterruptionBehavior,
		CPUCredits:            l.CPUCredits,
		HibernationConfigured: l.HibernationConfigured,
		DisableAPIStop:        l.DisableAPIStop,
		DisableAPITermination: l.DisableAPITermination,
		Count:                 l.Count,
	}
}

// digestOf identifies the request of a launch with a client token.
func digestOf(l instance.Launch) string {
	if l.ClientToken == "" {
		return ""
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%#v", l))
	return hex.EncodeToString(sum[:16])
}

// noteLaunch records an instance under the client token of its launch.
func (b *Backend) noteLaunch(inst *instance.Instance) {
	l := inst.Simulator.Launched
	if l == nil || l.ClientToken == "" {
		return
	}
	if b.launches[l.ClientToken] == nil {
		b.launches[l.ClientToken] = map[instance.ID]struct{}{}
	}
	b.launches[l.ClientToken][inst.ID] = struct{}{}
}

// launchedBefore returns the instances that a client token has launched.
func (b *Backend) launchedBefore(token, digest string) ([]*instance.Instance, error) {
	if token == "" {
		return nil, nil
	}
	var before []*instance.Instance
	terminated := true
	for _, id := range slices.Sorted(maps.Keys(b.launches[token])) {
		inst := b.machines[id].inst
		if inst.Simulator.Launched.Digest != digest {
			return nil, &instance.Error{
				Kind: instance.KindConflict, Code: "IdempotentParameterMismatch",
				Message: "Arguments on this idempotent request are inconsistent with arguments used in previous request(s).",
			}
		}
		before = append(before, inst)
		terminated = terminated && inst.State == instance.StateTerminated
	}
	if len(before) > 0 && terminated {
		return nil, &instance.Error{
			Kind: instance.KindPrecondition, Code: "IdempotentInstanceTerminated",
			Message: "The client token belongs to a launch of instances that are terminated.",
		}
	}
	return before, nil
}
