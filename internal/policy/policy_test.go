package policy_test

import (
	"testing"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/policy"
)

func TestAllowAuthenticatedPermitsToReadStartAndStop(t *testing.T) {
	t.Parallel()
	for action, permitted := range map[policy.Action]bool{
		policy.Read:                              true,
		policy.ActionOf(instance.VerbStart):      true,
		policy.ActionOf(instance.VerbStop):       true,
		policy.ActionOf(instance.VerbReboot):     false,
		policy.ActionOf(instance.VerbTerminate):  false,
		policy.ActionOf("AVerbThatDoesNotExist"): false,
		policy.ChangeSimulator:                   false,
		policy.ChangeSimulator + 1:               false,
	} {
		err := policy.AllowAuthenticated.Check(true, action)
		if (err == nil) != permitted {
			t.Errorf("action %d: %v, want permitted: %t", action, err, permitted)
		}
		if e := instance.AsError(err); err != nil && (e.Kind != instance.KindPermission || e.Code != instance.CodeUnauthorized) {
			t.Errorf("action %d: %v is not EC2's error", action, err)
		}
		if policy.AllowAuthenticated.Check(false, action) == nil {
			t.Errorf("action %d is permitted to callers who are not authenticated", action)
		}
		if err := policy.AllowAll.Check(false, action); err != nil {
			t.Errorf("without a policy: %v", err)
		}
	}
}
