package ec2query

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// Codes of EC2 that only this package uses; the instance package has the others.
const (
	codeInvalidValue       = "InvalidParameterValue"
	codeInvalidCombination = "InvalidParameterCombination"
	codeInvalidAction      = "InvalidAction"
	codeInvalidPage        = "InvalidPaginationToken"
	codeAuthFailure        = "AuthFailure"
	codeMismatch           = "IdempotentParameterMismatch"
	codeAccessDenied       = "AccessDenied"
	codeOK                 = "OK" // in logs and metrics: no error
)

// statuses maps codes to their HTTP statuses; all others have 400 or, if a retry may
// succeed, 503.
var statuses = map[string]int{
	codeAuthFailure:                        http.StatusUnauthorized,
	"OptInRequired":                        http.StatusUnauthorized,
	instance.CodeUnauthorized:              http.StatusForbidden,
	"SignatureDoesNotMatch":                http.StatusForbidden,
	"MissingAuthenticationToken":           http.StatusForbidden,
	"InvalidClientTokenId":                 http.StatusForbidden,
	codeAccessDenied:                       http.StatusForbidden,
	instance.CodeDryRun:                    http.StatusPreconditionFailed,
	"RequestEntityTooLarge":                http.StatusRequestEntityTooLarge,
	"MethodNotAllowed":                     http.StatusMethodNotAllowed,
	instance.CodeInsufficientCapacity:      http.StatusInternalServerError,
	"InsufficientCapacity":                 http.StatusInternalServerError,
	"InsufficientAddressCapacity":          http.StatusInternalServerError,
	"InsufficientVolumeCapacity":           http.StatusInternalServerError,
	"InsufficientHostCapacity":             http.StatusInternalServerError,
	"InsufficientReservedInstanceCapacity": http.StatusInternalServerError,
	instance.CodeInternalError:             http.StatusInternalServerError,
	"InternalFailure":                      http.StatusInternalServerError,
	"ServerInternal":                       http.StatusInternalServerError,
	instance.CodeRequestLimitExceeded:      http.StatusServiceUnavailable,
	"EC2ThrottledException":                http.StatusServiceUnavailable,
	"BandwidthLimitExceeded":               http.StatusServiceUnavailable,
	instance.CodeServiceUnavailable:        http.StatusServiceUnavailable,
	"ServiceUnavailable":                   http.StatusServiceUnavailable,
}

// refusal is an error as the caller sees it.
type refusal struct {
	status        int
	code, message string
	// reason is the reason of this service, for the log; often empty.
	reason string
	// retryAfter is when a retry may succeed; zero if that is unknown.
	retryAfter time.Duration
}

// refusalOf maps an error of a handler. Unexpected errors are redacted, and all that EC2
// reports about the credentials of this service.
func refusalOf(err error, requestID string) refusal {
	e, ok := errors.AsType[*instance.Error](err)
	switch {
	case ok && (e.Kind != instance.KindInternal || e.Reason != "" && e.Code == ""):
		code := codeOf(e)
		return refusal{status: statusOf(e, code), code: code, message: messageOf(e), reason: e.Reason, retryAfter: e.RetryAfter}
	case ok:
	case errors.Is(err, context.Canceled):
		return unavailable("The caller cancelled the call; whether anything was changed is unknown.", instance.ReasonCanceled)
	case errors.Is(err, context.DeadlineExceeded):
		return unavailable("The time of the call was over; whether anything was changed is unknown.", instance.ReasonDeadlineExceeded)
	}
	return refusal{
		status:  http.StatusInternalServerError,
		code:    instance.CodeInternalError,
		message: "An internal error has occurred. The log of the server has the cause under request id " + requestID,
	}
}

func unavailable(message, reason string) refusal {
	return refusal{status: http.StatusServiceUnavailable, code: instance.CodeServiceUnavailable, message: message, reason: reason}
}

// statusOf returns the HTTP status of an error. A code in no table, because EC2 introduced it
// after this version, gets the status that makes an SDK do what it would do with EC2: retry
// failures of EC2 and throttling.
func statusOf(e *instance.Error, code string) int {
	status, ok := statuses[code]
	switch {
	case e.Reason == instance.ReasonNotOwner && e.Metadata["owner"] != "":
		// A retry at this process, as SDKs do after 5xx, would fail as well.
		return http.StatusMisdirectedRequest
	case ok:
		return status
	case e.Kind == instance.KindUnavailable, e.Kind == instance.KindExhausted && e.RetryAfter > 0:
		return http.StatusServiceUnavailable
	}
	return http.StatusBadRequest
}

// codeOf returns EC2's code for an error. Errors of this service get the code that makes an
// SDK retry what may succeed later, and nothing else.
func codeOf(e *instance.Error) string {
	if e.Code != "" {
		return e.Code
	}
	switch e.Kind {
	case instance.KindInvalid:
		if len(e.Violations) > 0 && e.Violations[0].Reason != "" {
			return e.Violations[0].Reason
		}
		return codeInvalidValue
	case instance.KindNotFound:
		return instance.CodeNotFound
	case instance.KindPrecondition:
		return "IncorrectState"
	case instance.KindDryRun:
		return instance.CodeDryRun
	case instance.KindPermission:
		return instance.CodeUnauthorized
	case instance.KindUnauthenticated:
		return codeAuthFailure
	case instance.KindExhausted:
		if e.Reason == instance.ReasonJournalFull {
			return instance.CodeServiceUnavailable
		}
		return instance.CodeRequestLimitExceeded
	case instance.KindConflict:
		return codeMismatch
	case instance.KindOutOfRange:
		return codeInvalidPage
	case instance.KindUnavailable:
		return instance.CodeServiceUnavailable
	case instance.KindInternal:
	}
	return instance.CodeInternalError
}

// parameters are EC2's names of request fields.
var parameters = map[string]string{
	"additional_info":    "AdditionalInfo",
	"availability_zone":  "Placement.AvailabilityZone",
	"count":              "MaxCount",
	"cpu_credits":        "CreditSpecification.CpuCredits",
	"instance_lifecycle": "InstanceMarketOptions.MarketType",
	"instance_type":      "InstanceType",
	"set_tags":           "Tag",
	"tags":               "TagSpecification.Tag",
	"tenancy":            "Placement.Tenancy",
}

// element is the prefix of a field in an element of a list. Here, the request is the only
// element.
var element = regexp.MustCompile(`^(instances|changes)\[\d+\]\.`)

// parameterOf returns EC2's name of a field, such as Tag["key"] for changes[0].set_tags["key"].
func parameterOf(field string) string {
	name := element.ReplaceAllString(field, "")
	end := strings.IndexByte(name+"[", '[')
	if parameter, ok := parameters[name[:end]]; ok {
		return parameter + name[end:]
	}
	return field
}

// messageOf returns the message of an error. Violations without a text of EC2's are
// described with EC2's parameter names.
func messageOf(e *instance.Error) string {
	const maxViolations = 5
	if e.Code != "" || len(e.Violations) == 0 {
		return e.Message
	}
	var said []string
	for _, v := range e.Violations[:min(len(e.Violations), maxViolations)] {
		if v.Reason == codeInvalidValue { // the text is EC2's, which names the parameter
			said = append(said, v.Description)
			continue
		}
		said = append(said, parameterOf(v.Field)+": "+v.Description)
	}
	message := strings.Join(said, "; ")
	if more := len(e.Violations) - maxViolations; more > 0 {
		message += fmt.Sprintf(" (and %d more)", more)
	}
	return message
}

// logLevel returns the level for a refusal, as at the gRPC endpoint: info for mistakes of the
// caller, warning for a lack of something, error for a fault of this server.
func (r refusal) logLevel() slog.Level {
	switch {
	case r.reason == instance.ReasonDraining || r.reason == instance.ReasonCanceled:
		return slog.LevelInfo
	case r.status == http.StatusServiceUnavailable, r.status == http.StatusMisdirectedRequest, strings.HasPrefix(r.code, "Insufficient"):
		return slog.LevelWarn
	case r.status >= http.StatusInternalServerError:
		return slog.LevelError
	}
	return slog.LevelInfo
}

// errInvalid returns the error for a request that can never succeed.
func errInvalid(code, format string, a ...any) error {
	return &instance.Error{Kind: instance.KindInvalid, Code: code, Message: fmt.Sprintf(format, a...)}
}

// errDryRun returns the error that means success of a dry run.
func errDryRun() error {
	return &instance.Error{
		Kind:    instance.KindDryRun,
		Code:    instance.CodeDryRun,
		Message: "Request would have succeeded, but DryRun flag is set.",
	}
}
