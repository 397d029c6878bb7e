package ec2

import "github.com/instanced/instanced/internal/instance"

// reaction is what a round does about an error of EC2.
type reaction uint8

const (
	// refuse: some of the instances may not; the others may go on without them.
	refuse reaction = iota
	// later: EC2 throttles; the same call is made again once the buckets allow it.
	later
	// noRoom: there is no capacity, or no quota, for all of the instances. EC2 may have
	// started some.
	noRoom
	// partly: like refuse, but the call may have been carried out on some instances.
	partly
	// open: whether the call was carried out is not known.
	open
	// fewer: there are too many instances in the call.
	fewer
	// everyone: it is about the service or the account, whichever instances are meant.
	everyone
)

// code is what an error code of EC2 means.
type code struct {
	kind     instance.Kind
	reaction reaction
	// credentials is true when EC2 refuses the service itself.
	credentials bool
}

var (
	precondition = code{kind: instance.KindPrecondition}
	invalid      = code{kind: instance.KindInvalid}
	// malformed is a call that no choice of instances would mend.
	malformed = code{kind: instance.KindInvalid, reaction: everyone}
	exhausted = code{kind: instance.KindExhausted, reaction: noRoom}
	throttled = code{kind: instance.KindExhausted, reaction: later}
	unknown   = code{kind: instance.KindUnavailable, reaction: open}
	identity  = code{kind: instance.KindInternal, reaction: everyone, credentials: true}
)

// codes is the one table of EC2's error codes. Source: EC2 Developer Guide, "Error codes
// for the Amazon EC2 API"; the throttles are those that AWS's own SDKs know.
var codes = map[string]code{
	instance.CodeNotFound:    {kind: instance.KindNotFound},
	instance.CodeMalformedID: invalid,

	instance.CodeIncorrectInstanceState: precondition,
	"IncorrectState":                    precondition,
	"IncorrectSpotRequestState":         precondition,
	instance.CodeUnsupportedOperation:   precondition,
	"Unsupported":                       precondition,
	instance.CodeUnsupportedHibernation: precondition,
	instance.CodeOperationNotPermitted:  precondition,
	"CustomerKeyHasBeenRevoked":         precondition,
	"IdempotentInstanceTerminated":      precondition,
	"IncompatibleHostRequirements":      precondition,
	"OptInRequired":                     {kind: instance.KindPrecondition, reaction: everyone},
	"PendingVerification":               {kind: instance.KindPrecondition, reaction: everyone},

	instance.CodeUnauthorized: {kind: instance.KindPermission},
	"Blocked":                 {kind: instance.KindPermission, reaction: everyone},
	instance.CodeDryRun:       {kind: instance.KindDryRun, reaction: everyone},

	instance.CodeInsufficientCapacity:       exhausted,
	"InsufficientCapacity":                  exhausted,
	"InsufficientAddressCapacity":           exhausted,
	"InsufficientVolumeCapacity":            exhausted,
	"InsufficientHostCapacity":              exhausted,
	"InsufficientCapacityOnHost":            exhausted,
	"InsufficientReservedInstanceCapacity":  exhausted,
	"InsufficientReservedInstancesCapacity": exhausted,
	"InsufficientFreeAddressesInSubnet":     exhausted,
	"ReservationCapacityExceeded":           exhausted,
	instance.CodeInstanceLimitExceeded:      exhausted,
	codeVcpuLimit:                           exhausted,
	"MaxSpotInstanceCountExceeded":          exhausted,

	instance.CodeRequestLimitExceeded:        throttled,
	"EC2ThrottledException":                  throttled,
	"BandwidthLimitExceeded":                 throttled,
	"Throttling":                             throttled,
	"ThrottlingException":                    throttled,
	"ThrottledException":                     throttled,
	"RequestThrottled":                       throttled,
	"RequestThrottledException":              throttled,
	"TooManyRequestsException":               throttled,
	"ProvisionedThroughputExceededException": throttled,
	"LimitExceededException":                 throttled,
	"SlowDown":                               throttled,
	"PriorRequestNotComplete":                throttled,

	instance.CodeResourceCountExceeded: {kind: instance.KindInvalid, reaction: fewer},
	codeInvalidValue:                   invalid,
	"InvalidParameterCombination":      invalid,
	"InvalidParameter":                 invalid,
	"InvalidRequest":                   invalid,
	"MissingParameter":                 malformed,
	"UnknownParameter":                 malformed,
	"InvalidAction":                    malformed,
	"FilterLimitExceeded":              malformed,
	"InvalidFilter":                    malformed,
	"InvalidPaginationToken":           malformed,

	"ServerInternal":                unknown,
	instance.CodeInternalError:      unknown,
	"InternalFailure":               unknown,
	instance.CodeServiceUnavailable: unknown,
	"ServiceUnavailable":            unknown,
	"RequestTimeout":                unknown,
	"RequestTimeoutException":       unknown,

	"AuthFailure":                 identity,
	"InvalidClientTokenId":        identity,
	"SignatureDoesNotMatch":       identity,
	"MissingAuthenticationToken":  identity,
	"RequestExpired":              identity,
	"IncompleteSignature":         identity,
	"UnrecognizedClientException": identity,
	"ExpiredToken":                identity,
	"ExpiredTokenException":       identity,
	"InvalidAccessKeyId":          identity,
}

// Codes that are looked at for their text too.
const (
	codeInvalidValue = "InvalidParameterValue"
	codeVcpuLimit    = "VcpuLimitExceeded"
)
