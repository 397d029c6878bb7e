package cli

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/instanced/instanced/client"
)

func TestADeadlineReadsTheSameWhereverItWasSeenFirst(t *testing.T) {
	for name, reason := range map[string]string{"here": "", "at the service": "DEADLINE_EXCEEDED"} {
		t.Run(name, func(t *testing.T) {
			lines := (&Terminal{program: "instanced"}).errorLines(&serviceError{server: "a:1", cause: &client.Error{Code: codes.DeadlineExceeded, Reason: reason, Message: "late"}})
			if !strings.HasSuffix(lines[0], "the service at a:1 did not respond in time; allow more with --timeout") {
				t.Errorf("it says %q", lines)
			}
		})
	}
}
