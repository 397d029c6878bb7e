package cli

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// stateWords are the states in EC2's spelling.
func stateWords() []string {
	return []string{"pending", "running", "shutting-down", "terminated", "stopping", "stopped"}
}

// stateName returns EC2's name of a state, such as "shutting-down".
func stateName(s *instancedv1.InstanceState) string {
	return word(s.GetName().String(), "INSTANCE_STATE_NAME_")
}

// word returns the value of an enum in lower case.
func word(value, prefix string) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(value, prefix)), "_", "-")
}

// parseState accepts EC2's name of a state.
func parseState(name string) (instancedv1.InstanceStateName, error) {
	if _, err := OneOf(stateWords()...)(name); err != nil {
		return 0, err
	}
	value := "INSTANCE_STATE_NAME_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
	return instancedv1.InstanceStateName(instancedv1.InstanceStateName_value[value]), nil
}

// reasonText returns EC2's reason for the state of an instance, or "".
func reasonText(i *instancedv1.Instance) string {
	if message := i.GetStateReason().GetMessage(); message != "" {
		return message
	}
	return i.GetStateTransitionReason()
}

// changeText describes the change of an event, such as "stopped -> pending".
func changeText(e *instancedv1.Event) string {
	state := stateName(e.GetInstance().GetState())
	switch e.GetType() {
	case instancedv1.EventType_EVENT_TYPE_STATE_CHANGED:
		return stateName(e.GetPreviousState()) + " -> " + state
	case instancedv1.EventType_EVENT_TYPE_ADDED:
		return "added, " + state
	case instancedv1.EventType_EVENT_TYPE_REMOVED:
		return "removed, was " + state
	case instancedv1.EventType_EVENT_TYPE_ATTRIBUTES_CHANGED:
		if fields := e.GetChangedFields(); len(fields) > 0 {
			return "changed " + strings.Join(fields, ", ")
		}
		return "attributes, " + state
	case instancedv1.EventType_EVENT_TYPE_UNSPECIFIED:
	}
	return e.GetType().String()
}

// causeText describes the cause of a change.
func causeText(c *instancedv1.Cause) string {
	if c == nil || c.GetExternal() {
		return "outside"
	}
	return fmt.Sprintf("%s by %s", c.GetVerb(), c.GetPrincipal())
}

// sourceText describes how the service learned of a change.
func sourceText(e *instancedv1.Event) string {
	source := word(e.GetSource().String(), "EVENT_SOURCE_")
	if e.GetInferred() {
		return source + ", inferred"
	}
	return source
}

// timeText formats a time in UTC, to the millisecond.
func timeText(ts *timestamppb.Timestamp) string {
	if ts == nil {
		return "-"
	}
	return ts.AsTime().UTC().Format("2006-01-02T15:04:05.000Z")
}

// elapsedText formats a duration to the tenth of a second.
func elapsedText(d time.Duration) string { return fmt.Sprintf("%.1fs", d.Seconds()) }
