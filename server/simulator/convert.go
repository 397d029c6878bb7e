package simulator

import (
	"math"

	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

// outOfRange stands for a value of an enum that is not known here. The simulator
// refuses it, together with whatever else is wrong with a request.
const outOfRange = math.MaxUint8

// enum returns the counterpart of a value: the enums of the contract and of the
// simulator have the same values.
func enum[To ~uint8, From ~int32](value From) To {
	if value < 0 || value >= outOfRange {
		return outOfRange
	}
	return To(value)
}

// Fleet returns the instances and the faults of a request, as the simulator takes
// them. What it does not know is left for it to refuse.
func Fleet(req *instancedv1.CreateInstancesRequest) ([]sim.Spec, []sim.Fault) {
	specs := make([]sim.Spec, len(req.GetInstances()))
	for i, s := range req.GetInstances() {
		specs[i] = sim.Spec{
			ID:                    instance.ID(s.GetInstanceId()),
			Type:                  s.GetInstanceType(),
			AvailabilityZone:      s.GetAvailabilityZone(),
			State:                 enum[instance.State](s.GetState()),
			Tags:                  s.GetTags(),
			Tenancy:               s.GetTenancy(),
			RootDeviceType:        s.GetRootDeviceType(),
			Lifecycle:             s.GetInstanceLifecycle(),
			SpotInstanceType:      s.GetSpotInstanceType(),
			InterruptionBehavior:  s.GetInstanceInterruptionBehavior(),
			CPUCredits:            s.GetCpuCredits(),
			HibernationConfigured: s.GetHibernationConfigured(),
			DisableAPIStop:        s.GetDisableApiStop(),
			DisableAPITermination: s.GetDisableApiTermination(),
			Count:                 int(s.GetCount()),
		}
	}
	return specs, faults(req.GetFaults())
}

func outsideChanges(changes []*instancedv1.OutsideChange) []sim.Change {
	out := make([]sim.Change, len(changes))
	for i, c := range changes {
		out[i] = sim.Change{
			IDs:                   typed[instance.ID](c.GetInstanceIds()),
			Action:                enum[sim.Action](c.GetAction()),
			SetTags:               c.GetSetTags(),
			RemoveTags:            c.GetRemoveTags(),
			DisableAPIStop:        c.DisableApiStop,
			DisableAPITermination: c.DisableApiTermination,
			Type:                  c.GetInstanceType(),
		}
	}
	return out
}

func faults(messages []*instancedv1.Fault) []sim.Fault {
	out := make([]sim.Fault, len(messages))
	for i, m := range messages {
		out[i] = sim.Fault{
			Kind: enum[sim.FaultKind](m.GetKind()),
			Match: sim.Match{
				Verbs:             typed[instance.Verb](m.GetMatch().GetVerbs()),
				IDs:               typed[instance.ID](m.GetMatch().GetInstanceIds()),
				Tags:              m.GetMatch().GetTags(),
				Types:             m.GetMatch().GetInstanceTypes(),
				AvailabilityZones: m.GetMatch().GetAvailabilityZones(),
			},
			Probability: m.GetProbability(),
			Remaining:   int(m.GetRemaining()),
			Delay:       m.GetDelay().AsDuration(),
			Partial:     m.GetPartial(),
		}
		if r := m.GetStateReason(); r != nil {
			out[i].StateReason = &instance.StateReason{Code: r.GetCode(), Message: r.GetMessage()}
		}
	}
	return out
}

func faultMessages(faults []sim.Fault) []*instancedv1.Fault {
	out := make([]*instancedv1.Fault, len(faults))
	for i, f := range faults {
		out[i] = &instancedv1.Fault{
			Kind: instancedv1.FaultKind(f.Kind),
			Match: &instancedv1.FaultMatch{
				Verbs:             typed[string](f.Match.Verbs),
				InstanceIds:       typed[string](f.Match.IDs),
				Tags:              f.Match.Tags,
				InstanceTypes:     f.Match.Types,
				AvailabilityZones: f.Match.AvailabilityZones,
			},
			Probability: f.Probability,
			Remaining:   int32(f.Remaining),
			Partial:     f.Partial,
		}
		if f.Delay > 0 {
			out[i].Delay = durationpb.New(f.Delay)
		}
		if f.StateReason != nil {
			out[i].StateReason = &instancedv1.StateReason{Code: f.StateReason.Code, Message: f.StateReason.Message}
		}
	}
	return out
}

// typed returns texts as texts of another type.
func typed[To, From ~string](texts []From) []To {
	if len(texts) == 0 {
		return nil
	}
	out := make([]To, len(texts))
	for i, t := range texts {
		out[i] = To(t)
	}
	return out
}
