package instance

import (
	"fmt"
	"slices"
)

// State is the lifecycle state of an instance. The zero value is
// [StateUnspecified], so that a forgotten state is never mistaken for pending,
// whose EC2 code is 0.
type State uint8

// The states of EC2's InstanceStateName.
const (
	StateUnspecified State = iota
	StatePending
	StateRunning
	StateShuttingDown
	StateTerminated
	StateStopping
	StateStopped
)

var stateNames = [...]string{
	StateUnspecified:  "unspecified",
	StatePending:      "pending",
	StateRunning:      "running",
	StateShuttingDown: "shutting-down",
	StateTerminated:   "terminated",
	StateStopping:     "stopping",
	StateStopped:      "stopped",
}

// States lists every state of EC2, in the order of their codes.
func States() []State {
	return []State{StatePending, StateRunning, StateShuttingDown, StateTerminated, StateStopping, StateStopped}
}

// String returns EC2's name of the state, such as "shutting-down".
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// Code returns EC2's numeric code of the state: 0 pending, 16 running,
// 32 shutting-down, 48 terminated, 64 stopping, 80 stopped. It is -1 for
// [StateUnspecified].
func (s State) Code() int32 {
	if s < StatePending || s > StateStopped {
		return -1
	}
	return int32(s-StatePending) * 16
}

// StateFromCode returns the state of an EC2 state code. EC2 uses the high byte
// of the 16-bit code for itself and asks that it be ignored; it is masked off.
func StateFromCode(code int32) (State, error) {
	low := code & 0xff
	if low%16 != 0 || low > 80 {
		return StateUnspecified, fmt.Errorf("unknown instance state code %d", code)
	}
	return State(low/16) + StatePending, nil
}

// Transitional reports whether an instance leaves the state without a further command.
func (s State) Transitional() bool {
	switch s {
	case StatePending, StateStopping, StateShuttingDown:
		return true
	case StateUnspecified, StateRunning, StateStopped, StateTerminated:
		return false
	}
	return false
}

// transitions holds what may follow each state directly, in order of
// preference for [Path]. Source: EC2 User Guide, "Amazon EC2 instance state
// changes", and the results of the four verbs on each state.
var transitions = map[State][]State{
	StatePending:      {StateRunning, StateStopped, StateStopping, StateShuttingDown, StateTerminated},
	StateRunning:      {StateStopping, StateShuttingDown},
	StateStopping:     {StateStopped, StateShuttingDown},
	StateStopped:      {StatePending, StateShuttingDown, StateTerminated},
	StateShuttingDown: {StateTerminated},
	StateTerminated:   nil,
}

// CanFollow reports whether an instance may go from one state to another
// without passing through a third. No state follows itself.
func CanFollow(from, to State) bool {
	return slices.Contains(transitions[from], to)
}

// Path returns the shortest legal sequence of states from one state to another, without
// from and ending with to. It is empty if from and to are equal, and ok is false if to
// cannot be reached; from terminated, no state can.
func Path(from, to State) (path []State, ok bool) {
	if from == to {
		return nil, true
	}
	cameFrom := map[State]State{from: StateUnspecified}
	for queue := []State{from}; len(queue) > 0; queue = queue[1:] {
		for _, next := range transitions[queue[0]] {
			if _, seen := cameFrom[next]; seen {
				continue
			}
			cameFrom[next] = queue[0]
			if next != to {
				queue = append(queue, next)
				continue
			}
			for s := to; s != from; s = cameFrom[s] {
				path = append([]State{s}, path...)
			}
			return path, true
		}
	}
	return nil, false
}

// Reachable reports whether an instance in state from is in state to, or can still reach
// it.
func Reachable(from, to State) bool {
	_, ok := Path(from, to)
	return ok
}

// Completes reports whether a change from one state to another completes an earlier change:
// a start that reaches running or falls back, a stop that reaches stopped, a termination
// that reaches terminated. Such a change inherits the cause of the one that it completes.
func Completes(from, to State) bool {
	switch from {
	case StatePending:
		return to == StateRunning || to == StateStopped || to == StateTerminated
	case StateStopping:
		return to == StateStopped
	case StateShuttingDown:
		return to == StateTerminated
	case StateUnspecified, StateRunning, StateStopped, StateTerminated:
		return false
	}
	return false
}
