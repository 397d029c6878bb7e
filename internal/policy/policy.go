// Package policy decides who may do what. The service layer asks it, for every server alike.
package policy

import "github.com/instanced/instanced/internal/instance"

// Action is something that a caller asks for.
type Action uint8

// The actions.
const (
	// Read is to describe, watch and wait for instances, and to read their history.
	Read Action = iota
	Start
	Stop
	Reboot
	Terminate
	// ChangeSimulator is to change what the simulator simulates.
	ChangeSimulator
)

// ActionOf returns the action of a verb.
func ActionOf(verb instance.Verb) Action {
	switch verb {
	case instance.VerbStart:
		return Start
	case instance.VerbStop:
		return Stop
	case instance.VerbReboot:
		return Reboot
	case instance.VerbTerminate:
		return Terminate
	}
	return Terminate // there are no others; the strictest
}

// Policy says which actions are permitted.
type Policy uint8

// The policies.
const (
	// AllowAll permits everything. It is for a service that only its own machine can reach.
	AllowAll Policy = iota
	// AllowAuthenticated permits callers who are authenticated to read, start and stop.
	AllowAuthenticated
)

// Check returns EC2's error for callers without permission, unless the action is permitted.
func (p Policy) Check(authenticated bool, action Action) error {
	if p == AllowAll || authenticated && (action == Read || action == Start || action == Stop) {
		return nil
	}
	return &instance.Error{
		Kind:    instance.KindPermission,
		Code:    instance.CodeUnauthorized,
		Message: "You are not authorized to perform this operation.",
	}
}
