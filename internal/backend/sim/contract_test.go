package sim_test

import (
	"testing"

	"github.com/instanced/instanced/internal/backend/backendtest"
	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/lifecycle"
)

func TestContract(t *testing.T) {
	// Fast, but slow enough for transitional states to be seen.
	config := sim.Config{Speed: 500, Fleet: []sim.Spec{
		{Count: backendtest.Needed},
		{Count: backendtest.Needed, AvailabilityZone: "b"},
	}}
	backendtest.Run(t, func(t *testing.T) lifecycle.Backend { return open(t, config) })
}
