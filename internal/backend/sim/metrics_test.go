package sim_test

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

// scraped returns the values of a counter by the value of one of its labels.
func scraped(t *testing.T, registry *prometheus.Registry, name, label string) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				if family.GetName() == name && l.GetName() == label {
					values[l.GetValue()] += m.GetCounter().GetValue()
				}
			}
		}
	}
	return values
}

func TestMetricsCountCommandsByOutcome(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	b := open(t, sim.Config{Metrics: registry, Faults: []sim.Fault{
		{Kind: sim.AnswerLost, Match: sim.Match{Verbs: []instance.Verb{instance.VerbReboot}}, Remaining: 1},
		{Kind: sim.RequestLimitExceeded, Match: sim.Match{Verbs: []instance.Verb{instance.VerbTerminate}}, Remaining: 1},
	}})
	list := create(t, b, sim.Spec{Count: 2, State: instance.StateRunning})
	running := create(t, b, sim.Spec{Count: 1, State: instance.StateRunning})
	missing := instance.ID("i-0000000000000dead")
	must(t, b, instance.VerbStop, list...)
	for _, cmd := range []instance.Command{
		{Verb: instance.VerbStop, IDs: []instance.ID{missing}},
		{Verb: instance.VerbStop, IDs: []instance.ID{missing}, PerInstance: true},
		{Verb: instance.VerbStop, IDs: []instance.ID{list[0], missing}, PerInstance: true},
		{Verb: instance.VerbStop, IDs: list, DryRun: true},
		{Verb: instance.VerbReboot, IDs: running},
		{Verb: instance.VerbTerminate, IDs: list},
		{Verb: "MadeUpInstances", IDs: list},
	} {
		_, _ = b.Execute(t.Context(), cmd) // the outcome is in the metrics
	}
	_, _ = b.Execute(canceled(t), instance.Command{Verb: instance.VerbStop, IDs: list})
	verbs := scraped(t, registry, "instanced_sim_commands_total", "verb")
	if verbs["StopInstances"] != 6 || verbs["RebootInstances"] != 1 || verbs["TerminateInstances"] != 1 || verbs["_OTHER"] != 1 || len(verbs) != 5 {
		t.Errorf("commands by verb: %v", verbs)
	}
	outcomes := scraped(t, registry, "instanced_sim_commands_total", "outcome")
	for outcome, n := range map[string]float64{
		"ok": 1, instance.CodeNotFound: 1, "failed": 1, "partial": 1, instance.CodeDryRun: 1,
		"unknown_outcome": 1, instance.CodeRequestLimitExceeded: 1, "InvalidAction": 1, "canceled": 1,
	} {
		if outcomes[outcome] != n {
			t.Errorf("%v commands ended with %s, want %v", outcomes[outcome], outcome, n)
		}
	}
	if throttled := scraped(t, registry, "instanced_sim_throttled_requests_total", "action"); throttled["TerminateInstances"] != 1 || throttled["StartInstances"] != 0 {
		t.Errorf("throttled: %v", throttled)
	}
}

func TestMetricsCountThrottlesOfEmptyBuckets(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		registry := prometheus.NewPedanticRegistry()
		b := open(t, sim.Config{Metrics: registry, Throttle: true})
		list := create(t, b, sim.Spec{Count: 1})
		for range 7 {
			_, _ = do(t, b, instance.VerbStart, list...) // throttled in the end
		}
		if throttled := scraped(t, registry, "instanced_sim_throttled_requests_total", "action"); throttled["StartInstances"] != 2 {
			t.Errorf("throttled: %v", throttled)
		}
	})
}

func TestBucketsAreThoseThatThrottle(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		if list := open(t, sim.Config{}).Buckets(); len(list) != 0 {
			t.Errorf("without throttles there are %v", list)
		}
		b := open(t, sim.Config{Throttle: true})
		list := create(t, b, sim.Spec{Count: 10})
		must(t, b, instance.VerbStart, list...)
		time.Sleep(250 * time.Millisecond)
		levels := make(map[string]instance.TokenBucket)
		for _, bucket := range b.Buckets() {
			levels[bucket.Name] = bucket
		}
		for name, want := range map[string]instance.TokenBucket{
			"requests of StartInstances":    {Level: 4.5, Capacity: 5, Refill: 2},
			"instances of StartInstances":   {Level: 990.5, Capacity: 1000, Refill: 2},
			"requests of StopInstances":     {Level: 50, Capacity: 50, Refill: 5},
			"requests of DescribeInstances": {Level: 100, Capacity: 100, Refill: 20},
		} {
			if want.Name = name; levels[name] != want {
				t.Errorf("the bucket is %+v, want %+v", levels[name], want)
			}
		}
	})
}
