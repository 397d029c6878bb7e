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

// The statuses that the process exits with. They are promised in exitStatusHelp and
// in docs/cli.md.
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
  0    what was asked for happened
  1    something unexpected went wrong; of verify, a promise is broken; of doctor,
       there is a problem
  2    the command line or the request cannot be right (malformed id, unknown flag)
  3    refused: not found, a state that forbids it, permission, capacity, limits
  4    an instance did not get to the wanted state and no longer can
  5    the time was over first
  6    the service cannot be reached, or cannot reach what it needs
  7    of serve, the journal is damaged
  130  interrupted; of watch, which is meant to be interrupted, 0`

// usageError is a command line that cannot be right.
type usageError struct{ message string }

func (e *usageError) Error() string { return e.message }

func usagef(format string, args ...any) error {
	return &usageError{message: fmt.Sprintf(format, args...)}
}

// verdict is the end of a command that was answered, and yet did not bring about what
// was asked for. Its lines say why, instance by instance.
type verdict struct {
	status int
	lines  []string
}

func (v *verdict) Error() string { return strings.Join(v.lines, "\n") }

// ending is how a command ends that has printed its answer: with the error of that, or
// with its verdicts together, of which the first that is not good gives the status.
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

// serviceError is an error of the service, or of the way there.
type serviceError struct {
	server string
	cause  *client.Error
	// unknown is nil unless the call may have been carried out all the same.
	unknown *unknownOutcome
}

func (e *serviceError) Error() string { return e.cause.Error() }

func (e *serviceError) Unwrap() error { return e.cause }

// sentence says what went wrong. said is whether those are the words of the service, which
// has none for what happens on the way there.
func (e *serviceError) sentence() (text string, said bool) {
	switch c := e.cause; {
	case c.Reason == "" && c.Code == codes.Unavailable:
		return fmt.Sprintf("cannot reach the service at %s (%s); is \"instanced serve\" running there? --server names another",
			e.server, dialReason(c.Message)), false
	case c.Code == codes.DeadlineExceeded: // seen here or there, whichever was first
		return fmt.Sprintf("the service at %s did not answer in time; --timeout allows more", e.server), false
	case c.Reason == "" && c.Code == codes.Canceled:
		return "interrupted", false
	default:
		return c.Message, true
	}
}

// unknownOutcome is the end of a command that may have been carried out all the same.
type unknownOutcome struct {
	cause *client.Error
	ids   []string
	token string
}

func (u *unknownOutcome) Error() string { return u.cause.Error() }

func (u *unknownOutcome) Unwrap() error { return u.cause }

// advice says how to find out.
func (u *unknownOutcome) advice() string {
	const most = 5
	ids := strings.Join(u.ids[:min(len(u.ids), most)], " ")
	if len(u.ids) > most {
		ids += " ..."
	}
	return fmt.Sprintf("it may have been carried out: look with `instanced history %s`, or repeat it with --client-token %s", ids, u.token)
}

// exitStatus returns the status that an error of a verb ends with.
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

// report says on stderr how a command ended and returns its exit status.
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

// errorLines says in one sentence what went wrong, with the particulars below it.
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
		lines = prefixed([]string{fmt.Sprintf("the request is wrong in %s places:", cmp.Or(e.Metadata["violation_count"], strconv.Itoa(n)))})
		for _, v := range e.Violations {
			lines = append(lines, fmt.Sprintf("  %s: %s", v.Field, v.Description))
		}
	}
	if failed.unknown != nil {
		lines = append(lines, "  "+failed.unknown.advice())
	}
	switch owner := e.Metadata["owner"]; {
	case owner != "":
		lines = append(lines, "  --server "+owner+" reaches the owner")
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

// dialReason cuts what grpc says of a failed connection down to what the operating
// system said.
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

// codeName returns the name of a code as the gRPC specification writes it, such as
// NOT_FOUND.
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
