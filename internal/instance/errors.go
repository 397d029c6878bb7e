package instance

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Kind is the class of an [Error]. Each has one gRPC status code, named at the
// edge and nowhere else.
type Kind uint8

// The kinds of error.
const (
	// KindInternal is a bug, or an unexpected condition.
	KindInternal Kind = iota
	// KindInvalid is an invalid request, which can never succeed unchanged.
	KindInvalid
	// KindNotFound is an instance that does not exist.
	KindNotFound
	// KindPrecondition is a request that the current state of an instance does not allow.
	KindPrecondition
	// KindDryRun is a dry run that would have succeeded.
	KindDryRun
	// KindPermission is a caller without permission.
	KindPermission
	// KindExhausted is a lack of capacity, quota or tokens.
	KindExhausted
	// KindConflict is a client token used with another request.
	KindConflict
	// KindOutOfRange is a cursor that cannot be served.
	KindOutOfRange
	// KindUnavailable is a part of the system that cannot be reached.
	KindUnavailable
	// KindUnauthenticated is a caller who is not authenticated.
	KindUnauthenticated
)

// EC2's error codes that this service returns itself. Source: EC2 Developer Guide, "Error
// codes for the Amazon EC2 API".
const (
	CodeMalformedID            = "InvalidInstanceID.Malformed"
	CodeMissingParameter       = "MissingParameter"
	CodeNotFound               = "InvalidInstanceID.NotFound"
	CodeIncorrectInstanceState = "IncorrectInstanceState"
	CodeUnsupportedOperation   = "UnsupportedOperation"
	CodeUnsupportedHibernation = "UnsupportedHibernationConfiguration"
	CodeOperationNotPermitted  = "OperationNotPermitted"
	CodeUnauthorized           = "UnauthorizedOperation"
	CodeDryRun                 = "DryRunOperation"
	CodeInsufficientCapacity   = "InsufficientInstanceCapacity"
	CodeInstanceLimitExceeded  = "InstanceLimitExceeded"
	CodeRequestLimitExceeded   = "RequestLimitExceeded"
	CodeResourceCountExceeded  = "ResourceCountExceeded"
	CodeServiceUnavailable     = "Unavailable"
	CodeInternalError          = "InternalError"
)

// Violation is one problem with one field of a request.
type Violation struct {
	// Field is the path of the field, such as "instance_ids[3]".
	Field string
	// Description says what is wrong and what would be right.
	Description string
	// Reason is the EC2 code that stands for the violation, if there is one.
	Reason string
}

// Error is the error of every layer below the edge. Match it with errors.AsType.
type Error struct {
	Kind Kind
	// Code is EC2's error code, as on the wire; empty for an error of this service.
	Code string
	// Reason is this service's own reason, in UPPER_SNAKE_CASE; empty if Code says it.
	Reason string
	// Message is for the caller. For EC2's errors it is EC2's own text.
	Message string
	// InstanceIDs are the instances that the error names, if any.
	InstanceIDs []ID
	// Violations are set for [KindInvalid] only.
	Violations []Violation
	// RetryAfter is how long to wait before retrying; zero if a retry cannot succeed.
	RetryAfter time.Duration
	// OutcomeUnknown is whether the command may have been executed although it failed.
	OutcomeUnknown bool
	// Metadata is returned to the caller in the error's details.
	Metadata map[string]string
	// Cause is for the log only.
	Cause error
}

// Error returns the code, the message and, for the log, the cause.
func (e *Error) Error() string {
	var b strings.Builder
	switch {
	case e.Code != "":
		b.WriteString(e.Code)
		b.WriteString(": ")
	case e.Reason != "":
		b.WriteString(e.Reason)
		b.WriteString(": ")
	}
	b.WriteString(e.Message)
	if e.Cause != nil {
		b.WriteString(": ")
		b.WriteString(e.Cause.Error())
	}
	return b.String()
}

// UnknownOutcome returns a copy of the error for a caller whose command may have been
// executed anyway: it does not claim that nothing was changed.
func (e *Error) UnknownOutcome() *Error {
	unknown := *e
	unknown.OutcomeUnknown = true
	unknown.Message, _, _ = strings.Cut(e.Message, "; nothing was changed")
	return &unknown
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// AsError returns an error as an [Error]; one of another type is a bug, or a condition that
// the backend should have classified.
func AsError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Kind: KindInternal, Message: "unexpected backend error", Cause: err}
}

// OutcomeKnown reports whether an error is certain that the command changed nothing beyond
// what is reported.
func OutcomeKnown(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && !e.OutcomeUnknown
}

// NotFound returns EC2's error for instances that do not exist: at least one.
func NotFound(ids ...ID) *Error {
	text := fmt.Sprintf("The instance ID '%s' does not exist", ids[0])
	if len(ids) > 1 {
		text = fmt.Sprintf("The instance IDs '%s' do not exist", JoinIDs(ids))
	}
	return &Error{Kind: KindNotFound, Code: CodeNotFound, Message: text, InstanceIDs: slices.Clone(ids)}
}

// Strings returns ids as strings.
func Strings(ids []ID) []string {
	list := make([]string, len(ids))
	for i, id := range ids {
		list[i] = string(id)
	}
	return list
}

// JoinIDs returns ids as EC2's messages list them, separated by commas and spaces.
func JoinIDs(ids []ID) string {
	var b strings.Builder
	for i, id := range ids {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(id))
	}
	return b.String()
}
