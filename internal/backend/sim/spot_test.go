package sim_test

import (
	"testing"
	"time"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

const (
	oneTimeStop = "You can't stop the Spot Instance 'i-0123456789abcdef0' because it is associated with a one-time Spot Instance request. " +
		"You can only stop Spot Instances associated with persistent Spot Instance requests."
	notStartableYet = "You can't start the Spot Instance 'i-0123456789abcdef0' because the associated Spot Instance request is not in an appropriate state to support start."
)

func TestSpotRequests(t *testing.T) {
	spot := sim.Spec{ID: id, State: instance.StateRunning, Lifecycle: "spot"}
	oneTime := spot
	oneTime.SpotInstanceType = "one-time"
	t.Run("one that is one-time cannot be stopped", func(t *testing.T) {
		b := open(t, sim.Config{Fleet: []sim.Spec{oneTime}})
		if s := inState(t, b, id, instance.StateRunning).Simulator; s.SpotInstanceType != "one-time" || s.InterruptionBehavior != "terminate" {
			t.Errorf("it is %+v", s)
		}
		_, err := do(t, b, instance.VerbStop, id)
		refuses(t, err, instance.KindPrecondition, instance.CodeUnsupportedOperation, oneTimeStop)
		err = b.Change(t.Context(), []sim.Change{{IDs: []instance.ID{id}, Action: sim.ActionStop}})
		refuses(t, err, instance.KindPrecondition, instance.CodeUnsupportedOperation, oneTimeStop)
		if err := b.Change(t.Context(), []sim.Change{{IDs: []instance.ID{id}, Action: sim.ActionSpotStop}}); asError(t, err).Code != instance.CodeUnsupportedOperation {
			t.Error(err)
		}
		must(t, b, instance.VerbReboot, id)
		must(t, b, instance.VerbTerminate, id)
		_, err = do(t, b, instance.VerbStop, id)
		refuses(t, err, instance.KindPrecondition, instance.CodeIncorrectInstanceState, "This instance 'i-0123456789abcdef0' is not in a state from which it can be stopped.")
	})
	t.Run("one without a type is persistent", func(t *testing.T) {
		b := open(t, sim.Config{Fleet: []sim.Spec{spot}})
		if s := inState(t, b, id, instance.StateRunning).Simulator; s.SpotInstanceType != "persistent" || s.InterruptionBehavior != "stop" {
			t.Errorf("it is %+v", s)
		}
		must(t, b, instance.VerbStop, id)
	})
	t.Run("its protection from termination cannot be changed", func(t *testing.T) {
		b := open(t, sim.Config{Fleet: []sim.Spec{spot}})
		for _, on := range []bool{true, false} {
			err := b.Change(t.Context(), []sim.Change{{IDs: []instance.ID{id}, DisableAPITermination: &on}})
			refuses(t, err, instance.KindPrecondition, instance.CodeUnsupportedOperation, "Modifying 'disableApiTermination' is not supported for spot instances.")
		}
		on := true
		if err := b.Change(t.Context(), []sim.Change{{IDs: []instance.ID{id}, DisableAPIStop: &on}}); err != nil {
			t.Error(err)
		}
	})
	for name, test := range map[string]struct {
		hibernate bool
		delay     time.Duration
	}{"a stop": {false, 30 * time.Second}, "a hibernation": {true, 2 * time.Minute}} {
		bubble(t, "after "+name+" by a user its request takes a while until it can be started", func(t *testing.T) {
			hibernates := spot
			hibernates.InterruptionBehavior = "hibernate"
			first := open(t, sim.Config{Speed: 1, Fleet: []sim.Spec{hibernates}})
			if _, err := first.Execute(t.Context(), instance.Command{Verb: instance.VerbStop, IDs: []instance.ID{id}, Hibernate: test.hibernate}); err != nil {
				t.Fatal(err)
			}
			for get(t, first, id).State != instance.StateStopped {
				time.Sleep(time.Second)
			}
			_, err := do(t, first, instance.VerbStart, id)
			refuses(t, err, instance.KindPrecondition, "IncorrectSpotRequestState", notStartableYet)
			err = first.Change(t.Context(), []sim.Change{{IDs: []instance.ID{id}, Action: sim.ActionStart}})
			refuses(t, err, instance.KindPrecondition, "IncorrectSpotRequestState", notStartableYet)
			// Also for the next process.
			known := journaled(all(t, first))
			first.Close()
			second := sim.New(sim.Config{Speed: 1})
			defer second.Close()
			if err := second.Restore(known); err != nil {
				t.Fatal(err)
			}
			time.Sleep(test.delay - 2*time.Second)
			_, err = do(t, second, instance.VerbStart, id)
			refuses(t, err, instance.KindPrecondition, "IncorrectSpotRequestState", notStartableYet)
			time.Sleep(2 * time.Second)
			must(t, second, instance.VerbStart, id)
			time.Sleep(settled)
			inState(t, second, id, instance.StateRunning)
		})
	}
	bubble(t, "one of a version that did not keep the type can be stopped and started", func(t *testing.T) {
		first := open(t, sim.Config{Fleet: []sim.Spec{spot}})
		known := journaled(all(t, first))
		known[0].Simulator.SpotInstanceType, known[0].Simulator.InterruptionBehavior = "", ""
		second := sim.New(sim.Config{})
		defer second.Close()
		if err := second.Restore(known); err != nil {
			t.Fatal(err)
		}
		must(t, second, instance.VerbStop, id)
		must(t, second, instance.VerbStart, id)
	})
}

func TestSpotRequestsThatCannotBe(t *testing.T) {
	for name, spec := range map[string]sim.Spec{
		"one-time and stopped":               {Lifecycle: "spot", SpotInstanceType: "one-time"},
		"one-time, and stops":                {Lifecycle: "spot", SpotInstanceType: "one-time", InterruptionBehavior: "stop", State: instance.StateRunning},
		"persistent, and terminates":         {Lifecycle: "spot", InterruptionBehavior: "terminate"},
		"an unknown type":                    {Lifecycle: "spot", SpotInstanceType: "monthly"},
		"an unknown behavior":                {Lifecycle: "spot", InterruptionBehavior: "pause"},
		"a request of an On-Demand Instance": {SpotInstanceType: "persistent"},
		"termination protection":             {Lifecycle: "spot", DisableAPITermination: true},
	} {
		if _, err := open(t, sim.Config{}).Create(t.Context(), []sim.Spec{spec}); err == nil || asError(t, err).Kind != instance.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
