package sim_test

import (
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

func TestFaultMatching(t *testing.T) {
	tests := []struct {
		name    string
		match   sim.Match
		verb    instance.Verb
		strikes bool
	}{
		{"everything", sim.Match{}, instance.VerbStart, true},
		{"the verb", sim.Match{Verbs: []instance.Verb{instance.VerbStop, instance.VerbStart}}, instance.VerbStart, true},
		{"another verb", sim.Match{Verbs: []instance.Verb{instance.VerbStop}}, instance.VerbStart, false},
		{"the id", sim.Match{IDs: []instance.ID{other, id}}, instance.VerbStart, true},
		{"another id", sim.Match{IDs: []instance.ID{other}}, instance.VerbStart, false},
		{"the tag", sim.Match{Tags: map[string]string{"team": "a"}}, instance.VerbStart, true},
		{"another value", sim.Match{Tags: map[string]string{"team": "b"}}, instance.VerbStart, false},
		{"one tag too many", sim.Match{Tags: map[string]string{"team": "a", "env": ""}}, instance.VerbStart, false},
		{"the type", sim.Match{Types: []string{"m5.large"}}, instance.VerbStart, true},
		{"another type", sim.Match{Types: []string{"t3.micro"}}, instance.VerbStart, false},
		{"the zone", sim.Match{AvailabilityZones: []string{"us-east-1a"}}, instance.VerbStart, true},
		{"type but not zone", sim.Match{Types: []string{"m5.large"}, AvailabilityZones: []string{"us-east-1b"}}, instance.VerbStart, false},
	}
	for _, kind := range []sim.FaultKind{sim.Unauthorized, sim.Unavailable} {
		for _, test := range tests {
			bubble(t, fmt.Sprintf("%s by %s", kind, test.name), func(t *testing.T) {
				b := open(t, twoStopped(sim.Fault{Kind: kind, Match: test.match}))
				_, err := do(t, b, test.verb, id)
				if (err != nil) != test.strikes {
					t.Fatalf("error is %v", err)
				}
			})
		}
	}
	bubble(t, "reads are struck only when they are named", func(t *testing.T) {
		b := open(t, twoStopped(sim.Fault{Kind: sim.Unavailable, Remaining: 1}))
		all(t, b)
		get(t, b, id)
		if len(b.Faults()) != 1 {
			t.Fatal("a read used the fault up")
		}
		if err := b.SetFaults([]sim.Fault{{Kind: sim.Unavailable, Match: sim.Match{Verbs: []instance.Verb{"DescribeInstances"}}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Describe(t.Context(), instance.DescribeQuery{All: true}); err == nil {
			t.Fatal("the read was not struck")
		}
		must(t, b, instance.VerbStart, id)
	})
	bubble(t, "the next calls, counted once each, and what is left", func(t *testing.T) {
		b := open(t, twoStopped(sim.Fault{Kind: sim.InsufficientCapacity, Remaining: 2}, sim.Fault{Kind: sim.StuckTransition}))
		for left := 2; left > 0; left-- {
			if got := b.Faults(); len(got) != 2 || got[0].Remaining != left {
				t.Fatalf("faults are %+v, want %d left", got, left)
			}
			result, err := b.Execute(t.Context(), instance.Command{Verb: instance.VerbStart, IDs: []instance.ID{id, other}, PerInstance: true})
			if err != nil || len(result.Failures) != 2 {
				t.Fatalf("%+v, %v", result, err)
			}
		}
		if got := b.Faults(); len(got) != 1 || got[0].Kind != sim.StuckTransition {
			t.Fatalf("faults are %+v", got)
		}
		must(t, b, instance.VerbStart, id, other)
	})
	bubble(t, "with a probability", func(t *testing.T) {
		b := open(t, sim.Config{Faults: []sim.Fault{{Kind: sim.Unavailable, Probability: 0.3}}, Fleet: []sim.Spec{{ID: id}}})
		failed := 0
		for range 1000 {
			if _, err := do(t, b, instance.VerbReboot, id); asError(t, err).Code == instance.CodeServiceUnavailable {
				failed++
			}
		}
		if failed < 250 || failed > 350 {
			t.Fatalf("%d of 1000 calls failed, want about 300", failed)
		}
	})
}

func TestBadFaultsAreRefusedTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, twoStopped(sim.Fault{Kind: sim.Unavailable}))
		reason := &instance.StateReason{Code: "Client.InternalError"}
		bad := []struct {
			fault sim.Fault
			field string
		}{
			{sim.Fault{}, "faults[0].kind"},
			{sim.Fault{Kind: 99}, "faults[1].kind"},
			{sim.Fault{Kind: sim.Unavailable, Match: sim.Match{Verbs: []instance.Verb{"StartInstance"}}}, "faults[2].match.verbs[0]"},
			{sim.Fault{Kind: sim.InsufficientCapacity, Match: sim.Match{Verbs: []instance.Verb{instance.VerbStop}}}, "faults[3].match.verbs[0]"},
			{sim.Fault{Kind: sim.NoticeLost, Match: sim.Match{Verbs: []instance.Verb{instance.VerbStop}}}, "faults[4].match.verbs"},
			{sim.Fault{Kind: sim.Unavailable, Match: sim.Match{IDs: []instance.ID{"foobar"}}}, "faults[5].match.instance_ids[0]"},
			{sim.Fault{Kind: sim.Unavailable, Probability: 1.5}, "faults[6].probability"},
			{sim.Fault{Kind: sim.Unavailable, Probability: math.NaN()}, "faults[7].probability"},
			{sim.Fault{Kind: sim.Unavailable, Remaining: -1}, "faults[8].remaining"},
			{sim.Fault{Kind: sim.SlowCall}, "faults[9].delay"},
			{sim.Fault{Kind: sim.SlowCall, Delay: 2 * time.Hour}, "faults[10].delay"},
			{sim.Fault{Kind: sim.Unavailable, Delay: time.Second}, "faults[11].delay"},
			{sim.Fault{Kind: sim.Unavailable, StateReason: reason}, "faults[12].state_reason"},
			{sim.Fault{Kind: sim.FallBackToStopped, StateReason: &instance.StateReason{}}, "faults[13].state_reason.code"},
			{sim.Fault{Kind: sim.Unavailable, Partial: true}, "faults[14].partial"},
		}
		var faults []sim.Fault
		var want []string
		for _, f := range bad {
			faults = append(faults, f.fault)
			want = append(want, f.field)
		}
		e := asError(t, b.SetFaults(faults))
		if e.Kind != instance.KindInvalid {
			t.Fatalf("error is %v", e)
		}
		equal(t, "fields", fieldsOf(e), want)
		if len(b.Faults()) != 1 {
			t.Fatal("the plan was changed")
		}
		if e := asError(t, b.SetFaults(make([]sim.Fault, 1001))); fieldsOf(e)[0] != "faults" {
			t.Fatalf("error is %v", e)
		}
	})
}

func fieldsOf(e *instance.Error) []string {
	var fields []string
	for _, v := range e.Violations {
		fields = append(fields, v.Field)
	}
	return fields
}
