package ec2

import (
	"testing"

	"github.com/instanced/instanced/internal/instance"
)

// The service looks for the effects of a call for as long as the call may take.
func TestACallTakesNoLongerThanDefaultCallTimeout(t *testing.T) {
	b := New(Config{})
	defer b.Close()
	if got := b.cfg.CallTimeout; got != instance.DefaultCallTimeout {
		t.Errorf("a call may take %v, want %v", got, instance.DefaultCallTimeout)
	}
}
