package server

import (
	"math"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

// Conversions of requests never fail. A value without a counterpart, such as an unknown enum
// value, becomes one that the service layer rejects, so that all violations of a request are
// reported together.

// outOfRange replaces unknown enum values.
const outOfRange = math.MaxUint8

func startRequest(r *instancedv1.StartInstancesRequest) lifecycle.CommandRequest {
	return lifecycle.CommandRequest{
		Verb:           instance.VerbStart,
		InstanceIDs:    r.GetInstanceIds(),
		AdditionalInfo: r.GetAdditionalInfo(),
		DryRun:         r.GetDryRun(),
		ClientToken:    r.GetClientToken(),
		FailureMode:    failureMode(r.GetFailureMode()),
	}
}

func stopRequest(r *instancedv1.StopInstancesRequest) lifecycle.CommandRequest {
	return lifecycle.CommandRequest{
		Verb:           instance.VerbStop,
		InstanceIDs:    r.GetInstanceIds(),
		Hibernate:      r.GetHibernate(),
		Force:          r.GetForce(),
		SkipOSShutdown: r.GetSkipOsShutdown(),
		DryRun:         r.GetDryRun(),
		ClientToken:    r.GetClientToken(),
		FailureMode:    failureMode(r.GetFailureMode()),
	}
}

func rebootRequest(r *instancedv1.RebootInstancesRequest) lifecycle.CommandRequest {
	return lifecycle.CommandRequest{
		Verb:        instance.VerbReboot,
		InstanceIDs: r.GetInstanceIds(),
		DryRun:      r.GetDryRun(),
		ClientToken: r.GetClientToken(),
		FailureMode: failureMode(r.GetFailureMode()),
	}
}

func terminateRequest(r *instancedv1.TerminateInstancesRequest) lifecycle.CommandRequest {
	return lifecycle.CommandRequest{
		Verb:           instance.VerbTerminate,
		InstanceIDs:    r.GetInstanceIds(),
		Force:          r.GetForce(),
		SkipOSShutdown: r.GetSkipOsShutdown(),
		DryRun:         r.GetDryRun(),
		ClientToken:    r.GetClientToken(),
		FailureMode:    failureMode(r.GetFailureMode()),
	}
}

func describeRequest(r *instancedv1.DescribeInstancesRequest) lifecycle.DescribeRequest {
	return lifecycle.DescribeRequest{
		Filter:    filter(r.GetFilter()),
		PageSize:  int(r.GetPageSize()),
		PageToken: r.GetPageToken(),
		MinCursor: r.GetMinCursor(),
	}
}

func waitRequest(r *instancedv1.WaitInstancesRequest) lifecycle.WaitRequest {
	return lifecycle.WaitRequest{
		InstanceIDs: r.GetInstanceIds(),
		States:      states(r.GetStates()),
		AfterCursor: r.GetAfterCursor(),
		Timeout:     duration(r.GetTimeout()),
		Until:       waitUntil(r.GetUntil()),
	}
}

func watchRequest(r *instancedv1.WatchInstancesRequest) lifecycle.WatchRequest {
	return lifecycle.WatchRequest{
		AfterCursor:      r.GetAfterCursor(),
		FromNow:          r.GetFromNow(),
		Filter:           filter(r.GetFilter()),
		ProgressInterval: duration(r.GetProgressInterval()),
		OnUnusable:       cursorPolicy(r.GetOnUnusableCursor()),
	}
}

func eventsRequest(r *instancedv1.ListEventsRequest) lifecycle.EventsRequest {
	return lifecycle.EventsRequest{
		InstanceIDs: r.GetInstanceIds(),
		AfterCursor: r.GetAfterCursor(),
		PageSize:    int(r.GetPageSize()),
		PageToken:   r.GetPageToken(),
	}
}

func filter(f *instancedv1.InstanceFilter) lifecycle.Filter {
	out := lifecycle.Filter{
		InstanceIDs:       f.GetInstanceIds(),
		States:            states(f.GetStates()),
		Types:             f.GetInstanceTypes(),
		AvailabilityZones: f.GetAvailabilityZones(),
		Regions:           f.GetRegions(),
		AccountIDs:        f.GetAccountIds(),
	}
	for _, t := range f.GetTags() {
		out.Tags = append(out.Tags, lifecycle.TagFilter{Key: t.GetKey(), Values: t.GetValues()})
	}
	return out
}

func states(names []instancedv1.InstanceStateName) []instance.State {
	if len(names) == 0 {
		return nil
	}
	out := make([]instance.State, len(names))
	for i, name := range names {
		out[i] = state(name)
	}
	return out
}

func state(name instancedv1.InstanceStateName) instance.State {
	for s, n := range stateNames {
		if n == name {
			return s
		}
	}
	return outOfRange
}

func failureMode(m instancedv1.FailureMode) lifecycle.FailureMode {
	switch m {
	case instancedv1.FailureMode_FAILURE_MODE_UNSPECIFIED, instancedv1.FailureMode_FAILURE_MODE_WHOLE_CALL:
		return lifecycle.WholeCall
	case instancedv1.FailureMode_FAILURE_MODE_PER_INSTANCE:
		return lifecycle.PerInstance
	}
	return outOfRange
}

func waitUntil(u instancedv1.WaitUntil) lifecycle.WaitUntil {
	switch u {
	case instancedv1.WaitUntil_WAIT_UNTIL_UNSPECIFIED, instancedv1.WaitUntil_WAIT_UNTIL_ALL_SETTLED:
		return lifecycle.AllSettled
	case instancedv1.WaitUntil_WAIT_UNTIL_FIRST_FAILURE:
		return lifecycle.FirstFailure
	}
	return outOfRange
}

func cursorPolicy(p instancedv1.UnusableCursorPolicy) lifecycle.UnusableCursorPolicy {
	switch p {
	case instancedv1.UnusableCursorPolicy_UNUSABLE_CURSOR_POLICY_UNSPECIFIED, instancedv1.UnusableCursorPolicy_UNUSABLE_CURSOR_POLICY_FAIL:
		return lifecycle.FailOnUnusable
	case instancedv1.UnusableCursorPolicy_UNUSABLE_CURSOR_POLICY_SNAPSHOT:
		return lifecycle.SnapshotOnUnusable
	}
	return outOfRange
}

// duration distinguishes absent from zero. A duration too large for Go becomes the largest
// one, which no limit allows.
func duration(d *durationpb.Duration) *time.Duration {
	if d == nil {
		return nil
	}
	return new(d.AsDuration())
}
