package sim

import (
	"errors"
	"fmt"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// maxTerminateIDs is documented. Source: EC2 API Reference, TerminateInstances.
const maxTerminateIDs = 1000

// The texts below are EC2's own as far as they are known, from recorded or reported
// responses; the others are marked "inferred".

// refused is a request that the state or an attribute of an instance does not allow.
func refused(code string, id instance.ID, format string, args ...any) *instance.Error {
	return &instance.Error{
		Kind:        instance.KindPrecondition,
		Code:        code,
		Message:     fmt.Sprintf(format, args...),
		InstanceIDs: []instance.ID{id},
	}
}

func errNotStartable(id instance.ID) *instance.Error {
	return refused(instance.CodeIncorrectInstanceState, id,
		"The instance '%s' is not in a state from which it can be started.", id)
}

func errNeverRan(id instance.ID) *instance.Error {
	return refused(instance.CodeIncorrectInstanceState, id,
		"Instance '%s' cannot be stopped as it has never reached the 'running' state.", id)
}

func errNotStoppable(id instance.ID) *instance.Error {
	return refused(instance.CodeIncorrectInstanceState, id,
		"This instance '%s' is not in a state from which it can be stopped.", id)
}

func errNotRebootable(code string, inst *instance.Instance) *instance.Error {
	return refused(code, inst.ID,
		"Cannot reboot instance %s that is currently in %s state.", inst.ID, inst.State)
}

func errNotStopped(id instance.ID) *instance.Error {
	return refused(instance.CodeIncorrectInstanceState, id,
		"The instance '%s' is not in the 'stopped' state.", id)
}

func errProtected(id instance.ID, action, attribute string) *instance.Error {
	return refused(instance.CodeOperationNotPermitted, id,
		"The instance '%s' may not be %s. Modify its '%s' instance attribute and try again.", id, action, attribute)
}

// errInstanceStore is recorded for "stopped"; inferred for "started".
func errInstanceStore(id instance.ID, action string) *instance.Error {
	return refused(instance.CodeUnsupportedOperation, id,
		"The instance '%s' does not have an 'ebs' root device type and cannot be %s.", id, action)
}

func errNoHibernation(id instance.ID) *instance.Error {
	return refused(instance.CodeUnsupportedHibernation, id,
		"The instance can't be hibernated because it was not configured at launch for hibernation: %s", id)
}

// errUnlimitedOnHost is inferred from the documentation of StartInstances.
func errUnlimitedOnHost(code string, id instance.ID) *instance.Error {
	return refused(code, id,
		"The instance '%s' cannot be started: the unlimited CPU credit option is not supported on Dedicated Hosts. "+
			"Change its CPU credit option to standard, or its tenancy to default or dedicated.", id)
}

func errSpotRequest(id instance.ID) *instance.Error {
	return refused("IncorrectSpotRequestState", id,
		"You can't start the Spot Instance '%s' because the associated Spot Instance request is not in an appropriate state to support start.", id)
}

// errSpotOneTime is recorded.
func errSpotOneTime(id instance.ID) *instance.Error {
	return refused(instance.CodeUnsupportedOperation, id,
		"You can't stop the Spot Instance '%s' because it is associated with a one-time Spot Instance request. "+
			"You can only stop Spot Instances associated with persistent Spot Instance requests.", id)
}

// errSpotBehavior is recorded, of one-time requests that were to stop.
func errSpotBehavior(spotType, behavior string) *instance.Error {
	return errInvalid("InvalidParameterCombination", fmt.Sprintf(
		"The request with type '%s' is not supported when instanceInterruptionBehavior is set to '%s'.", spotType, behavior))
}

// errSpotTerminationProtection is recorded for "Modifying"; inferred for a launch.
func errSpotTerminationProtection(doing string) *instance.Error {
	return &instance.Error{
		Kind:    instance.KindPrecondition,
		Code:    instance.CodeUnsupportedOperation,
		Message: doing + " 'disableApiTermination' is not supported for spot instances.",
	}
}

func errInvalid(code, message string) *instance.Error {
	return &instance.Error{Kind: instance.KindInvalid, Code: code, Message: message}
}

func errNoIDs(missingParameter bool) *instance.Error {
	if missingParameter {
		return errInvalid(instance.CodeMissingParameter, "The request must contain the parameter InstanceId")
	}
	return errInvalid("InvalidParameterCombination", "No instances specified")
}

// malformed returns the error for a malformed id.
func malformed(id instance.ID) *instance.Error {
	_, err := instance.ParseID(string(id))
	if refusal, ok := errors.AsType[*instance.Error](err); ok {
		return refusal
	}
	return nil
}

func errTooManyIDs() *instance.Error {
	return errInvalid(instance.CodeResourceCountExceeded,
		"You have exceeded the number of resources allowed in a single call of this type")
}

func errDryRun() *instance.Error {
	return &instance.Error{
		Kind:    instance.KindDryRun,
		Code:    instance.CodeDryRun,
		Message: "Request would have succeeded, but DryRun flag is set.",
	}
}

func (b *Backend) errUnauthorized(c *call, id instance.ID) *instance.Error {
	user := c.cmd.Principal
	if user == "" {
		user = "anonymous"
	}
	encoded := make([]byte, 0, 32)
	for n := range uint64(4) {
		encoded = fmt.Appendf(encoded, "%016x", draw(b.config.Seed, drawMessage, id, n))
	}
	action := "ec2:" + string(c.cmd.Verb)
	return &instance.Error{
		Kind: instance.KindPermission,
		Code: instance.CodeUnauthorized,
		Message: fmt.Sprintf("You are not authorized to perform this operation. "+
			"User: arn:aws:iam::%[1]s:user/%[2]s is not authorized to perform: %[3]s "+
			"on resource: arn:aws:ec2:%[4]s:%[1]s:instance/%[5]s "+
			"because no identity-based policy allows the %[3]s action. "+
			"Encoded authorization failure message: %[6]s",
			b.config.AccountID, user, action, b.config.Region, id, encoded),
		InstanceIDs: []instance.ID{id},
	}
}

func errExhausted(code, message string) *instance.Error {
	return &instance.Error{Kind: instance.KindExhausted, Code: code, Message: message}
}

func errCapacity(inst *instance.Instance) *instance.Error {
	text := fmt.Sprintf("We currently do not have sufficient %s capacity in the Availability Zone you requested (%s). "+
		"Our system will be working on provisioning additional capacity.", inst.Type, inst.AvailabilityZone)
	if inst.Lifecycle == lifecycleSpot {
		text = fmt.Sprintf("You can't start the Spot Instance '%s' because there is no available Spot capacity.", inst.ID)
	}
	err := errExhausted(instance.CodeInsufficientCapacity, text)
	err.InstanceIDs = []instance.ID{inst.ID}
	return err
}

// The quotas in the messages of limit faults.
const (
	instanceQuota = 20
	vcpuQuota     = 32
)

func errInstanceLimit(requested, limit int) *instance.Error {
	return errExhausted(instance.CodeInstanceLimitExceeded, fmt.Sprintf(
		"You have requested more instances (%d) than your current instance limit of %d allows for the specified instance type. "+
			"Please visit http://aws.amazon.com/contact-us/ec2-request to request an adjustment to this limit.", requested, limit))
}

func errVcpuLimit() *instance.Error {
	return errExhausted("VcpuLimitExceeded", fmt.Sprintf(
		"You have requested more vCPU capacity than your current vCPU limit of %d allows for the instance bucket that the specified instance type belongs to. "+
			"Please visit http://aws.amazon.com/contact-us/ec2-request to request an adjustment to this limit.", vcpuQuota))
}

// errThrottled counts a throttled request, and returns its error.
func (b *Backend) errThrottled(action instance.Verb, retryAfter time.Duration) *instance.Error {
	b.metrics.countThrottled(action)
	err := errExhausted(instance.CodeRequestLimitExceeded, fmt.Sprintf(
		"Request limit exceeded. Account %s has been throttled on ec2:%s because it exceeded its request rate limit.",
		b.config.AccountID, action))
	err.RetryAfter = retryAfter
	return err
}

// retryUnavailable is when to retry a call that EC2 could not serve.
const retryUnavailable = time.Second

func errUnavailable() *instance.Error {
	return &instance.Error{
		Kind:       instance.KindUnavailable,
		Code:       instance.CodeServiceUnavailable,
		Message:    "The server is overloaded and can't handle the request.",
		RetryAfter: retryUnavailable,
	}
}

// errInternal leaves the outcome unknown, as EC2's status 500 does.
func errInternal() *instance.Error {
	return &instance.Error{
		Kind:           instance.KindUnavailable,
		Code:           instance.CodeInternalError,
		Message:        "An internal error has occurred",
		RetryAfter:     retryUnavailable,
		OutcomeUnknown: true,
	}
}

func errAnswerLost() *instance.Error {
	return &instance.Error{
		Kind:           instance.KindUnavailable,
		Reason:         instance.ReasonAnswerLost,
		Message:        "The connection to EC2 was lost before it answered.",
		OutcomeUnknown: true,
	}
}

// errInvalidValue has EC2's text for an invalid value.
func errInvalidValue(format string, value string) *instance.Error {
	return errInvalid("InvalidParameterValue", fmt.Sprintf(format, value))
}

func errInvalidType(name string) *instance.Error {
	return errInvalidValue("Invalid value '%s' for InstanceType.", name)
}
