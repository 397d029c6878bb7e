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

// EC2's codes that this door names itself, beside those of the instance package.
const (
	codeInvalidValue       = "InvalidParameterValue"
	codeInvalidCombination = "InvalidParameterCombination"
	codeInvalidAction      = "InvalidAction"
	codeInvalidPage        = "InvalidPaginationToken"
	codeAuthFailure        = "AuthFailure"
	codeMismatch           = "IdempotentParameterMismatch"
	codeAccessDenied       = "AccessDenied"
)

// statuses holds the status of each code that has one of its own.
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
	// reason is this service's own, for the log; often empty.
	reason string
	// retryAfter is when the same call may succeed; zero when that is not known.
	retryAfter time.Duration
}

// refusalOf maps an error of a handler. What is redacted is an error that nobody
// foresaw, and any that EC2 reports of this service's own credentials.
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

// statusOf returns the status of an error. A code that is in no table, because it is one that
// EC2 has had for shorter than this program, has the status that makes an SDK do what it does
// when EC2 says so: try again what EC2 failed to do, and what it throttles.
func statusOf(e *instance.Error, code string) int {
	status, ok := statuses[code]
	switch {
	case e.Reason == instance.ReasonNotOwner && e.Metadata["owner"] != "":
		// To try again here, as SDKs do after 5xx, leads nowhere.
		return http.StatusMisdirectedRequest
	case ok:
		return status
	case e.Kind == instance.KindUnavailable, e.Kind == instance.KindExhausted && e.RetryAfter > 0:
		return http.StatusServiceUnavailable
	}
	return http.StatusBadRequest
}

// codeOf returns EC2's code of an error. Errors of this service itself get the code that
// makes an SDK do the right thing: try again what may succeed later, and nothing else.
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

// parameters are the names that EC2 has for fields of requests.
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

// element is what stands before a field of an element of a list, which is all of the
// request here.
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

// messageOf returns the text of an error. What is wrong with a request and has no text of
// EC2 is said in EC2's names.
func messageOf(e *instance.Error) string {
	const most = 5
	if e.Code != "" || len(e.Violations) == 0 {
		return e.Message
	}
	var said []string
	for _, v := range e.Violations[:min(len(e.Violations), most)] {
		if v.Reason == codeInvalidValue { // EC2's text names the parameter in its own way
			said = append(said, v.Description)
			continue
		}
		said = append(said, parameterOf(v.Field)+": "+v.Description)
	}
	message := strings.Join(said, "; ")
	if more := len(e.Violations) - most; more > 0 {
		message += fmt.Sprintf(" (and %d more)", more)
	}
	return message
}

// loudness returns the level of a refusal in the log, as the gRPC door has it: what a
// caller did is news, what is lacking is a warning, what is broken here is an error.
func (r refusal) loudness() slog.Level {
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

// errInvalid is a request that can never succeed.
func errInvalid(code, format string, a ...any) error {
	return &instance.Error{Kind: instance.KindInvalid, Code: code, Message: fmt.Sprintf(format, a...)}
}

// errDryRun is the success of a dry run.
func errDryRun() error {
	return &instance.Error{
		Kind:    instance.KindDryRun,
		Code:    instance.CodeDryRun,
		Message: "Request would have succeeded, but DryRun flag is set.",
	}
}
