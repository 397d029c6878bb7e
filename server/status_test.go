package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/instanced/instanced/internal/instance"
)

// mapped is an error as a caller gets it.
type mapped struct {
	*status.Status
	info    *errdetails.ErrorInfo
	invalid *errdetails.BadRequest
	retry   *errdetails.RetryInfo
}

func mapError(t *testing.T, err error) mapped {
	t.Helper()
	m := mapped{Status: status.Convert(asStatus(err, "request-1", false))}
	for _, d := range m.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			m.info = d
		case *errdetails.BadRequest:
			m.invalid = d
		case *errdetails.RetryInfo:
			m.retry = d
		default:
			t.Errorf("unexpected detail %v", d)
		}
	}
	if size := proto.Size(m.Proto()); size >= maxStatusBytes {
		t.Errorf("the status has %d bytes", size)
	}
	return m
}

func TestStatusOfErrors(t *testing.T) {
	const internalMessage = "internal error; the log of the server has the cause under request id request-1"
	for _, test := range []struct {
		name    string
		err     error
		code    codes.Code
		domain  string
		reason  string
		message string
	}{
		{
			"EC2's own error keeps its text",
			&instance.Error{Kind: instance.KindPrecondition, Code: instance.CodeIncorrectInstanceState, Message: "The instance 'i-1' is not in a state from which it can be started."},
			codes.FailedPrecondition, ec2Domain, "INCORRECT_INSTANCE_STATE", "The instance 'i-1' is not in a state from which it can be started.",
		},
		{
			"an error of the service has its own domain",
			&instance.Error{Kind: instance.KindOutOfRange, Reason: "CURSOR_EXPIRED", Message: "too old"},
			codes.OutOfRange, serviceDomain, "CURSOR_EXPIRED", "too old",
		},
		{
			"a wrapped error is found",
			fmt.Errorf("while starting: %w", &instance.Error{Kind: instance.KindNotFound, Code: instance.CodeNotFound, Message: "none"}),
			codes.NotFound, ec2Domain, "INVALID_INSTANCE_ID_NOT_FOUND", "none",
		},
		{
			"a dry run that would have succeeded is a failed precondition",
			&instance.Error{Kind: instance.KindDryRun, Code: instance.CodeDryRun, Message: "Request would have succeeded, but DryRun flag is set."},
			codes.FailedPrecondition, ec2Domain, "DRY_RUN_OPERATION", "Request would have succeeded, but DryRun flag is set.",
		},
		{
			"invalid without a reason",
			&instance.Error{Kind: instance.KindInvalid, Message: "wrong"},
			codes.InvalidArgument, serviceDomain, "INVALID_REQUEST", "wrong",
		},
		{
			"EC2 refusing this service's own credentials is redacted",
			&instance.Error{Kind: instance.KindInternal, Code: "AuthFailure", Message: "AWS was not able to validate the provided access credentials"},
			codes.Internal, serviceDomain, "INTERNAL", internalMessage,
		},
		{
			"a bug is redacted",
			&instance.Error{Kind: instance.KindInternal, Message: "pointer 0x123"},
			codes.Internal, serviceDomain, "INTERNAL", internalMessage,
		},
		{"an unknown error is redacted", errors.New("secret"), codes.Internal, serviceDomain, "INTERNAL", internalMessage},
		{
			"a status of something behind this service is redacted",
			fmt.Errorf("etcd: %w", status.Error(codes.NotFound, "secret")),
			codes.Internal, serviceDomain, "INTERNAL", internalMessage,
		},
		{"a cancelled call", fmt.Errorf("read: %w", context.Canceled), codes.Canceled, serviceDomain, "CANCELED", "the caller cancelled the call"},
		{
			"a deadline that has passed",
			fmt.Errorf("read: %w", context.DeadlineExceeded),
			codes.DeadlineExceeded, serviceDomain, "DEADLINE_EXCEEDED", "the deadline of the call has passed; whether anything was changed is unknown",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := mapError(t, test.err)
			if got.Code() != test.code || got.info.GetDomain() != test.domain || got.info.GetReason() != test.reason || got.Message() != test.message {
				t.Errorf("got %v %s/%s %q, want %v %s/%s %q", got.Code(), got.info.GetDomain(), got.info.GetReason(), got.Message(),
					test.code, test.domain, test.reason, test.message)
			}
			if got.info.GetMetadata()["request_id"] != "request-1" {
				t.Errorf("the metadata is %v", got.info.GetMetadata())
			}
		})
	}
}

func TestAStatusStaysAsItIs(t *testing.T) {
	err := status.Error(codes.Unimplemented, "not here")
	if got := asStatus(err, "request-1", false); got != err { //nolint:errorlint // the very same
		t.Errorf("got %v", got)
	}
}

func TestEveryKindHasACode(t *testing.T) {
	want := map[instance.Kind]codes.Code{
		instance.KindInternal:     codes.Internal,
		instance.KindInvalid:      codes.InvalidArgument,
		instance.KindNotFound:     codes.NotFound,
		instance.KindPrecondition: codes.FailedPrecondition,
		instance.KindDryRun:       codes.FailedPrecondition,
		instance.KindPermission:   codes.PermissionDenied,
		instance.KindExhausted:    codes.ResourceExhausted,
		instance.KindConflict:     codes.AlreadyExists,
		instance.KindOutOfRange:   codes.OutOfRange,
		instance.KindUnavailable:  codes.Unavailable,
	}
	for kind := range instance.KindUnavailable + 1 {
		if code(kind) != want[kind] {
			t.Errorf("kind %d: got %v, want %v", kind, code(kind), want[kind])
		}
	}
	if _, more := want[instance.KindUnavailable+1]; more || len(want) != int(instance.KindUnavailable)+1 {
		t.Error("a kind is missing here")
	}
}

func TestMetadataOfErrors(t *testing.T) {
	one := mapError(t, &instance.Error{
		Kind:        instance.KindPrecondition,
		Code:        instance.CodeUnsupportedOperation,
		InstanceIDs: []instance.ID{"i-1"},
		Metadata:    map[string]string{"owner": "10.0.0.1:50051"},
	})
	for key, want := range map[string]string{"instance_id": "i-1", "ec2_error_code": "UnsupportedOperation", "owner": "10.0.0.1:50051"} {
		if got := one.info.GetMetadata()[key]; got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	unknown := mapError(t, &instance.Error{Kind: instance.KindUnavailable, Reason: "X", OutcomeUnknown: true})
	if got := unknown.info.GetMetadata()["outcome"]; got != "unknown" || unknown.retry != nil {
		t.Errorf("an unknown outcome: %v, %v", got, unknown.retry)
	}
}

func TestRetries(t *testing.T) {
	for _, test := range []struct {
		name string
		err  *instance.Error
		want time.Duration
	}{
		{"a throttled call says when", &instance.Error{Kind: instance.KindExhausted, Code: instance.CodeRequestLimitExceeded, RetryAfter: 1500 * time.Millisecond}, 1500 * time.Millisecond},
		{"what cannot be reached may be back soon", &instance.Error{Kind: instance.KindUnavailable, Reason: "X"}, time.Second},
		{"a lack of capacity is not worth a retry", &instance.Error{Kind: instance.KindExhausted, Code: instance.CodeInsufficientCapacity}, 0},
		{"nor is an invalid request", &instance.Error{Kind: instance.KindInvalid}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := mapError(t, test.err).retry.GetRetryDelay().AsDuration(); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestLongErrorsAreCut(t *testing.T) {
	ids := make([]instance.ID, 1000)
	texts := make([]string, len(ids))
	for i := range ids {
		ids[i] = instance.ID(fmt.Sprintf("i-%017x", i))
		texts[i] = string(ids[i])
	}
	list := strings.Join(texts, ", ")
	got := mapError(t, &instance.Error{
		Kind:        instance.KindNotFound,
		Code:        instance.CodeNotFound,
		Message:     "The instance IDs '" + list + "' do not exist",
		InstanceIDs: ids,
		Metadata:    map[string]string{"changed_instance_ids": strings.Join(texts, ","), "note": strings.Repeat("ü\xff", 2000)},
	})
	meta := got.info.GetMetadata()
	if meta["instance_count"] != "1000" {
		t.Errorf("the count is %q", meta["instance_count"])
	}
	for _, key := range []string{"instance_ids", "changed_instance_ids"} {
		named := strings.Split(meta[key], ",")
		if omitted := fmt.Sprint(1000 - len(named)); meta[key+"_omitted"] != omitted || named[len(named)-1] != texts[len(named)-1] {
			t.Errorf("%s names %d, ends with %s, and leaves out %s", key, len(named), named[len(named)-1], meta[key+"_omitted"])
		}
	}
	if !strings.HasPrefix(got.Message(), "The instance IDs 'i-00000000000000000, ") || !strings.HasSuffix(got.Message(), "…") {
		t.Errorf("the message is %q", got.Message())
	}

	violations := make([]instance.Violation, 1000)
	for i := range violations {
		violations[i] = instance.Violation{Field: fmt.Sprintf("instance_ids[%d]", i), Description: strings.Repeat("wrong ", 100), Reason: instance.CodeMalformedID}
	}
	got = mapError(t, &instance.Error{Kind: instance.KindInvalid, Code: instance.CodeMalformedID, Message: list, Violations: violations})
	if n := len(got.invalid.GetFieldViolations()); n == 0 || n > maxViolations || got.info.GetMetadata()["violation_count"] != "1000" {
		t.Errorf("%d violations of %s", n, got.info.GetMetadata()["violation_count"])
	}
}

func TestUpperSnake(t *testing.T) {
	for code, want := range map[string]string{
		"InvalidInstanceID.NotFound":   "INVALID_INSTANCE_ID_NOT_FOUND",
		"IncorrectInstanceState":       "INCORRECT_INSTANCE_STATE",
		"VcpuLimitExceeded":            "VCPU_LIMIT_EXCEEDED",
		"EC2ThrottledException":        "EC2_THROTTLED_EXCEPTION",
		"InsufficientInstanceCapacity": "INSUFFICIENT_INSTANCE_CAPACITY",
		"Unavailable":                  "UNAVAILABLE",
		"ALREADY_SO":                   "ALREADY_SO",
		"":                             "",
	} {
		if got := upperSnake(code); got != want {
			t.Errorf("%s: got %s, want %s", code, got, want)
		}
	}
}

func FuzzStatusOfErrors(f *testing.F) {
	f.Add(uint8(instance.KindNotFound), "Code.A", "REASON", "message", "metadata", 3)
	f.Fuzz(func(t *testing.T, kind uint8, code, reason, message, metadata string, count int) {
		e := &instance.Error{Kind: instance.Kind(kind), Code: clip(code, 64), Reason: clip(reason, 64), Message: message, Metadata: map[string]string{"a": metadata, "b": metadata}}
		for range min(max(count, 0), 2000) {
			e.InstanceIDs = append(e.InstanceIDs, instance.ID(clip(message, 19)))
			e.Violations = append(e.Violations, instance.Violation{Field: metadata, Description: message, Reason: clip(code, 64)})
		}
		if got := mapError(t, e); got.info == nil {
			t.Errorf("no ErrorInfo: %v", got.Proto())
		}
	})
}
