package instance

import "time"

// ChangeType says what kind of change an event reports.
type ChangeType uint8

// The types of change.
const (
	ChangeUnspecified ChangeType = iota
	// ChangeAdded is the first record of an instance.
	ChangeAdded
	// ChangeState is a change of state, whatever else changed with it.
	ChangeState
	// ChangeAttributes is a change of anything but the state.
	ChangeAttributes
	// ChangeRemoved is the last record of an instance that EC2 no longer knows.
	ChangeRemoved
)

// String returns the type in words, such as "state_changed".
func (t ChangeType) String() string {
	switch t {
	case ChangeAdded:
		return "added"
	case ChangeState:
		return "state_changed"
	case ChangeAttributes:
		return "attributes_changed"
	case ChangeRemoved:
		return "removed"
	case ChangeUnspecified:
	}
	return "unspecified"
}

// Cause is who or what caused a change. The zero value is an external cause: someone or
// something outside this service.
type Cause struct {
	Principal   string
	Verb        Verb
	RequestID   string
	ClientToken string
}

// External reports whether the change was caused outside this service.
func (c Cause) External() bool { return c == Cause{} }

// Source is how the service learned of a change.
type Source uint8

// The sources.
const (
	SourceUnspecified Source = iota
	// SourceAnswer is the answer of the backend to a command.
	SourceAnswer
	// SourceEventBridge is a notice that EC2 sent through EventBridge.
	SourceEventBridge
	// SourceReconcile is a comparison with what the backend describes.
	SourceReconcile
	// SourceSimulator is a notice of the simulator.
	SourceSimulator
)

// String returns the source in words, such as "event_bridge".
func (s Source) String() string {
	switch s {
	case SourceAnswer:
		return "answer"
	case SourceEventBridge:
		return "event_bridge"
	case SourceReconcile:
		return "reconcile"
	case SourceSimulator:
		return "simulator"
	case SourceUnspecified:
	}
	return "unspecified"
}

// Change is one change of one instance: what the journal records and what a
// subscriber is told. Before is nil for [ChangeAdded]; After is nil for
// [ChangeRemoved].
type Change struct {
	Type   ChangeType
	Before *Instance
	After  *Instance
	Cause  Cause
	Source Source
	// OccurredAt is when the change happened, as precisely as is known: EC2 reports whole
	// seconds, and an inferred change has the time of the change from which it was
	// inferred.
	OccurredAt time.Time
	// ObservedAt is when this service learned of it.
	ObservedAt time.Time
	// Inferred is true for a state that was not observed but that the instance must
	// have passed through.
	Inferred bool
}

// ID returns the id of the instance that changed.
func (c *Change) ID() ID {
	if c.After != nil {
		return c.After.ID
	}
	return c.Before.ID
}

// Subject returns the instance after the change or, if it was removed, as last known.
func (c *Change) Subject() *Instance {
	if c.After != nil {
		return c.After
	}
	return c.Before
}
