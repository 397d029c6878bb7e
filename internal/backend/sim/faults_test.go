package sim_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

const other instance.ID = "i-0fedcba9876543210"

// twoStopped has one instance in each of two zones.
func twoStopped(faults ...sim.Fault) sim.Config {
	return sim.Config{Speed: 1, Faults: faults, Fleet: []sim.Spec{
		{ID: id, Type: "m5.large", Tags: map[string]string{"team": "a"}},
		{ID: other, Type: "t3a.large", AvailabilityZone: "b"},
	}}
}

func TestErrors(t *testing.T) {
	tests := []struct {
		fault   sim.Fault
		kind    instance.Kind
		code    string
		message string
		retry   bool
		unknown bool
	}{
		{
			sim.Fault{Kind: sim.InsufficientCapacity},
			instance.KindExhausted, "InsufficientInstanceCapacity",
			"We currently do not have sufficient m5.large capacity in the Availability Zone you requested (us-east-1a). Our system will be working on provisioning additional capacity.", false, false,
		},
		{
			sim.Fault{Kind: sim.InstanceLimitExceeded},
			instance.KindExhausted, "InstanceLimitExceeded",
			"You have requested more instances (1) than your current instance limit of 20 allows for the specified instance type. Please visit http://aws.amazon.com/contact-us/ec2-request to request an adjustment to this limit.", false, false,
		},
		{
			sim.Fault{Kind: sim.VcpuLimitExceeded},
			instance.KindExhausted, "VcpuLimitExceeded",
			"You have requested more vCPU capacity than your current vCPU limit of 32 allows for the instance bucket that the specified instance type belongs to. Please visit http://aws.amazon.com/contact-us/ec2-request to request an adjustment to this limit.", false, false,
		},
		{sim.Fault{Kind: sim.RequestLimitExceeded}, instance.KindExhausted, "RequestLimitExceeded", throttledText, true, false},
		{
			sim.Fault{Kind: sim.Unavailable},
			instance.KindUnavailable, "Unavailable",
			"The server is overloaded and can't handle the request.", true, false,
		},
		{
			sim.Fault{Kind: sim.InternalError},
			instance.KindUnavailable, "InternalError",
			"An internal error has occurred", true, true,
		},
	}
	for _, test := range tests {
		bubble(t, test.fault.Kind.String(), func(t *testing.T) {
			b := open(t, twoStopped(test.fault))
			_, err := do(t, b, instance.VerbStart, id)
			refuses(t, err, test.kind, test.code, test.message)
			if e := asError(t, err); (e.RetryAfter > 0) != test.retry || e.OutcomeUnknown != test.unknown {
				t.Fatalf("retry after %v, outcome unknown %t", e.RetryAfter, e.OutcomeUnknown)
			}
			inState(t, b, id, instance.StateStopped)
		})
	}
	bubble(t, "answer lost", func(t *testing.T) {
		b := open(t, twoStopped(sim.Fault{Kind: sim.AnswerLost, Remaining: 1}))
		result, err := do(t, b, instance.VerbStart, id)
		if e := asError(t, err); e.Kind != instance.KindUnavailable || !e.OutcomeUnknown || len(result.Changes) != 0 {
			t.Fatalf("error is %+v, result %+v", e, result)
		}
		inState(t, b, id, instance.StatePending)
		must(t, b, instance.VerbStart, id)
	})
	bubble(t, "an answer that is an error is not lost", func(t *testing.T) {
		b := open(t, twoStopped(sim.Fault{Kind: sim.AnswerLost, Remaining: 1}))
		_, err := do(t, b, instance.VerbReboot, id)
		if e := asError(t, err); e.Code != instance.CodeIncorrectInstanceState || len(b.Faults()) != 1 {
			t.Fatalf("error is %v, faults left %v", e, b.Faults())
		}
	})
}

func TestCapacity(t *testing.T) {
	start := func(t *testing.T, b *sim.Backend, perInstance bool) (instance.Result, error) {
		return b.Execute(t.Context(), instance.Command{Verb: instance.VerbStart, IDs: []instance.ID{id, other}, PerInstance: perInstance})
	}
	inZoneB := sim.Match{AvailabilityZones: []string{"us-east-1b"}, Types: []string{"t3a.large"}}
	const text = "We currently do not have sufficient t3a.large capacity in the Availability Zone you requested (us-east-1b). Our system will be working on provisioning additional capacity."
	bubble(t, "nothing is started", func(t *testing.T) {
		b := open(t, twoStopped(sim.Fault{Kind: sim.InsufficientCapacity, Match: inZoneB}))
		result, err := start(t, b, false)
		refuses(t, err, instance.KindExhausted, instance.CodeInsufficientCapacity, text)
		if len(result.Changes) != 0 {
			t.Fatalf("result is %+v", result)
		}
		inState(t, b, id, instance.StateStopped)
	})
	bubble(t, "some are started anyway, and the result says which", func(t *testing.T) {
		b := open(t, twoStopped(sim.Fault{Kind: sim.InsufficientCapacity, Match: inZoneB, Partial: true}))
		result, err := start(t, b, false)
		refuses(t, err, instance.KindExhausted, instance.CodeInsufficientCapacity, text)
		if len(result.Changes) != 1 || result.Changes[0].ID != id || len(result.Failures) != 0 {
			t.Fatalf("result is %+v", result)
		}
		inState(t, b, id, instance.StatePending)
		inState(t, b, other, instance.StateStopped)
	})
	bubble(t, "an answer for each instance", func(t *testing.T) {
		b := open(t, twoStopped(sim.Fault{Kind: sim.InsufficientCapacity, Match: inZoneB}))
		result, err := start(t, b, true)
		if err != nil || len(result.Changes) != 1 || len(result.Failures) != 1 || result.Failures[0].ID != other {
			t.Fatalf("result is %+v, %v", result, err)
		}
	})
	bubble(t, "a running instance needs none", func(t *testing.T) {
		b := open(t, twoStopped())
		must(t, b, instance.VerbStart, id)
		if err := b.SetFaults([]sim.Fault{{Kind: sim.InsufficientCapacity, Remaining: 1}}); err != nil {
			t.Fatal(err)
		}
		must(t, b, instance.VerbStart, id)
		if len(b.Faults()) != 1 {
			t.Fatal("a start with nothing to do used the fault up")
		}
	})
	bubble(t, "of a Spot Instance", func(t *testing.T) {
		b := open(t, sim.Config{Faults: []sim.Fault{{Kind: sim.InsufficientCapacity}}})
		create(t, b, sim.Spec{ID: id, Lifecycle: "spot"})
		_, err := do(t, b, instance.VerbStart, id)
		refuses(t, err, instance.KindExhausted, instance.CodeInsufficientCapacity,
			"You can't start the Spot Instance 'i-0123456789abcdef0' because there is no available Spot capacity.")
	})
}

func TestFallBackToStopped(t *testing.T) {
	tests := []struct {
		name string
		give *instance.StateReason
		want instance.StateReason
		// transition is the state transition reason.
		transition string
	}{
		{
			"by default for a key that cannot be used", nil,
			instance.StateReason{Code: "Client.InternalError", Message: "Client.InternalError: Client error on launch"},
			"Server.InternalError",
		},
		{
			"for want of capacity", &instance.StateReason{Code: "Server.InsufficientInstanceCapacity"},
			instance.StateReason{Code: "Server.InsufficientInstanceCapacity", Message: "Server.InsufficientInstanceCapacity: Insufficient capacity to satisfy the request"},
			"Server.InsufficientInstanceCapacity",
		},
		{
			"for any reason", &instance.StateReason{Code: "Client.InvalidKMSKey.InvalidState", Message: "The KMS key provided is in an incorrect state"},
			instance.StateReason{Code: "Client.InvalidKMSKey.InvalidState", Message: "The KMS key provided is in an incorrect state"},
			"Client.InvalidKMSKey.InvalidState",
		},
	}
	for _, test := range tests {
		bubble(t, test.name, func(t *testing.T) {
			b := open(t, twoStopped(sim.Fault{Kind: sim.FallBackToStopped, StateReason: test.give, Match: sim.Match{IDs: []instance.ID{id}}}))
			heard := listen(t, b)
			changes := must(t, b, instance.VerbStart, id, other)
			if changes[0].Current != instance.StatePending {
				t.Fatal("the start was not accepted")
			}
			time.Sleep(settled)
			inState(t, b, other, instance.StateRunning)
			inst := inState(t, b, id, instance.StateStopped)
			if inst.StateReason == nil || *inst.StateReason != test.want || inst.StateTransitionReason != test.transition || inst.PublicIPAddress != "" {
				t.Fatalf("it stopped with %v, %q and address %q", inst.StateReason, inst.StateTransitionReason, inst.PublicIPAddress)
			}
			equal(t, "states", statesOf(heard(), id), []instance.State{instance.StateStopped, instance.StatePending, instance.StateStopped})
		})
	}
}

func TestSlowCall(t *testing.T) {
	slow := sim.Fault{Kind: sim.SlowCall, Delay: 10 * time.Second, Match: sim.Match{IDs: []instance.ID{id}}}
	bubble(t, "takes its time, alone", func(t *testing.T) {
		b := open(t, twoStopped(slow))
		begin := time.Now()
		go func() { _, _ = do(t, b, instance.VerbStart, id) }()
		synctest.Wait()
		must(t, b, instance.VerbStart, other)
		inState(t, b, id, instance.StateStopped)
		if time.Since(begin) != 0 {
			t.Fatal("the other call was slow, too")
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		inState(t, b, id, instance.StatePending)
	})
	bubble(t, "changes nothing if the caller gives up", func(t *testing.T) {
		b := open(t, twoStopped(slow))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := b.Execute(ctx, instance.Command{Verb: instance.VerbStart, IDs: []instance.ID{id}})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("error is %v", err)
		}
		time.Sleep(time.Minute)
		inState(t, b, id, instance.StateStopped)
	})
}

func TestStuckTransition(t *testing.T) {
	bubble(t, "stays until it is stopped", func(t *testing.T) {
		b := open(t, twoStopped(sim.Fault{Kind: sim.StuckTransition, Remaining: 1}))
		must(t, b, instance.VerbStart, id)
		time.Sleep(24 * time.Hour)
		inState(t, b, id, instance.StatePending)
		must(t, b, instance.VerbStop, id)
		time.Sleep(settled)
		inState(t, b, id, instance.StateStopped)
	})
	bubble(t, "a stop gets on when it is forced", func(t *testing.T) {
		b := open(t, twoStopped(sim.Fault{Kind: sim.StuckTransition, Match: sim.Match{Verbs: []instance.Verb{instance.VerbStop}}}))
		must(t, b, instance.VerbStart, id)
		time.Sleep(settled)
		must(t, b, instance.VerbStop, id)
		time.Sleep(time.Hour)
		must(t, b, instance.VerbStop, id)
		time.Sleep(time.Hour)
		inState(t, b, id, instance.StateStopping)
		if _, err := b.Execute(t.Context(), instance.Command{Verb: instance.VerbStop, IDs: []instance.ID{id}, Force: true}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(settled)
		inState(t, b, id, instance.StateStopped)
	})
	bubble(t, "a termination gets on when it is forced", func(t *testing.T) {
		b := open(t, twoStopped(sim.Fault{Kind: sim.StuckTransition}))
		must(t, b, instance.VerbTerminate, id)
		time.Sleep(time.Hour)
		inState(t, b, id, instance.StateShuttingDown)
		if _, err := b.Execute(t.Context(), instance.Command{Verb: instance.VerbTerminate, IDs: []instance.ID{id}, Force: true}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(settled)
		inState(t, b, id, instance.StateTerminated)
	})
}

func TestConsistency(t *testing.T) {
	bubble(t, "Describe shows what was, and never an instance before it was there", func(t *testing.T) {
		b := open(t, twoStopped(sim.Fault{Kind: sim.DescribeLag, Delay: 5 * time.Second}))
		time.Sleep(time.Minute)
		late := create(t, b, sim.Spec{})[0]
		must(t, b, instance.VerbStart, id)
		inState(t, b, id, instance.StateStopped)
		if get(t, b, late) != nil || len(all(t, b)) != 2 {
			t.Fatal("the new instance is there already")
		}
		if change := must(t, b, instance.VerbStart, id)[0]; change.Previous != instance.StatePending {
			t.Fatalf("commands lag, too: %s", change.Previous)
		}
		time.Sleep(5 * time.Second)
		inState(t, b, id, instance.StatePending)
		inState(t, b, late, instance.StateStopped)
		time.Sleep(settled)
		inState(t, b, id, instance.StateRunning)
	})
	bubble(t, "start and stop are repeatable, terminate is idempotent", func(t *testing.T) {
		b := open(t, twoStopped())
		for _, verb := range []instance.Verb{instance.VerbStart, instance.VerbStop, instance.VerbTerminate} {
			must(t, b, verb, id)
			after := get(t, b, id)
			must(t, b, verb, id)
			if get(t, b, id) != after {
				t.Fatalf("%s changed something the second time", verb)
			}
		}
	})
}
