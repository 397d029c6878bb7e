package lifecycle_test

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/metricstest"
)

// A thousand starts take their tokens, of which the bucket gains two a second.
func TestBucketsOfTheBackendAreExported(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	f := start(t, options{metrics: registry, sim: sim.Config{Throttle: true, Fleet: []sim.Spec{{Count: 1000}}}})
	ids := make([]string, 0, 1000)
	known, _ := f.sim.Describe(t.Context(), instance.DescribeQuery{All: true})
	for _, inst := range known.Instances {
		ids = append(ids, string(inst.ID))
	}
	if _, err := f.command(t.Context(), instance.VerbStart, ids...); err != nil {
		t.Fatal(err)
	}
	metricstest.Expect(t, registry, map[string]float64{
		`instanced_backend_bucket_capacity_tokens{bucket="instances of StartInstances"}`:          1000,
		`instanced_backend_bucket_refill_tokens_per_second{bucket="instances of StartInstances"}`: 2,
		`instanced_backend_bucket_tokens{bucket="instances of StopInstances"}`:                    1000,
	})
	if left := metricstest.Samples(t, registry)[`instanced_backend_bucket_tokens{bucket="instances of StartInstances"}`]; left > 500 {
		t.Errorf("%v tokens are left after a start of 1000 instances", left)
	}
}
