package ec2

import "github.com/instanced/instanced/internal/instance"

// reaction is what a round does about an error of EC2.
type reaction uint8

const (
	// rejected: some of the instances may not; the others may go on without them.
	rejected reaction = iota
	// throttled: EC2 throttles; the same call is made again once the buckets allow it.
	throttled
	// noCapacity: there is no capacity, or no quota, for all of the instances. EC2 may have
	// started some.
	noCapacity
	// partial: like refuse, but the call may have been carried out on some instances.
	partial
	// unknownOutcome: whether the call was carried out is not known.
	unknownOutcome
	// tooMany: there are too many instances in the call.
	tooMany
	// failAll: it is about the service or the account, whichever instances are meant.
	failAll
)

// errorClass is what an error code of EC2 means.
type errorClass struct {
	kind     instance.Kind
	reaction reaction
	// credentials is true when EC2 refuses the service itself.
	credentials bool
}

var (
	classPrecondition = errorClass{kind: instance.KindPrecondition}
	classInvalid      = errorClass{kind: instance.KindInvalid}
	// classMalformed is a call that no choice of instances would mend.
	classMalformed   = errorClass{kind: instance.KindInvalid, reaction: failAll}
	classCapacity    = errorClass{kind: instance.KindExhausted, reaction: noCapacity}
	classThrottled   = errorClass{kind: instance.KindExhausted, reaction: throttled}
	classUnknown     = errorClass{kind: instance.KindUnavailable, reaction: unknownOutcome}
	classCredentials = errorClass{kind: instance.KindInternal, reaction: failAll, credentials: true}
)

// codes is the one table of EC2's error codes. Source: EC2 Developer Guide, "Error codes
// for the Amazon EC2 API"; the throttles are those that AWS's own SDKs know.
var codes = map[string]errorClass{
	instance.CodeNotFound:    {kind: instance.KindNotFound},
	instance.CodeMalformedID: classInvalid,

	instance.CodeIncorrectInstanceState: classPrecondition,
	"IncorrectState":                    classPrecondition,
	"IncorrectSpotRequestState":         classPrecondition,
	instance.CodeUnsupportedOperation:   classPrecondition,
	"Unsupported":                       classPrecondition,
	instance.CodeUnsupportedHibernation: classPrecondition,
	instance.CodeOperationNotPermitted:  classPrecondition,
	"CustomerKeyHasBeenRevoked":         classPrecondition,
	"IdempotentInstanceTerminated":      classPrecondition,
	"IncompatibleHostRequirements":      classPrecondition,
	"OptInRequired":                     {kind: instance.KindPrecondition, reaction: failAll},
	"PendingVerification":               {kind: instance.KindPrecondition, reaction: failAll},

	instance.CodeUnauthorized: {kind: instance.KindPermission},
	"Blocked":                 {kind: instance.KindPermission, reaction: failAll},
	instance.CodeDryRun:       {kind: instance.KindDryRun, reaction: failAll},

	instance.CodeInsufficientCapacity:       classCapacity,
	"InsufficientCapacity":                  classCapacity,
	"InsufficientAddressCapacity":           classCapacity,
	"InsufficientVolumeCapacity":            classCapacity,
	"InsufficientHostCapacity":              classCapacity,
	"InsufficientCapacityOnHost":            classCapacity,
	"InsufficientReservedInstanceCapacity":  classCapacity,
	"InsufficientReservedInstancesCapacity": classCapacity,
	"InsufficientFreeAddressesInSubnet":     classCapacity,
	"ReservationCapacityExceeded":           classCapacity,
	instance.CodeInstanceLimitExceeded:      classCapacity,
	codeVcpuLimit:                           classCapacity,
	"MaxSpotInstanceCountExceeded":          classCapacity,

	instance.CodeRequestLimitExceeded:        classThrottled,
	"EC2ThrottledException":                  classThrottled,
	"BandwidthLimitExceeded":                 classThrottled,
	"Throttling":                             classThrottled,
	"ThrottlingException":                    classThrottled,
	"ThrottledException":                     classThrottled,
	"RequestThrottled":                       classThrottled,
	"RequestThrottledException":              classThrottled,
	"TooManyRequestsException":               classThrottled,
	"ProvisionedThroughputExceededException": classThrottled,
	"LimitExceededException":                 classThrottled,
	"SlowDown":                               classThrottled,
	"PriorRequestNotComplete":                classThrottled,

	instance.CodeResourceCountExceeded: {kind: instance.KindInvalid, reaction: tooMany},
	codeInvalidValue:                   classInvalid,
	"InvalidParameterCombination":      classInvalid,
	"InvalidParameter":                 classInvalid,
	"InvalidRequest":                   classInvalid,
	"MissingParameter":                 classMalformed,
	"UnknownParameter":                 classMalformed,
	"InvalidAction":                    classMalformed,
	"FilterLimitExceeded":              classMalformed,
	"InvalidFilter":                    classMalformed,
	"InvalidPaginationToken":           classMalformed,

	"ServerInternal":                classUnknown,
	instance.CodeInternalError:      classUnknown,
	"InternalFailure":               classUnknown,
	instance.CodeServiceUnavailable: classUnknown,
	"ServiceUnavailable":            classUnknown,
	"RequestTimeout":                classUnknown,
	"RequestTimeoutException":       classUnknown,

	"AuthFailure":                 classCredentials,
	"InvalidClientTokenId":        classCredentials,
	"SignatureDoesNotMatch":       classCredentials,
	"MissingAuthenticationToken":  classCredentials,
	"RequestExpired":              classCredentials,
	"IncompleteSignature":         classCredentials,
	"UnrecognizedClientException": classCredentials,
	"ExpiredToken":                classCredentials,
	"ExpiredTokenException":       classCredentials,
	"InvalidAccessKeyId":          classCredentials,
}

// Codes that are looked at for their text too.
const (
	codeInvalidValue = "InvalidParameterValue"
	codeVcpuLimit    = "VcpuLimitExceeded"
)
