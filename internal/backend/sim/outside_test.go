package sim_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

func TestChange(t *testing.T) {
	running, spot := sim.Spec{ID: id, State: instance.StateRunning}, sim.Spec{ID: id, State: instance.StateRunning, Lifecycle: "spot", HibernationConfigured: true}
	protected := sim.Spec{ID: id, State: instance.StateRunning, DisableAPIStop: true, DisableAPITermination: true}
	store := sim.Spec{ID: id, State: instance.StateRunning, RootDeviceType: "instance-store"}
	tests := []struct {
		name   string
		spec   sim.Spec
		action sim.Action
		end    instance.State
		reason string // the code of the state reason, or of the refusal
	}{
		{"a start from the console", sim.Spec{ID: id}, sim.ActionStart, instance.StateRunning, ""},
		{"a stop from the console", running, sim.ActionStop, instance.StateStopped, "Client.UserInitiatedShutdown"},
		{"a termination from the console", running, sim.ActionTerminate, instance.StateTerminated, "Client.UserInitiatedShutdown"},
		{"a shutdown by the operating system", running, sim.ActionOSShutdown, instance.StateStopped, "Client.InstanceInitiatedShutdown"},
		{"a shutdown by the operating system despite protection", protected, sim.ActionOSShutdown, instance.StateStopped, "Client.InstanceInitiatedShutdown"},
		{"a shutdown by the operating system on an instance store", store, sim.ActionOSShutdown, instance.StateTerminated, "Client.InstanceInitiatedShutdown"},
		{"a Spot interruption that stops", spot, sim.ActionSpotStop, instance.StateStopped, "Server.SpotInstanceShutdown"},
		{"a Spot interruption that hibernates", spot, sim.ActionSpotHibernate, instance.StateStopped, "Server.SpotInstanceShutdown"},
		{"a Spot interruption that terminates", spot, sim.ActionSpotTerminate, instance.StateTerminated, "Server.SpotInstanceTermination"},
		{"a scheduled stop", running, sim.ActionScheduledStop, instance.StateStopped, "Server.ScheduledStop"},
		{"no stop of a protected instance", protected, sim.ActionStop, instance.StateRunning, instance.CodeOperationNotPermitted},
		{"no termination of a protected instance", protected, sim.ActionTerminate, instance.StateRunning, instance.CodeOperationNotPermitted},
		{"no interruption of an On-Demand Instance", running, sim.ActionSpotStop, instance.StateRunning, instance.CodeUnsupportedOperation},
		{"no shutdown of a stopped instance", sim.Spec{ID: id}, sim.ActionOSShutdown, instance.StateStopped, instance.CodeIncorrectInstanceState},
		{"no scheduled stop of an instance store", store, sim.ActionScheduledStop, instance.StateRunning, instance.CodeUnsupportedOperation},
		{"no start of a terminated instance", sim.Spec{ID: id, State: instance.StateTerminated}, sim.ActionStart, instance.StateTerminated, instance.CodeIncorrectInstanceState},
	}
	for _, test := range tests {
		bubble(t, test.name, func(t *testing.T) {
			b := open(t, sim.Config{Speed: 1, Fleet: []sim.Spec{test.spec}})
			err := b.Change(t.Context(), []sim.Change{{IDs: []instance.ID{id}, Action: test.action}})
			time.Sleep(settled)
			inst := inState(t, b, id, test.end)
			if err != nil {
				if e := asError(t, err); e.Kind != instance.KindPrecondition || e.Code != test.reason {
					t.Fatalf("error is %v, want %s", err, test.reason)
				}
				return
			}
			code := ""
			if inst.StateReason != nil {
				code = inst.StateReason.Code
			}
			if code != test.reason {
				t.Fatalf("state reason is %q, want %q", code, test.reason)
			}
			if inst.Simulator.Hibernated != (test.action == sim.ActionSpotHibernate) {
				t.Fatalf("hibernated is %t", inst.Simulator.Hibernated)
			}
		})
	}
	bubble(t, "an interrupted Spot Instance is started by EC2 alone", func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1, Fleet: []sim.Spec{spot}})
		change := func(a sim.Action) {
			t.Helper()
			if err := b.Change(t.Context(), []sim.Change{{IDs: []instance.ID{id}, Action: a}}); err != nil {
				t.Fatal(err)
			}
		}
		change(sim.ActionSpotStop)
		time.Sleep(settled)
		_, err := do(t, b, instance.VerbStart, id)
		refuses(t, err, instance.KindPrecondition, "IncorrectSpotRequestState",
			"You can't start the Spot Instance 'i-0123456789abcdef0' because the associated Spot Instance request is not in an appropriate state to support start.")
		change(sim.ActionStart)
		inState(t, b, id, instance.StatePending)
	})
	bubble(t, "attributes change, with one notice, and only those", func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1, Fleet: []sim.Spec{{ID: id, Tags: map[string]string{"a": "1", "b": "2"}}}})
		before := get(t, b, id)
		heard := listen(t, b)
		yes := true
		change := sim.Change{
			IDs: []instance.ID{id}, SetTags: map[string]string{"a": "3", "c": "4"}, RemoveTags: []string{"b", "d"},
			DisableAPIStop: &yes, DisableAPITermination: &yes, Type: "m5.large",
		}
		for range 2 { // the second changes nothing
			if err := b.Change(t.Context(), []sim.Change{change}); err != nil {
				t.Fatal(err)
			}
		}
		inst := get(t, b, id)
		if fmt.Sprint(inst.Tags) != "map[a:3 c:4]" || fmt.Sprint(before.Tags) != "map[a:1 b:2]" {
			t.Errorf("tags are %v, and were %v", inst.Tags, before.Tags)
		}
		if s := inst.Simulator; !s.DisableAPIStop || !s.DisableAPITermination || inst.Type != "m5.large" || s.CPUCredits != "" {
			t.Errorf("it is %+v, %+v", inst, s)
		}
		if n := len(heard()); n != 2 {
			t.Errorf("%d notices, want one beside the creation", n)
		}
	})
	bubble(t, "changes are made in order", func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1, Fleet: []sim.Spec{{ID: id}}})
		heard := listen(t, b)
		no := []instance.ID{id}
		err := b.Change(t.Context(), []sim.Change{{IDs: no, Type: "m5.large", Action: sim.ActionStart}, {IDs: no, Action: sim.ActionStop}, {IDs: no, Action: sim.ActionTerminate}})
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "states", statesOf(heard(), id), []instance.State{
			instance.StateStopped, instance.StateStopped, instance.StatePending, instance.StateStopping, instance.StateShuttingDown,
		})
	})
}

func TestBadChangesAreRefusedTogether(t *testing.T) {
	ids := []instance.ID{id}
	const gone instance.ID = "i-0eeeeeeeeeeeeeee0"
	good := sim.Change{IDs: ids, SetTags: map[string]string{"touched": ""}}
	fleet := []sim.Spec{{ID: id, State: instance.StateRunning}, {ID: other}}
	tests := []struct {
		name    string
		changes []sim.Change
		kind    instance.Kind
		code    string
		fields  []string
		named   []instance.ID
	}{
		{"their form", []sim.Change{
			good,
			{},
			{IDs: []instance.ID{"foobar", id, id}, Action: sim.ActionStart},
			{IDs: ids, Action: 99},
			{IDs: ids, SetTags: map[string]string{"aws:": ""}},
			{IDs: ids, SetTags: map[string]string{"a": ""}, RemoveTags: []string{"a"}},
			{IDs: ids, Type: "huge"},
		}, instance.KindInvalid, "", []string{
			"changes[1].instance_ids", "changes[1]", "changes[2].instance_ids[0]", "changes[2].instance_ids[2]", "changes[3].action",
			"changes[4].set_tags", "changes[5].remove_tags[0]", "changes[6].instance_type",
		}, nil},
		{"none", nil, instance.KindInvalid, "", []string{"changes"}, nil},
		{
			"instances that do not exist",
			[]sim.Change{good, {IDs: []instance.ID{gone}, Action: sim.ActionStart}, {IDs: []instance.ID{gone}, Action: sim.ActionStop}},
			instance.KindNotFound, instance.CodeNotFound, nil,
			[]instance.ID{gone},
		},
		{
			"states",
			[]sim.Change{good, {IDs: ids, Type: "m5.large"}, {IDs: []instance.ID{other}, Action: sim.ActionOSShutdown}},
			instance.KindPrecondition, instance.CodeIncorrectInstanceState, nil,
			[]instance.ID{id, other},
		},
		{
			"the state that an earlier change leads to",
			[]sim.Change{good, {IDs: ids, Action: sim.ActionStop}, {IDs: ids, Action: sim.ActionStart}},
			instance.KindPrecondition, instance.CodeIncorrectInstanceState, nil, ids,
		},
	}
	for _, test := range tests {
		bubble(t, test.name, func(t *testing.T) {
			b := open(t, sim.Config{Speed: 1, Fleet: fleet})
			e := asError(t, b.Change(t.Context(), test.changes))
			if e.Kind != test.kind || e.Code != test.code {
				t.Fatalf("error is %+v", e)
			}
			equal(t, "fields", fieldsOf(e), test.fields)
			equal(t, "instances named", e.InstanceIDs, test.named)
			if inst := inState(t, b, id, instance.StateRunning); len(inst.Tags) != 0 {
				t.Fatal("a part of it was done")
			}
		})
	}
}
