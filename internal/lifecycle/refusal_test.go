package lifecycle_test

import (
	"testing"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

func TestTheStateThatCausedARejectionCanBeSeen(t *testing.T) {
	for name, mode := range map[string]lifecycle.FailureMode{"whole call": lifecycle.WholeCall, "per instance": lifecycle.PerInstance} {
		t.Run(name, func(t *testing.T) {
			f := start(t, options{sim: sim.Config{Speed: 0.01, Fleet: []sim.Spec{{ID: first, State: instance.StateRunning}}, Faults: []sim.Fault{{Kind: sim.NoticeLost}}}})
			if err := f.sim.Change(t.Context(), []sim.Change{{IDs: []instance.ID{first}, Action: sim.ActionStop}}); err != nil {
				t.Fatal(err)
			}
			r, err := f.Command(t.Context(), caller, lifecycle.CommandRequest{Verb: instance.VerbStart, InstanceIDs: []string{first}, FailureMode: mode})
			if len(r.Failures) == 1 {
				err = r.Failures[0].Err
			}
			if reasonOf(err) != instance.CodeIncorrectInstanceState {
				t.Fatalf("starting an instance that is stopping: got %v", err)
			}
			d, err := f.Describe(t.Context(), caller, lifecycle.DescribeRequest{Filter: lifecycle.Filter{InstanceIDs: []string{first}}})
			if err != nil || d.Instances[0].State != instance.StateStopping {
				t.Errorf("an instance that could not be started because it is stopping is described as %+v, %v", d.Instances, err)
			}
		})
	}
}

func TestACommandThatLeavesAnInstanceAloneMakesNothingUp(t *testing.T) {
	f := start(t, options{sim: sim.Config{Fleet: []sim.Spec{{ID: first, State: instance.StateRunning}}, Faults: []sim.Fault{{Kind: sim.NoticeLost}}}})
	if err := f.sim.Change(t.Context(), []sim.Change{{IDs: []instance.ID{first}, Action: sim.ActionStop}}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.command(t.Context(), instance.VerbStop, first); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect(t, steps(f.changes(t, first)), "running -> stopping, inferred", "stopping -> stopped")
}
