package ec2

import "github.com/instanced/instanced/internal/instance"

// reaction is what a batchRun does about an error of EC2.
type reaction uint8

const (
	// rejected: EC2 rejects some of the instances; the others are retried without them.
	rejected reaction = iota
	// throttled: EC2 throttles; the call is repeated once the buckets allow it.
	throttled
	// noCapacity: there is not enough capacity or quota for all of the instances. EC2 may have
	// started some.
	noCapacity
	// partial: like rejected, but the call may have been carried out on some instances.
	partial
	// unknownOutcome: it is unknown whether the call was carried out.
	unknownOutcome
	// tooMany: the call has too many instances.
	tooMany
	// failAll: the error concerns the service or the account, not the instances.
	failAll
)

// errorClass is the meaning of an error code of EC2.
type errorClass struct {
	kind     instance.Kind
	reaction reaction
	// credentials is true when EC2 rejects this service's own credentials.
	credentials bool
}

var (
	classPrecondition = errorClass{kind: instance.KindPrecondition}
	classInvalid      = errorClass{kind: instance.KindInvalid}
	// classMalformed is a call that is wrong whichever instances it names.
	classMalformed   = errorClass{kind: instance.KindInvalid, reaction: failAll}
	classCapacity    = errorClass{kind: instance.KindExhausted, reaction: noCapacity}
	classThrottled   = errorClass{kind: instance.KindExhausted, reaction: throttled}
	classUnknown     = errorClass{kind: instance.KindUnavailable, reaction: unknownOutcome}
	classCredentials = errorClass{kind: instance.KindInternal, reaction: failAll, credentials: true}
)

// codes is the only table of EC2's error codes. Source: EC2 Developer Guide, "Error codes
// for the Amazon EC2 API"; the throttles are the ones that AWS's SDKs know.
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

// Codes whose messages matter too.
const (
	codeInvalidValue = "InvalidParameterValue"
	codeVcpuLimit    = "VcpuLimitExceeded"
)
