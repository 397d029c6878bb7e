package server

import (
	"errors"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

var stateNames = map[instance.State]instancedv1.InstanceStateName{
	instance.StatePending:      instancedv1.InstanceStateName_INSTANCE_STATE_NAME_PENDING,
	instance.StateRunning:      instancedv1.InstanceStateName_INSTANCE_STATE_NAME_RUNNING,
	instance.StateShuttingDown: instancedv1.InstanceStateName_INSTANCE_STATE_NAME_SHUTTING_DOWN,
	instance.StateTerminated:   instancedv1.InstanceStateName_INSTANCE_STATE_NAME_TERMINATED,
	instance.StateStopping:     instancedv1.InstanceStateName_INSTANCE_STATE_NAME_STOPPING,
	instance.StateStopped:      instancedv1.InstanceStateName_INSTANCE_STATE_NAME_STOPPED,
}

// stateMessage returns a state with its code and name; nil for no state.
func stateMessage(s instance.State) *instancedv1.InstanceState {
	name, ok := stateNames[s]
	if !ok {
		return nil
	}
	return &instancedv1.InstanceState{Code: new(s.Code()), Name: name}
}

func stateChangeMessages(changes []instance.StateChange) []*instancedv1.InstanceStateChange {
	out := make([]*instancedv1.InstanceStateChange, len(changes))
	for i, c := range changes {
		out[i] = &instancedv1.InstanceStateChange{
			CurrentState:  stateMessage(c.Current),
			InstanceId:    string(c.ID),
			PreviousState: stateMessage(c.Previous),
		}
	}
	return out
}

func failureMessages(failures []instance.Failure) []*instancedv1.InstanceFailure {
	out := make([]*instancedv1.InstanceFailure, len(failures))
	for i, f := range failures {
		out[i] = &instancedv1.InstanceFailure{
			InstanceId:   string(f.ID),
			StatusCode:   int32(code(f.Err.Kind)),
			Ec2ErrorCode: f.Err.Code,
			Message:      clip(f.Err.Message, maxMessageBytes),
		}
		if wait := retryAfter(f.Err); wait > 0 {
			out[i].RetryDelay = durationpb.New(wait)
		}
	}
	return out
}

// impairmentMessage says why changes cannot be recorded; nil if they can.
func impairmentMessage(err error) *instancedv1.Impairment {
	e, ok := errors.AsType[*instance.Error](err)
	if !ok {
		return nil
	}
	return &instancedv1.Impairment{Reason: e.Reason, Message: clip(e.Message, maxMessageBytes)}
}

// instanceMessage returns an instance as it was recorded.
func instanceMessage(i *instance.Instance) *instancedv1.Instance {
	return &instancedv1.Instance{
		InstanceId:            string(i.ID),
		AccountId:             i.AccountID,
		Region:                i.Region,
		AvailabilityZone:      i.AvailabilityZone,
		InstanceType:          i.Type,
		State:                 stateMessage(i.State),
		StateReason:           reasonMessage(i.StateReason),
		StateTransitionReason: i.StateTransitionReason,
		LaunchTime:            timestamp(i.LaunchTime),
		ImageId:               i.ImageID,
		AmiLaunchIndex:        i.AMILaunchIndex,
		PrivateIpAddress:      i.PrivateIPAddress,
		PublicIpAddress:       i.PublicIPAddress,
		PrivateDnsName:        i.PrivateDNSName,
		PublicDnsName:         i.PublicDNSName,
		Tenancy:               i.Tenancy,
		RootDeviceType:        i.RootDeviceType,
		InstanceLifecycle:     i.Lifecycle,
		Tags:                  i.Tags,
		Simulator:             simulatorMessage(i.Simulator),
	}
}

// instanceNow returns an instance with its billed time up to now.
func instanceNow(i *instance.Instance, now time.Time) *instancedv1.Instance {
	if i == nil {
		return nil
	}
	m := instanceMessage(i)
	if m.Simulator != nil {
		m.Simulator.BilledSeconds = i.Simulator.Billed(now)
	}
	return m
}

func simulatorMessage(s *instance.SimulatorAttributes) *instancedv1.SimulatorAttributes {
	if s == nil {
		return nil
	}
	return &instancedv1.SimulatorAttributes{
		DisableApiStop:        s.DisableAPIStop,
		DisableApiTermination: s.DisableAPITermination,
		HibernationConfigured: s.HibernationConfigured,
		Hibernated:            s.Hibernated,
		MemoryLost:            s.MemoryLost,
		CpuCredits:            s.CPUCredits,
		BilledSeconds:         s.BilledSeconds,
		SpotInstanceType:      s.SpotInstanceType,

		InstanceInterruptionBehavior: s.InterruptionBehavior,
	}
}

func reasonMessage(r *instance.StateReason) *instancedv1.StateReason {
	if r == nil {
		return nil
	}
	return &instancedv1.StateReason{Code: r.Code, Message: r.Message}
}

// changeMessage returns a recorded change, without its match.
func changeMessage(revision uint64, index uint32, c *instance.Change) *instancedv1.Event {
	m := &instancedv1.Event{
		Type:       changeTypes[c.Type],
		Revision:   revision,
		Index:      index,
		Instance:   instanceMessage(c.Subject()),
		Cause:      causeMessage(c.Cause),
		Source:     sources[c.Source],
		OccurredAt: timestamp(c.OccurredAt),
		ObservedAt: timestamp(c.ObservedAt),
		Inferred:   c.Inferred,
	}
	if c.Before != nil {
		m.PreviousState = stateMessage(c.Before.State)
	}
	if c.Type == instance.ChangeAttributes {
		m.ChangedFields = changedFields(instanceMessage(c.Before), m.Instance)
	}
	return m
}

var changeTypes = map[instance.ChangeType]instancedv1.EventType{
	instance.ChangeAdded:      instancedv1.EventType_EVENT_TYPE_ADDED,
	instance.ChangeState:      instancedv1.EventType_EVENT_TYPE_STATE_CHANGED,
	instance.ChangeAttributes: instancedv1.EventType_EVENT_TYPE_ATTRIBUTES_CHANGED,
	instance.ChangeRemoved:    instancedv1.EventType_EVENT_TYPE_REMOVED,
}

var sources = map[instance.Source]instancedv1.EventSource{
	instance.SourceAnswer:      instancedv1.EventSource_EVENT_SOURCE_ANSWER,
	instance.SourceEventBridge: instancedv1.EventSource_EVENT_SOURCE_EVENT_BRIDGE,
	instance.SourceReconcile:   instancedv1.EventSource_EVENT_SOURCE_RECONCILE,
	instance.SourceSimulator:   instancedv1.EventSource_EVENT_SOURCE_SIMULATOR,
}

func causeMessage(c instance.Cause) *instancedv1.Cause {
	return &instancedv1.Cause{
		Principal:   c.Principal,
		Verb:        string(c.Verb),
		RequestId:   c.RequestID,
		ClientToken: c.ClientToken,
		External:    c.External(),
	}
}

// matchMessage returns UNSPECIFIED for no match.
func matchMessage(m lifecycle.Match) instancedv1.EventMatch {
	switch m {
	case lifecycle.MatchNone:
	case lifecycle.MatchEntered:
		return instancedv1.EventMatch_EVENT_MATCH_ENTERED
	case lifecycle.MatchStayed:
		return instancedv1.EventMatch_EVENT_MATCH_STAYED
	case lifecycle.MatchLeft:
		return instancedv1.EventMatch_EVENT_MATCH_LEFT
	}
	return instancedv1.EventMatch_EVENT_MATCH_UNSPECIFIED
}

// matchOfAll returns the match of a change for a filter that selects everything, or selects
// by ids only.
func matchOfAll(t instance.ChangeType) instancedv1.EventMatch {
	switch t {
	case instance.ChangeAdded:
		return instancedv1.EventMatch_EVENT_MATCH_ENTERED
	case instance.ChangeRemoved:
		return instancedv1.EventMatch_EVENT_MATCH_LEFT
	case instance.ChangeUnspecified, instance.ChangeState, instance.ChangeAttributes:
	}
	return instancedv1.EventMatch_EVENT_MATCH_STAYED
}

func eventMessages(events []lifecycle.RecordedEvent) []*instancedv1.Event {
	out := make([]*instancedv1.Event, len(events))
	for i, e := range events {
		out[i] = changeMessage(e.Position.Seq, e.Index, e.Change)
		out[i].Match = matchOfAll(e.Change.Type)
	}
	return out
}

func waitResultMessages(results []lifecycle.WaitResult, now time.Time) []*instancedv1.WaitResult {
	out := make([]*instancedv1.WaitResult, len(results))
	for i, r := range results {
		out[i] = &instancedv1.WaitResult{
			InstanceId:   string(r.ID),
			Outcome:      waitOutcomes[r.Outcome],
			Instance:     instanceNow(r.Instance, now),
			ReachedState: stateMessage(r.ReachedState),
			StateReason:  reasonMessage(r.Reason),
		}
	}
	return out
}

var waitOutcomes = map[lifecycle.WaitOutcome]instancedv1.WaitOutcome{
	lifecycle.Unsettled:   instancedv1.WaitOutcome_WAIT_OUTCOME_UNSETTLED,
	lifecycle.Reached:     instancedv1.WaitOutcome_WAIT_OUTCOME_REACHED,
	lifecycle.Unreachable: instancedv1.WaitOutcome_WAIT_OUTCOME_UNREACHABLE,
	lifecycle.TimedOut:    instancedv1.WaitOutcome_WAIT_OUTCOME_TIMED_OUT,
}

// unusableReason returns why a snapshot replaces the requested changes.
func unusableReason(reason string) instancedv1.UnusableCursorReason {
	switch reason {
	case instance.ReasonCursorExpired:
		return instancedv1.UnusableCursorReason_UNUSABLE_CURSOR_REASON_EXPIRED
	case instance.ReasonCursorOfOtherLog:
		return instancedv1.UnusableCursorReason_UNUSABLE_CURSOR_REASON_OTHER_LOG
	case instance.ReasonCursorRolledBack:
		return instancedv1.UnusableCursorReason_UNUSABLE_CURSOR_REASON_ROLLED_BACK
	case instance.ReasonCursorAhead:
		return instancedv1.UnusableCursorReason_UNUSABLE_CURSOR_REASON_AHEAD
	}
	return instancedv1.UnusableCursorReason_UNUSABLE_CURSOR_REASON_UNSPECIFIED
}

// timestamp returns nil for the zero time.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
