package observer

import (
	"testing"

	"github.com/instanced/instanced/internal/instance"
)

// What an earlier owner sent last is looked for as long as a call of the backend may take.
func TestACallMayTakeEffectAsLongAsTheBackendLetsItTake(t *testing.T) {
	if got := New(Config{}).cfg.CallTimeout; got != instance.DefaultCallTimeout {
		t.Errorf("the service looks for what was sent for %v, want %v", got, instance.DefaultCallTimeout)
	}
}
