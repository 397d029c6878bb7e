package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/instanced/instanced/client"
)

// The exit statuses of the client's verbs, and of others for the same reasons. They are
// documented in [ExitStatusHelp] and docs/cli.md, and stable.
const (
	ExitOK          = 0
	ExitInternal    = 1
	ExitUsage       = 2
	ExitRefused     = 3
	ExitNotReached  = 4
	ExitTimedOut    = 5
	ExitUnavailable = 6
	ExitInterrupted = 130
)

// ExitStatusHelp describes the exit statuses. further says what statuses mean for the verbs that
// a program has beside the client's.
func ExitStatusHelp(further map[int]string) string {
	meanings := map[int]string{
		ExitOK:          "success",
		ExitInternal:    "unexpected error; health: not serving; verify: a promise is broken",
		ExitUsage:       "invalid command line or request (unknown flag, malformed id)",
		ExitRefused:     "rejected: not found, wrong state, no permission, no capacity, a limit",
		ExitNotReached:  "an instance did not reach the wanted state and no longer can",
		ExitTimedOut:    "timed out",
		ExitUnavailable: "the service is unreachable, or cannot reach what it depends on",
		ExitInterrupted: "interrupted; watch, which is meant to be interrupted, exits with 0",
	}
	for status, meaning := range further {
		if shared, ok := meanings[status]; ok {
			meaning = shared + "; " + meaning
		}
		meanings[status] = meaning
	}
	var help strings.Builder
	help.WriteString("Exit status:")
	for _, status := range slices.Sorted(maps.Keys(meanings)) {
		fmt.Fprintf(&help, "\n  %-3d  %s", status, meanings[status])
	}
	return help.String()
}

// UsageError is an invalid command line.
type UsageError struct{ message string }

func (e *UsageError) Error() string { return e.message }

// Usagef returns a [UsageError].
func Usagef(format string, args ...any) error {
	return &UsageError{message: fmt.Sprintf(format, args...)}
}

// StatusError is an error with an exit status of its own.
type StatusError struct {
	Status int
	Err    error
}

func (e *StatusError) Error() string { return e.Err.Error() }

// Unwrap returns the error without its status.
func (e *StatusError) Unwrap() error { return e.Err }

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
	if all.status == ExitOK {
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

// rejectedHandshake is in the message of an error when the service rejects the client
// certificate, or something else in the handshake. What follows is why.
const rejectedHandshake = "remote error: tls: "

// sentence says what went wrong. said is whether it is the message of the service, rather
// than of the connection to it.
func (e *serviceError) sentence() (text string, said bool) {
	switch c := e.cause; {
	case c.Reason == "" && c.Code == codes.Unavailable && strings.Contains(c.Message, "tls: certificate required"):
		return fmt.Sprintf("the service at %s requires a client certificate; give it with --tls-cert and --tls-key", e.server), false
	case c.Reason == "" && c.Code == codes.Unavailable && strings.Contains(c.Message, rejectedHandshake):
		why := c.Message[strings.Index(c.Message, rejectedHandshake)+len(rejectedHandshake):]
		return fmt.Sprintf("the service at %s rejects the TLS handshake (%s); its log may say more", e.server, strings.TrimRight(why, `"`)), false
	case c.Reason == "" && c.Code == codes.Unavailable && strings.Contains(c.Message, "server preface"):
		return fmt.Sprintf("the service at %s does not speak gRPC in plaintext (%s); if it speaks TLS, give --tls-ca, --tls-cert and --tls-key",
			e.server, dialReason(c.Message)), false
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
func (u *unknownOutcome) advice(program string) string {
	const maxNamed = 5
	ids := strings.Join(u.ids[:min(len(u.ids), maxNamed)], " ")
	if len(u.ids) > maxNamed {
		ids += " ..."
	}
	return fmt.Sprintf("it may have been executed: check with `%s history %s`, or retry it with --client-token %s", program, ids, u.token)
}

// exitStatus returns the exit status for the error of a verb.
func exitStatus(err error) int {
	if err == nil {
		return ExitOK
	}
	if v, ok := errors.AsType[*verdict](err); ok {
		return v.status
	}
	if _, ok := errors.AsType[*UsageError](err); ok {
		return ExitUsage
	}
	if e, ok := errors.AsType[*client.Error](err); ok {
		return exitStatusOf(e.Code)
	}
	if e, ok := errors.AsType[*StatusError](err); ok {
		return e.Status
	}
	if errors.Is(err, context.Canceled) {
		return ExitInterrupted
	}
	return ExitInternal
}

func exitStatusOf(code codes.Code) int {
	switch code {
	case codes.OK:
		return ExitOK
	case codes.InvalidArgument:
		return ExitUsage
	case codes.NotFound, codes.FailedPrecondition, codes.PermissionDenied, codes.Unauthenticated,
		codes.ResourceExhausted, codes.AlreadyExists, codes.OutOfRange, codes.Aborted:
		return ExitRefused
	case codes.DeadlineExceeded:
		return ExitTimedOut
	case codes.Unavailable:
		return ExitUnavailable
	case codes.Canceled:
		return ExitInterrupted
	case codes.Unknown, codes.Unimplemented, codes.Internal, codes.DataLoss:
		return ExitInternal
	}
	return ExitInternal
}

// report prints the error of a command on stderr and returns its exit status.
func (t *Terminal) report(err error) int {
	status := exitStatus(err)
	if err == nil {
		return status
	}
	if t.JSON() {
		t.reportJSON(err, status)
		return status
	}
	for _, line := range t.errorLines(err) {
		fmt.Fprintln(t.Stderr, Printable(line))
	}
	return status
}

// errorLines returns one sentence that says what went wrong, and its details on further lines.
func (t *Terminal) errorLines(err error) []string {
	failed, ok := errors.AsType[*serviceError](err)
	if !ok {
		return t.prefixed(strings.Split(err.Error(), "\n"))
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
		lines = t.prefixed([]string{sentence})
	case 1:
		lines = t.prefixed([]string{e.Violations[0].Field + ": " + e.Violations[0].Description})
	default:
		lines = t.prefixed([]string{fmt.Sprintf("the request has %s errors:", cmp.Or(e.Metadata["violation_count"], strconv.Itoa(n)))})
		for _, v := range e.Violations {
			lines = append(lines, fmt.Sprintf("  %s: %s", v.Field, v.Description))
		}
	}
	if failed.unknown != nil {
		lines = append(lines, "  "+failed.unknown.advice(t.program))
	}
	switch owner := e.Metadata["owner"]; {
	case owner != "":
		lines = append(lines, "  the owner is at --server "+owner)
	case e.RetryDelay > 0 && e.Reason != "":
		lines = append(lines, fmt.Sprintf("  a retry may succeed in %v", e.RetryDelay.Round(time.Millisecond)))
	}
	return lines
}

func (t *Terminal) prefixed(lines []string) []string {
	if len(lines) == 0 {
		return nil
	}
	return append([]string{t.program + ": " + lines[0]}, lines[1:]...)
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

func (t *Terminal) reportJSON(err error, status int) {
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
	enc := json.NewEncoder(t.Stderr)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(map[string]errorDocument{"error": doc}); err != nil { //nolint:gosec // a client token is no secret
		fmt.Fprintln(t.Stderr, t.program+":", err)
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
