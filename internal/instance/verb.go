package instance

import "slices"

// Verb is a command on instances.
type Verb string

// The four commands.
const (
	VerbStart     Verb = "StartInstances"
	VerbStop      Verb = "StopInstances"
	VerbReboot    Verb = "RebootInstances"
	VerbTerminate Verb = "TerminateInstances"
)

// goals are the states in which a verb has nothing to do. It leads directly to the first of
// them.
var goals = map[Verb][]State{
	VerbStart:     {StatePending, StateRunning},
	VerbStop:      {StateStopping, StateStopped},
	VerbTerminate: {StateShuttingDown, StateTerminated},
}

// rejecting are the states in which EC2 rejects a verb with [CodeIncorrectInstanceState].
var rejecting = map[Verb][]State{
	VerbStart:  {StateStopping, StateShuttingDown, StateTerminated},
	VerbStop:   {StatePending, StateShuttingDown, StateTerminated},
	VerbReboot: {StatePending, StateStopping, StateStopped, StateShuttingDown},
}

// Target returns the state that a verb leads to directly; [StateUnspecified] for one that
// changes no state.
func (v Verb) Target() State {
	if g := goals[v]; len(g) > 0 {
		return g[0]
	}
	return StateUnspecified
}

// DoneIn reports whether the verb has nothing to do in a state.
func (v Verb) DoneIn(s State) bool { return slices.Contains(goals[v], s) }

// RejectedIn reports whether EC2 rejects the verb for an instance in a state.
func (v Verb) RejectedIn(s State) bool { return slices.Contains(rejecting[v], s) }
