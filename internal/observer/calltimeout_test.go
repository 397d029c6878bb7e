package observer

import (
	"testing"

	"github.com/instanced/instanced/internal/instance"
)

// A new owner reconciles again once the calls that an earlier owner sent must have arrived.
func TestTheSecondReconciliationComesAfterDefaultCallTimeout(t *testing.T) {
	if got := New(Config{}).cfg.CallTimeout; got != instance.DefaultCallTimeout {
		t.Errorf("the second reconciliation comes after %v, want %v", got, instance.DefaultCallTimeout)
	}
}
