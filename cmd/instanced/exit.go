package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/instanced/instanced/client"
	"github.com/instanced/instanced/internal/journal"
)

// The exit statuses. They are documented in exitStatusHelp and docs/cli.md, and stable.
const (
	exitOK          = 0
	exitInternal    = 1
	exitUsage       = 2
	exitRefused     = 3
	exitNotReached  = 4
	exitTimedOut    = 5
	exitUnavailable = 6
	exitDamaged     = 7
	exitInterrupted = 130
)

const exitStatusHelp = `Exit status:
  0    success
  1    unexpected error; verify: a promise is broken; doctor: there is a problem
  2    invalid command line or request (unknown flag, malformed id)
  3    rejected: not found, wrong state, no permission, no capacity, a limit
  4    an instance did not reach the wanted state and no longer can
  5    timed out
  6    the service is unreachable, or cannot reach what it depends on
  7    serve: the journal is damaged
  130  interrupted; watch, which is meant to be interrupted, exits with 0`

// usageError is an invalid command line.
type usageError struct{ message string }

func (e *usageError) Error() string { return e.message }

func usagef(format string, args ...any) error {
	return &usageError{message: fmt.Sprintf(format, args...)}
}

// verdict is the result of a command that got its response but did not achieve what was
// asked for. Its lines say why, one for each instance.
type verdict struct {
	status int
	lines  []string
}

func (v *verdict) Error() string { return strings.Join(v.lines, "\n") }

// ending returns the result of a command that has printed its response: the error of printing,
// or all verdicts, of which the first failure decides the status.
func ending(printed error, verdicts ...*verdict) error {
	if printed != nil {
		return printed
	}
	var all verdict
	for _, v := range verdicts {
		all.status = cmp.Or(all.status, v.status)
		all.lines = append(all.lines, v.lines...)
	}
	if all.status == exitOK {
		return nil
	}
	return &all
}

// serviceError is an error of the service or of the connection to it.
type serviceError struct {
	server string
	cause  *client.Error
	// unknown is nil unless the command may have been executed anyway.
	unknown *unknownOutcome
}

func (e *serviceError) Error() string { return e.cause.Error() }

func (e *serviceError) Unwrap() error { return e.cause }

// sentence says what went wrong. said is whether it is the message of the service, rather
// than of the connection to it.
func (e *serviceError) sentence() (text string, said bool) {
	switch c := e.cause; {
	case c.Reason == "" && c.Code == codes.Unavailable:
		return fmt.Sprintf("cannot reach the service at %s (%s); is \"instanced serve\" running there? Choose another address with --server",
			e.server, dialReason(c.Message)), false
	case c.Code == codes.DeadlineExceeded: // seen here or there, whichever was first
		return fmt.Sprintf("the service at %s did not respond in time; allow more with --timeout", e.server), false
	case c.Reason == "" && c.Code == codes.Canceled:
		return "interrupted", false
	default:
		return c.Message, true
	}
}

// unknownOutcome is the result of a command that may have been executed although it failed.
type unknownOutcome struct {
	cause *client.Error
	ids   []string
	token string
}

func (u *unknownOutcome) Error() string { return u.cause.Error() }

func (u *unknownOutcome) Unwrap() error { return u.cause }

// advice says how to find out what happened.
func (u *unknownOutcome) advice() string {
	const maxNamed = 5
	ids := strings.Join(u.ids[:min(len(u.ids), maxNamed)], " ")
	if len(u.ids) > maxNamed {
		ids += " ..."
	}
	return fmt.Sprintf("it may have been executed: check with `instanced history %s`, or retry it with --client-token %s", ids, u.token)
}

// exitStatus returns the exit status for the error of a verb.
func exitStatus(err error) int {
	if err == nil {
		return exitOK
	}
	if v, ok := errors.AsType[*verdict](err); ok {
		return v.status
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitUsage
	}
	if e, ok := errors.AsType[*client.Error](err); ok {
		return exitStatusOf(e.Code)
	}
	if errors.Is(err, journal.ErrDamaged) {
		return exitDamaged
	}
	if errors.Is(err, context.Canceled) {
		return exitInterrupted
	}
	return exitInternal
}

func exitStatusOf(code codes.Code) int {
	switch code {
	case codes.OK:
		return exitOK
	case codes.InvalidArgument:
		return exitUsage
	case codes.NotFound, codes.FailedPrecondition, codes.PermissionDenied, codes.Unauthenticated,
		codes.ResourceExhausted, codes.AlreadyExists, codes.OutOfRange, codes.Aborted:
		return exitRefused
	case codes.DeadlineExceeded:
		return exitTimedOut
	case codes.Unavailable:
		return exitUnavailable
	case codes.Canceled:
		return exitInterrupted
	case codes.Unknown, codes.Unimplemented, codes.Internal, codes.DataLoss:
		return exitInternal
	}
	return exitInternal
}

// report prints the error of a command on stderr and returns its exit status.
func (t *terminal) report(err error) int {
	status := exitStatus(err)
	if err == nil {
		return status
	}
	if t.output == outputJSON {
		t.reportJSON(err, status)
		return status
	}
	for _, line := range errorLines(err) {
		fmt.Fprintln(t.stderr, printable(line))
	}
	return status
}

// errorLines returns one sentence that says what went wrong, and its details on further lines.
func errorLines(err error) []string {
	failed, ok := errors.AsType[*serviceError](err)
	if !ok {
		return prefixed(strings.Split(err.Error(), "\n"))
	}
	e := failed.cause
	sentence, said := failed.sentence()
	switch {
	case !said:
	case e.EC2Code != "":
		sentence += " (" + e.EC2Code + ")"
	case e.Reason != "":
		sentence += " (" + e.Reason + ")"
	}
	var lines []string
	switch n := len(e.Violations); n {
	case 0:
		lines = prefixed([]string{sentence})
	case 1:
		lines = prefixed([]string{e.Violations[0].Field + ": " + e.Violations[0].Description})
	default:
		lines = prefixed([]string{fmt.Sprintf("the request has %s errors:", cmp.Or(e.Metadata["violation_count"], strconv.Itoa(n)))})
		for _, v := range e.Violations {
			lines = append(lines, fmt.Sprintf("  %s: %s", v.Field, v.Description))
		}
	}
	if failed.unknown != nil {
		lines = append(lines, "  "+failed.unknown.advice())
	}
	switch owner := e.Metadata["owner"]; {
	case owner != "":
		lines = append(lines, "  the owner is at --server "+owner)
	case e.RetryDelay > 0 && e.Reason != "":
		lines = append(lines, fmt.Sprintf("  a retry may succeed in %v", e.RetryDelay.Round(time.Millisecond)))
	}
	return lines
}

func prefixed(lines []string) []string {
	if len(lines) == 0 {
		return nil
	}
	return append([]string{"instanced: " + lines[0]}, lines[1:]...)
}

// dialReason reduces gRPC's message about a failed connection to the operating system's error.
func dialReason(message string) string {
	if i := strings.LastIndex(message, "dial "); i >= 0 {
		return strings.TrimRight(message[i:], `"`)
	}
	return message
}

// errorDocument is an error in -o json.
type errorDocument struct {
	ExitStatus   int                 `json:"exit_status"`
	Code         string              `json:"code,omitempty"`
	Reason       string              `json:"reason,omitempty"`
	EC2ErrorCode string              `json:"ec2_error_code,omitempty"`
	Message      string              `json:"message"`
	InstanceIDs  []string            `json:"instance_ids,omitempty"`
	Violations   []violationDocument `json:"violations,omitempty"`
	RetryDelay   string              `json:"retry_delay,omitempty"`
	Outcome      string              `json:"outcome,omitempty"`
	ClientToken  string              `json:"client_token,omitempty"`
	RequestID    string              `json:"request_id,omitempty"`
	Metadata     map[string]string   `json:"metadata,omitempty"`
}

type violationDocument struct {
	Field       string `json:"field"`
	Description string `json:"description"`
	Reason      string `json:"reason,omitempty"`
}

func (t *terminal) reportJSON(err error, status int) {
	doc := errorDocument{ExitStatus: status, Message: err.Error()}
	if v, ok := errors.AsType[*verdict](err); ok {
		doc.Message = strings.ReplaceAll(strings.Join(v.lines, "; "), ":;  ", ": ")
	}
	if e, ok := errors.AsType[*client.Error](err); ok {
		doc.Code, doc.Reason, doc.EC2ErrorCode, doc.Message = codeName(e.Code), e.Reason, e.EC2Code, e.Message
		doc.InstanceIDs, doc.RequestID, doc.Metadata = e.InstanceIDs, e.RequestID, e.Metadata
		if e.RetryDelay > 0 {
			doc.RetryDelay = e.RetryDelay.String()
		}
		for _, v := range e.Violations {
			doc.Violations = append(doc.Violations, violationDocument(v))
		}
	}
	if e, ok := errors.AsType[*serviceError](err); ok {
		doc.Message, _ = e.sentence()
		if e.unknown != nil {
			doc.Outcome, doc.ClientToken = "unknown", e.unknown.token
		}
	}
	enc := json.NewEncoder(t.stderr)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(map[string]errorDocument{"error": doc}); err != nil { //nolint:gosec // a client token is no secret
		fmt.Fprintln(t.stderr, "instanced:", err)
	}
}

// codeName returns the name of a code in the gRPC specification, such as NOT_FOUND.
func codeName(code codes.Code) string {
	names := map[codes.Code]string{
		codes.OK: "OK", codes.Canceled: "CANCELLED", codes.Unknown: "UNKNOWN",
		codes.InvalidArgument: "INVALID_ARGUMENT", codes.DeadlineExceeded: "DEADLINE_EXCEEDED",
		codes.NotFound: "NOT_FOUND", codes.AlreadyExists: "ALREADY_EXISTS",
		codes.PermissionDenied: "PERMISSION_DENIED", codes.ResourceExhausted: "RESOURCE_EXHAUSTED",
		codes.FailedPrecondition: "FAILED_PRECONDITION", codes.Aborted: "ABORTED",
		codes.OutOfRange: "OUT_OF_RANGE", codes.Unimplemented: "UNIMPLEMENTED",
		codes.Internal: "INTERNAL", codes.Unavailable: "UNAVAILABLE",
		codes.DataLoss: "DATA_LOSS", codes.Unauthenticated: "UNAUTHENTICATED",
	}
	if name, ok := names[code]; ok {
		return name
	}
	return code.String()
}
