package sim_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

const id instance.ID = "i-0123456789abcdef0"

// inStates are specifications that lead to each state.
var inStates = map[instance.State]func(t *testing.T, b *sim.Backend){
	instance.StatePending: func(t *testing.T, b *sim.Backend) {
		create(t, b, sim.Spec{ID: id})
		must(t, b, instance.VerbStart, id)
	},
	instance.StateRunning:      func(t *testing.T, b *sim.Backend) { create(t, b, sim.Spec{ID: id, State: instance.StateRunning}) },
	instance.StateShuttingDown: func(t *testing.T, b *sim.Backend) { create(t, b, sim.Spec{ID: id, State: instance.StateShuttingDown}) },
	instance.StateTerminated:   func(t *testing.T, b *sim.Backend) { create(t, b, sim.Spec{ID: id, State: instance.StateTerminated}) },
	instance.StateStopping:     func(t *testing.T, b *sim.Backend) { create(t, b, sim.Spec{ID: id, State: instance.StateStopping}) },
	instance.StateStopped:      func(t *testing.T, b *sim.Backend) { create(t, b, sim.Spec{ID: id}) },
}

func TestResultByCurrentState(t *testing.T) {
	const (
		s1 = "The instance 'i-0123456789abcdef0' is not in a state from which it can be started."
		s3 = "This instance 'i-0123456789abcdef0' is not in a state from which it can be stopped."
	)
	r := func(state string) string {
		return "Cannot reboot instance i-0123456789abcdef0 that is currently in " + state + " state."
	}
	const pending, running, stopping, stopped, down, terminated = instance.StatePending, instance.StateRunning,
		instance.StateStopping, instance.StateStopped, instance.StateShuttingDown, instance.StateTerminated
	tests := []struct {
		verb    instance.Verb
		from    instance.State
		to      instance.State // the same when nothing is to be done
		message string
	}{
		{instance.VerbStart, pending, pending, ""},
		{instance.VerbStart, running, running, ""},
		{instance.VerbStart, stopping, stopping, s1},
		{instance.VerbStart, stopped, pending, ""},
		{instance.VerbStart, down, down, s1},
		{instance.VerbStart, terminated, terminated, s1},
		{instance.VerbStop, pending, stopping, ""},
		{instance.VerbStop, running, stopping, ""},
		{instance.VerbStop, stopping, stopping, ""},
		{instance.VerbStop, stopped, stopped, ""},
		{instance.VerbStop, down, down, s3},
		{instance.VerbStop, terminated, terminated, s3},
		{instance.VerbReboot, pending, pending, r("pending")},
		{instance.VerbReboot, running, running, ""},
		{instance.VerbReboot, stopping, stopping, r("stopping")},
		{instance.VerbReboot, stopped, stopped, r("stopped")},
		{instance.VerbReboot, down, down, r("shutting-down")},
		{instance.VerbReboot, terminated, terminated, ""},
		{instance.VerbTerminate, pending, down, ""},
		{instance.VerbTerminate, running, down, ""},
		{instance.VerbTerminate, stopping, down, ""},
		{instance.VerbTerminate, stopped, down, ""},
		{instance.VerbTerminate, down, down, ""},
		{instance.VerbTerminate, terminated, terminated, ""},
	}
	for _, test := range tests {
		bubble(t, fmt.Sprintf("%s of %s", test.verb, test.from), func(t *testing.T) {
			b := open(t, sim.Config{Speed: 1})
			inStates[test.from](t, b)
			before := get(t, b, id)
			result, err := do(t, b, test.verb, id)
			after := inState(t, b, id, test.to)
			if test.message != "" {
				refuses(t, err, instance.KindPrecondition, instance.CodeIncorrectInstanceState, test.message)
				if after != before {
					t.Fatal("a refused call changed the instance")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(result.Changes) != 1 || len(result.Failures) != 0 {
				t.Fatalf("result is %+v, want one change", result)
			}
			change := result.Changes[0]
			if change.ID != id || change.Previous != test.from || change.Current != test.to {
				t.Fatalf("change is %s: %s -> %s, want %s -> %s", change.ID, change.Previous, change.Current, test.from, test.to)
			}
			if change.At.IsZero() || change.After != after {
				t.Fatalf("change has time %v and image %v", change.At, change.After)
			}
			if test.from == test.to && after != before {
				t.Fatal("a call with nothing to do changed the instance")
			}
		})
	}
	for _, verb := range []instance.Verb{instance.VerbStart, instance.VerbStop, instance.VerbReboot, instance.VerbTerminate} {
		bubble(t, string(verb)+" of an instance that is gone", func(t *testing.T) {
			b := open(t, sim.Config{Speed: 1})
			create(t, b, sim.Spec{ID: id, State: instance.StateTerminated})
			time.Sleep(time.Hour + time.Second)
			_, err := do(t, b, verb, id)
			refuses(t, err, instance.KindNotFound, instance.CodeNotFound, "The instance ID 'i-0123456789abcdef0' does not exist")
		})
	}
	bubble(t, "StopInstances of a first launch", func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1})
		create(t, b, sim.Spec{ID: id, State: instance.StatePending})
		_, err := do(t, b, instance.VerbStop, id)
		refuses(t, err, instance.KindPrecondition, instance.CodeIncorrectInstanceState,
			"Instance 'i-0123456789abcdef0' cannot be stopped as it has never reached the 'running' state.")
		time.Sleep(settled)
		must(t, b, instance.VerbStop, id)
	})
}

func TestResultByAttribute(t *testing.T) {
	tests := []struct {
		name    string
		spec    sim.Spec
		verb    instance.Verb
		hib     bool
		code    string
		message string
	}{
		{
			"stop protection holds a stop",
			sim.Spec{State: instance.StateRunning, DisableAPIStop: true},
			instance.VerbStop, false, instance.CodeOperationNotPermitted,
			"The instance 'i-0123456789abcdef0' may not be stopped. Modify its 'disableApiStop' instance attribute and try again.",
		},
		{
			"termination protection holds a termination",
			sim.Spec{State: instance.StateRunning, DisableAPITermination: true},
			instance.VerbTerminate, false, instance.CodeOperationNotPermitted,
			"The instance 'i-0123456789abcdef0' may not be terminated. Modify its 'disableApiTermination' instance attribute and try again.",
		},
		{
			"stop protection holds a termination",
			sim.Spec{DisableAPIStop: true},
			instance.VerbTerminate, false, instance.CodeOperationNotPermitted,
			"The instance 'i-0123456789abcdef0' may not be terminated. Modify its 'disableApiStop' instance attribute and try again.",
		},
		{"termination protection does not hold a stop", sim.Spec{State: instance.StateRunning, DisableAPITermination: true}, instance.VerbStop, false, "", ""},
		{"stop protection does not hold a start", sim.Spec{DisableAPIStop: true}, instance.VerbStart, false, "", ""},
		{
			"an instance-store root cannot be stopped",
			sim.Spec{State: instance.StateRunning, RootDeviceType: "instance-store"},
			instance.VerbStop, false, instance.CodeUnsupportedOperation,
			"The instance 'i-0123456789abcdef0' does not have an 'ebs' root device type and cannot be stopped.",
		},
		{
			"an instance-store root cannot be started",
			sim.Spec{State: instance.StateRunning, RootDeviceType: "instance-store"},
			instance.VerbStart, false, instance.CodeUnsupportedOperation,
			"The instance 'i-0123456789abcdef0' does not have an 'ebs' root device type and cannot be started.",
		},
		{"an instance-store root can be terminated", sim.Spec{State: instance.StateRunning, RootDeviceType: "instance-store"}, instance.VerbTerminate, false, "", ""},
		{
			"a T3 on a Dedicated Host with unlimited credits cannot be started",
			sim.Spec{Type: "t3.large", Tenancy: "host", CPUCredits: "unlimited"},
			instance.VerbStart, false, instance.CodeUnsupportedOperation,
			"The instance 'i-0123456789abcdef0' cannot be started: the unlimited CPU credit option is not supported on Dedicated Hosts. Change its CPU credit option to standard, or its tenancy to default or dedicated.",
		},
		{"with standard credits it can", sim.Spec{Type: "t3.large", Tenancy: "host", CPUCredits: "standard"}, instance.VerbStart, false, "", ""},
		{"on dedicated hardware it can", sim.Spec{Type: "t3.large", Tenancy: "dedicated", CPUCredits: "unlimited"}, instance.VerbStart, false, "", ""},
		{
			"hibernation has to be configured",
			sim.Spec{State: instance.StateRunning},
			instance.VerbStop, true, instance.CodeUnsupportedHibernation,
			"The instance can't be hibernated because it was not configured at launch for hibernation: i-0123456789abcdef0",
		},
		{"hibernating what is stopped already is nothing to do", sim.Spec{}, instance.VerbStop, true, "", ""},
	}
	for _, test := range tests {
		bubble(t, test.name, func(t *testing.T) {
			b := open(t, sim.Config{Speed: 1})
			test.spec.ID = id
			create(t, b, test.spec)
			_, err := b.Execute(t.Context(), instance.Command{Verb: test.verb, IDs: []instance.ID{id}, Hibernate: test.hib})
			if test.code == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			refuses(t, err, instance.KindPrecondition, test.code, test.message)
			equal(t, "instances named", asError(t, err).InstanceIDs, []instance.ID{id})
		})
	}
}

func TestBatches(t *testing.T) {
	const a, c, gone, gone2 instance.ID = "i-0000000000000000a", "i-0000000000000000c", "i-0eeeeeeeeeeeeeee0", "i-0eeeeeeeeeeeeeee1"
	fleet := []sim.Spec{{ID: a}, {ID: id, State: instance.StateStopping}, {ID: c}}

	bubble(t, "one bad instance refuses the whole call and changes nothing", func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1, Fleet: fleet})
		_, err := do(t, b, instance.VerbStart, a, id, c)
		refuses(t, err, instance.KindPrecondition, instance.CodeIncorrectInstanceState,
			"The instance 'i-0123456789abcdef0' is not in a state from which it can be started.")
		equal(t, "instances named", asError(t, err).InstanceIDs, []instance.ID{id})
		inState(t, b, a, instance.StateStopped)
		inState(t, b, c, instance.StateStopped)
	})
	bubble(t, "all missing ids are named", func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1, Fleet: fleet})
		_, err := do(t, b, instance.VerbStart, a, gone, id, gone2)
		refuses(t, err, instance.KindNotFound, instance.CodeNotFound,
			"The instance IDs 'i-0eeeeeeeeeeeeeee0, i-0eeeeeeeeeeeeeee1' do not exist")
		equal(t, "instances named", asError(t, err).InstanceIDs, []instance.ID{gone, gone2})
		inState(t, b, a, instance.StateStopped)
	})
	bubble(t, "an answer for each instance, in the order asked for", func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1, Fleet: fleet})
		result, err := b.Execute(t.Context(), instance.Command{
			Verb: instance.VerbStart, IDs: []instance.ID{c, gone, id, a}, PerInstance: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(result.Changes) != 2 || result.Changes[0].ID != c || result.Changes[1].ID != a {
			t.Fatalf("changes are %+v, want %s and %s", result.Changes, c, a)
		}
		if len(result.Failures) != 2 {
			t.Fatalf("failures are %+v, want two", result.Failures)
		}
		refuses(t, result.Failures[0].Err, instance.KindNotFound, instance.CodeNotFound, "The instance ID 'i-0eeeeeeeeeeeeeee0' does not exist")
		refuses(t, result.Failures[1].Err, instance.KindPrecondition, instance.CodeIncorrectInstanceState,
			"The instance 'i-0123456789abcdef0' is not in a state from which it can be started.")
	})
	bubble(t, "a repeated id counts once", func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1, Fleet: fleet})
		if changes := must(t, b, instance.VerbStart, a, c, a); len(changes) != 2 {
			t.Fatalf("changes are %+v, want two", changes)
		}
		_, err := do(t, b, instance.VerbStart, gone, gone)
		refuses(t, err, instance.KindNotFound, instance.CodeNotFound, "The instance ID 'i-0eeeeeeeeeeeeeee0' does not exist")
	})
	bubble(t, "termination spares the zones of protected instances and reports failure", func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1, Fleet: []sim.Spec{
			{ID: a, AvailabilityZone: "a"},
			{ID: id, AvailabilityZone: "a", DisableAPITermination: true},
			{ID: c, AvailabilityZone: "b"},
		}})
		result, err := do(t, b, instance.VerbTerminate, a, id, c)
		refuses(t, err, instance.KindPrecondition, instance.CodeOperationNotPermitted,
			"The instance 'i-0123456789abcdef0' may not be terminated. Modify its 'disableApiTermination' instance attribute and try again.")
		if len(result.Changes) != 1 || result.Changes[0].ID != c || len(result.Failures) != 0 {
			t.Fatalf("result is %+v, want a change of %s", result, c)
		}
		inState(t, b, a, instance.StateStopped)
		inState(t, b, id, instance.StateStopped)
		inState(t, b, c, instance.StateShuttingDown)
	})
	bubble(t, "termination in one zone with a protected instance changes nothing", func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1, Fleet: []sim.Spec{{ID: a}, {ID: id, DisableAPITermination: true}}})
		result, err := do(t, b, instance.VerbTerminate, a, id)
		if len(result.Changes) != 0 || asError(t, err).Kind != instance.KindPrecondition {
			t.Fatalf("result is %+v, want none", result)
		}
		inState(t, b, a, instance.StateStopped)
	})
	bubble(t, "termination for each instance spares the protected one alone", func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1, Fleet: []sim.Spec{{ID: a}, {ID: id, DisableAPITermination: true}}})
		result, err := b.Execute(t.Context(), instance.Command{Verb: instance.VerbTerminate, IDs: []instance.ID{a, id}, PerInstance: true})
		if err != nil || len(result.Changes) != 1 || len(result.Failures) != 1 {
			t.Fatalf("result is %+v, %v, want a change and a failure", result, err)
		}
	})
}

func TestIDsAndValidation(t *testing.T) {
	tests := []struct {
		name    string
		verb    instance.Verb
		ids     []instance.ID
		options sim.Options
		kind    instance.Kind
		code    string
		message string
	}{
		{"well-formed but unknown", instance.VerbStart, []instance.ID{id}, sim.Options{}, instance.KindNotFound, instance.CodeNotFound, "The instance ID 'i-0123456789abcdef0' does not exist"},
		{"eight digits", instance.VerbStart, []instance.ID{"i-12345678"}, sim.Options{}, instance.KindNotFound, instance.CodeNotFound, "The instance ID 'i-12345678' does not exist"},
		{"malformed", instance.VerbStop, []instance.ID{id, "foobar"}, sim.Options{}, instance.KindInvalid, instance.CodeMalformedID, `Invalid id: "foobar"`},
		{"empty", instance.VerbStart, []instance.ID{""}, sim.Options{}, instance.KindInvalid, "MissingParameter", "The request must contain the parameter InstanceId"},
		{"no id, start", instance.VerbStart, nil, sim.Options{}, instance.KindInvalid, "InvalidParameterCombination", "No instances specified"},
		{"no id, terminate", instance.VerbTerminate, nil, sim.Options{NoIDsIsMissingParameter: true}, instance.KindInvalid, "InvalidParameterCombination", "No instances specified"},
		{"no id, start, the other way", instance.VerbStart, nil, sim.Options{NoIDsIsMissingParameter: true}, instance.KindInvalid, "MissingParameter", "The request must contain the parameter InstanceId"},
		{"too many ids", instance.VerbReboot, []instance.ID{"i-12345678", "i-12345679"}, sim.Options{MaxIDs: 1}, instance.KindInvalid, instance.CodeResourceCountExceeded, "You have exceeded the number of resources allowed in a single call of this type"},
		{"no such action", "RunInstances", []instance.ID{id}, sim.Options{}, instance.KindInvalid, "InvalidAction", "The action RunInstances is not valid for this web service."},
	}
	for _, test := range tests {
		for _, perInstance := range []bool{false, true} {
			if perInstance && test.kind == instance.KindNotFound {
				continue // a failure, not an error
			}
			bubble(t, fmt.Sprintf("%s, per instance %t", test.name, perInstance), func(t *testing.T) {
				b := open(t, sim.Config{Options: test.options})
				_, err := b.Execute(t.Context(), instance.Command{Verb: test.verb, IDs: test.ids, PerInstance: perInstance})
				refuses(t, err, test.kind, test.code, test.message)
			})
		}
	}
}

// TestExactlyOneCallerSeesStopped holds in real time: it is about the lock.
func TestExactlyOneCallerSeesStopped(t *testing.T) {
	for _, speed := range []float64{0, 1} {
		b := open(t, sim.Config{Speed: speed})
		create(t, b, sim.Spec{ID: id})
		var wg sync.WaitGroup
		saw := make(chan instance.State, 64)
		for range cap(saw) {
			wg.Go(func() {
				result, err := do(t, b, instance.VerbStart, id)
				if err != nil {
					t.Error(err)
					return
				}
				saw <- result.Changes[0].Previous
			})
		}
		wg.Wait()
		close(saw)
		stopped := 0
		for s := range saw {
			if s == instance.StateStopped {
				stopped++
			}
		}
		if stopped != 1 {
			t.Errorf("speed %v: %d callers saw stopped, want 1", speed, stopped)
		}
	}
}

func TestCanceledCallChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1})
		create(t, b, sim.Spec{ID: id})
		ctx := canceled(t)
		if _, err := b.Execute(ctx, instance.Command{Verb: instance.VerbStart, IDs: []instance.ID{id}}); !errors.Is(err, context.Canceled) {
			t.Fatalf("error is %v", err)
		}
		inState(t, b, id, instance.StateStopped)
	})
}

func TestClosedSimulatorRefusesCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1, Fleet: sim.BuiltinFleet()})
		heard := listen(t, b)
		must(t, b, instance.VerbStart, "i-1234567890abcdef0")
		b.Close()
		b.Close()
		heard()
		_, err := do(t, b, instance.VerbStop, "i-1234567890abcdef0")
		if e := asError(t, err); e.Kind != instance.KindUnavailable {
			t.Fatalf("error is %v", e)
		}
		for n, err := range b.Notices(t.Context()) {
			t.Fatalf("a closed simulator has the notice %+v, %v", n, err)
		}
	})
}
