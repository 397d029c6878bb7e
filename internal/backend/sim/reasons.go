package sim

import (
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// The reasons that the simulator gives. Codes are from the EC2 API Reference, StateReason;
// texts are from recorded responses, except for Server.ScheduledStop and the Spot
// interruptions, which are inferred.
var (
	reasonUserStop      = reason("Client.UserInitiatedShutdown", "User initiated shutdown")
	reasonUserHibernate = reason("Client.UserInitiatedHibernate", "User initiated hibernate")
	reasonOSShutdown    = reason("Client.InstanceInitiatedShutdown", "Instance initiated shutdown")
	reasonSpotStop      = reason("Server.SpotInstanceShutdown", "Spot instance shutdown")
	reasonSpotTerminate = reason("Server.SpotInstanceTermination", "Spot instance termination")
	reasonScheduledStop = reason("Server.ScheduledStop", "Stopped due to a scheduled retirement")
	reasonLaunchError   = reason("Client.InternalError", "Client error on launch")
	reasonNoCapacity    = reason("Server.InsufficientInstanceCapacity", "Insufficient capacity to satisfy the request")
)

func reason(code, text string) *instance.StateReason {
	return &instance.StateReason{Code: code, Message: code + ": " + text}
}

// userInitiated is the state transition reason of a requested change.
func userInitiated(at time.Time) string { return initiated("User", at) }

// serviceInitiated is the state transition reason of a change by EC2.
func serviceInitiated(at time.Time) string { return initiated("Service", at) }

// fallBackTransition is the state transition reason of a start that fell back. That of a
// launch error is recorded; inferred for the others.
func fallBackTransition(r *instance.StateReason) string {
	if r.Code == reasonLaunchError.Code {
		return "Server.InternalError"
	}
	return r.Code
}

// userStopped reports whether a user stopped the instance.
func userStopped(inst *instance.Instance) bool {
	return inst.StateReason != nil && (inst.StateReason.Code == reasonUserStop.Code || inst.StateReason.Code == reasonUserHibernate.Code)
}

func initiated(by string, at time.Time) string {
	return by + " initiated (" + at.UTC().Format("2006-01-02 15:04:05") + " GMT)"
}
