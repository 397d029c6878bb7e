package ec2query

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/instanced/instanced/internal/admission"
	"github.com/instanced/instanced/internal/instance"
)

func TestErrorsBecomeWhatAnSDKActsOnRightly(t *testing.T) {
	for name, test := range map[string]struct {
		err    error
		status int
		code   string
		says   string
		level  slog.Level
	}{
		"another process is the owner":  {&instance.Error{Kind: instance.KindUnavailable, Reason: "NOT_OWNER", Message: "m", Metadata: map[string]string{"owner": "b:1"}}, 421, "Unavailable", "m", slog.LevelWarn},
		"there is no owner":             {&instance.Error{Kind: instance.KindUnavailable, Reason: "NOT_OWNER", Message: "m"}, 503, "Unavailable", "m", slog.LevelWarn},
		"the disk is full":              {&instance.Error{Kind: instance.KindExhausted, Reason: "JOURNAL_FULL", Message: "m"}, 503, "Unavailable", "m", slog.LevelWarn},
		"an answer was not recorded":    {&instance.Error{Kind: instance.KindUnavailable, Reason: "NOT_RECORDED", OutcomeUnknown: true, Message: "m"}, 503, "Unavailable", "m", slog.LevelWarn},
		"draining":                      {admission.ErrDraining(time.Second), 503, "Unavailable", "shutting down", slog.LevelInfo},
		"too many calls":                {&instance.Error{Kind: instance.KindExhausted, Reason: "TOO_MANY_REQUESTS", Message: "m"}, 503, "RequestLimitExceeded", "m", slog.LevelWarn},
		"EC2 throttles":                 {&instance.Error{Kind: instance.KindExhausted, Code: "RequestLimitExceeded", Message: "m"}, 503, "RequestLimitExceeded", "m", slog.LevelWarn},
		"EC2 has a code of its own":     {fmt.Errorf("wrapped: %w", &instance.Error{Kind: instance.KindPrecondition, Code: "IncorrectSpotRequestState", Message: "m"}), 400, "IncorrectSpotRequestState", "m", slog.LevelInfo},
		"an invalid request":            {&instance.Error{Kind: instance.KindInvalid, Reason: "INVALID_REQUEST", Message: "m"}, 400, "InvalidParameterValue", "m", slog.LevelInfo},
		"a state":                       {&instance.Error{Kind: instance.KindPrecondition, Message: "m"}, 400, "IncorrectState", "m", slog.LevelInfo},
		"a permission":                  {&instance.Error{Kind: instance.KindPermission, Message: "m"}, 403, "UnauthorizedOperation", "m", slog.LevelInfo},
		"a token":                       {&instance.Error{Kind: instance.KindConflict, Message: "m"}, 400, "IdempotentParameterMismatch", "m", slog.LevelInfo},
		"a dry run":                     {errDryRun(), 412, "DryRunOperation", "DryRun flag is set", slog.LevelInfo},
		"the caller has gone":           {fmt.Errorf("x: %w", context.Canceled), 503, "Unavailable", "unknown", slog.LevelInfo},
		"the time is over":              {context.DeadlineExceeded, 503, "Unavailable", "unknown", slog.LevelWarn},
		"a bug":                         {errors.New("secret"), 500, "InternalError", "request id r-1", slog.LevelError},
		"a bug below":                   {&instance.Error{Kind: instance.KindInternal, Message: "secret"}, 500, "InternalError", "request id r-1", slog.LevelError},
		"the service's own credentials": {&instance.Error{Kind: instance.KindInternal, Code: "AuthFailure", Message: "secret"}, 500, "InternalError", "request id r-1", slog.LevelError},
		"EC2 is broken":                 {&instance.Error{Kind: instance.KindUnavailable, Code: "InternalError", Message: "m"}, 500, "InternalError", "m", slog.LevelError},
		"EC2 lacks capacity":            {&instance.Error{Kind: instance.KindExhausted, Code: "InsufficientInstanceCapacity", Message: "m"}, 500, "InsufficientInstanceCapacity", "m", slog.LevelWarn},
		"EC2 lacks something else":      {&instance.Error{Kind: instance.KindExhausted, Code: "VcpuLimitExceeded", Message: "m"}, 400, "VcpuLimitExceeded", "m", slog.LevelInfo},
		"EC2 fails in a new way":        {&instance.Error{Kind: instance.KindUnavailable, Code: "FutureFailure", OutcomeUnknown: true, Message: "m"}, 503, "FutureFailure", "m", slog.LevelWarn},
		"EC2 throttles in a new way":    {&instance.Error{Kind: instance.KindExhausted, Code: "TooFast", RetryAfter: time.Second, Message: "m"}, 503, "TooFast", "m", slog.LevelWarn},
		"EC2 lacks addresses":           {&instance.Error{Kind: instance.KindExhausted, Code: "InsufficientAddressCapacity", Message: "m"}, 500, "InsufficientAddressCapacity", "m", slog.LevelWarn},
		"EC2 refuses for a new reason":  {&instance.Error{Kind: instance.KindPrecondition, Code: "IncorrectMood", Message: "m"}, 400, "IncorrectMood", "m", slog.LevelInfo},
		"something unknown":             {&instance.Error{Kind: instance.KindNotFound, Message: "m"}, 400, "InvalidInstanceID.NotFound", "m", slog.LevelInfo},
	} {
		got := refusalOf(test.err, "r-1")
		if got.status != test.status || got.code != test.code || !strings.Contains(got.message, test.says) || got.logLevel() != test.level || strings.Contains(got.message, "secret") {
			t.Errorf("%s: %+v, %v", name, got, got.logLevel())
		}
	}
	many := slices.Repeat([]instance.Violation{{Field: "additional_info", Description: "is wrong"}, {Field: "instances[0].tags", Description: "are wrong"}}, 4)
	got := refusalOf(&instance.Error{Kind: instance.KindInvalid, Message: "m", Violations: many}, "")
	if want := "AdditionalInfo: is wrong; TagSpecification.Tag: are wrong; "; !strings.HasPrefix(got.message, want+want) || !strings.HasSuffix(got.message, " (and 3 more)") {
		t.Errorf("several things are wrong: %s", got.message)
	}
	if got := refusalOf(&instance.Error{Kind: instance.KindExhausted, RetryAfter: time.Second}, ""); got.retryAfter != time.Second {
		t.Errorf("%+v", got)
	}
}
