package client

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// The most common reasons of [Error] to check for. docs/errors.md lists all.
const (
	// ReasonDryRun is a dry run that would have been permitted. The methods of
	// [Client] turn it into success.
	ReasonDryRun = "DRY_RUN_OPERATION"
	// ReasonThrottled is EC2's RequestLimitExceeded.
	ReasonThrottled = "REQUEST_LIMIT_EXCEEDED"

	reasonNotOwner = "NOT_OWNER"
)

// pushbackTrailer is gRPC's standard trailer by which a server or proxy says when to retry: a
// delay in milliseconds, or a negative number for never.
const pushbackTrailer = "grpc-retry-pushback-ms"

// Violation is one thing wrong with one field of a request.
type Violation struct {
	// Field is the path of the field, such as "instance_ids[3]".
	Field string
	// Description says what is wrong and what is right.
	Description string
	// Reason identifies the violation for programs; it may be empty.
	Reason string
}

// Error is the error of a call. Every method of [Client] that returns an error of the service,
// of the connection or of the context returns one.
//
// errors.Is finds context.Canceled and context.DeadlineExceeded in it, and
// status.FromError the original status.
type Error struct {
	// Code is the gRPC status code.
	Code codes.Code
	// Reason says in UPPER_SNAKE_CASE what is wrong, within Domain. It is empty for
	// errors that did not come from the service.
	Reason string
	// Domain is "ec2.amazonaws.com" for EC2's own errors and "instanced" for errors of the
	// service.
	Domain string
	// EC2Code is EC2's error code, such as IncorrectInstanceState; empty for an error
	// of the service.
	EC2Code string
	// Message is EC2's text word for word, or the service's.
	Message string
	// InstanceIDs are the instances that the error names, if any.
	InstanceIDs []string
	// Violations are everything that is wrong with the request.
	Violations []Violation
	// RetryDelay is how long to wait before a retry may succeed; 0 if the service does not
	// suggest one.
	RetryDelay time.Duration
	// OutcomeUnknown is true if the command may have been executed anyway: the service says so,
	// or its response to some attempt was lost. Repeating the command with its client token
	// returns the outcome.
	OutcomeUnknown bool
	// RequestID is the id of the call in the service's log.
	RequestID string
	// Metadata are further details of the service, such as the oldest cursor that can still be
	// served.
	Metadata map[string]string

	status *status.Status
	// final is true when the server asks not to retry.
	final bool
}

// Error returns the code, the message and the violations.
func (e *Error) Error() string {
	var b strings.Builder
	switch {
	case e.EC2Code != "":
		b.WriteString(e.EC2Code)
	case e.Reason != "":
		b.WriteString(e.Reason)
	default:
		b.WriteString(e.Code.String())
	}
	separator := ": "
	if !e.messageRepeats() {
		b.WriteString(separator)
		b.WriteString(e.Message)
		separator = "; "
	}
	for _, v := range e.Violations {
		b.WriteString(separator)
		b.WriteString(v.Field)
		b.WriteString(": ")
		b.WriteString(v.Description)
		separator = "; "
	}
	if all, err := strconv.Atoi(e.Metadata["violation_count"]); err == nil && all > len(e.Violations) {
		fmt.Fprintf(&b, " (and %d more)", all-len(e.Violations))
	}
	return b.String()
}

// messageRepeats reports whether the message repeats the first violation or, in EC2's words,
// the reverse.
func (e *Error) messageRepeats() bool {
	if len(e.Violations) == 0 {
		return false
	}
	first := e.Violations[0]
	return strings.HasPrefix(e.Message, first.Field+": "+first.Description) || strings.HasPrefix(first.Description, e.Message)
}

// GRPCStatus returns the original status with its details.
func (e *Error) GRPCStatus() *status.Status { return e.status }

// Unwrap returns the error of the context if the context ended the call.
func (e *Error) Unwrap() error {
	switch e.Code {
	case codes.Canceled:
		return context.Canceled
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// newError converts an error of gRPC and its trailer.
func newError(err error, trailer metadata.MD) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	// FromContextError keeps the code of a bare context error, which a stream may
	// return.
	s, ok := status.FromError(err)
	if !ok {
		s = status.FromContextError(err)
	}
	e := &Error{Code: s.Code(), Message: s.Message(), status: s}
	for _, detail := range s.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			e.takeInfo(d)
		case *errdetails.BadRequest:
			for _, v := range d.GetFieldViolations() {
				e.Violations = append(e.Violations, Violation{Field: v.GetField(), Description: v.GetDescription(), Reason: v.GetReason()})
			}
		case *errdetails.RetryInfo:
			e.RetryDelay = max(d.GetRetryDelay().AsDuration(), 0)
		case *errdetails.RequestInfo:
			e.RequestID = d.GetRequestId()
		}
	}
	e.takePushback(trailer.Get(pushbackTrailer))
	return e
}

// takePushback follows the rules that gRPC has for this trailer: what is not one delay
// means not to retry.
func (e *Error) takePushback(values []string) {
	if len(values) == 0 {
		return
	}
	ms, err := strconv.ParseInt(values[0], 10, 32)
	if len(values) > 1 || err != nil || ms < 0 {
		e.final = true
		return
	}
	e.RetryDelay = max(e.RetryDelay, time.Duration(ms)*time.Millisecond)
}

// takeInfo spreads the metadata of an ErrorInfo over the fields that stand for it.
func (e *Error) takeInfo(info *errdetails.ErrorInfo) {
	e.Reason, e.Domain = info.GetReason(), info.GetDomain()
	for key, value := range info.GetMetadata() {
		switch key {
		case "ec2_error_code":
			e.EC2Code = value
		case "request_id":
			e.RequestID = value
		case "outcome":
			e.OutcomeUnknown = value == "unknown"
		case "instance_id", "instance_ids":
			e.InstanceIDs = strings.Split(value, ",")
		default:
			if e.Metadata == nil {
				e.Metadata = make(map[string]string)
			}
			e.Metadata[key] = value
		}
	}
}

// leavesOpen reports whether the outcome of earlier attempts is still unknown after an error.
// After a rejection it is not: an executed command would have got its first response.
func leavesOpen(e *Error) bool {
	return e.OutcomeUnknown || answerLost(e) || e.Code == codes.Unavailable || e.Code == codes.ResourceExhausted
}

// answerLost reports whether an attempt that was sent ended without a response.
func answerLost(e *Error) bool {
	switch e.Code {
	case codes.DeadlineExceeded, codes.Canceled:
		return true
	case codes.Unavailable, codes.Internal, codes.Unknown:
		return e.Reason == ""
	default:
		return false
	}
}

// isDryRun reports whether a request is a dry run.
func isDryRun(req any) bool {
	r, ok := req.(interface{ GetDryRun() bool })
	return ok && r.GetDryRun()
}

func isDryRunSuccess(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Code == codes.FailedPrecondition && e.Reason == ReasonDryRun
}
