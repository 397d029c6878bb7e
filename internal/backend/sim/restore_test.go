package sim_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

// all describes every instance.
func all(t testing.TB, b *sim.Backend) []*instance.Instance {
	t.Helper()
	page, err := b.Describe(t.Context(), instance.DescribeQuery{All: true})
	if err != nil {
		t.Fatal(err)
	}
	return page.Instances
}

// journaled is what a journal gives back: copies without monotonic clocks.
func journaled(known []*instance.Instance) []*instance.Instance {
	var out []*instance.Instance
	for _, inst := range known {
		out = append(out, inst.Clone())
	}
	return out
}

func TestRestore(t *testing.T) {
	bubble(t, "goes on where the last process stopped", func(t *testing.T) {
		config := sim.Config{Speed: 1, Seed: 7, Fleet: sim.BuiltinFleet(), Faults: sim.BuiltinFaults()}
		first := open(t, config)
		must(t, first, instance.VerbStart, "i-1234567890abcdef0", "i-0a0000000000000fa")
		must(t, first, instance.VerbStop, "i-0a000000000000001")
		must(t, first, instance.VerbTerminate, "i-0a000000000000011")
		known := journaled(all(t, first))
		first.Close()

		time.Sleep(time.Second)
		second := sim.New(config)
		defer second.Close()
		if err := second.Restore(known); err != nil {
			t.Fatal(err)
		}
		for i, inst := range all(t, second) {
			if !inst.Equal(known[i]) {
				t.Fatalf("%s is not as it was", inst.ID)
			}
		}
		heard := listen(t, second)
		time.Sleep(settled)
		notices := heard()
		for _, want := range []struct {
			id    instance.ID
			state instance.State
		}{
			{"i-1234567890abcdef0", instance.StateRunning},
			{"i-0a0000000000000fa", instance.StateStopped},
			{"i-0a000000000000001", instance.StateStopped},
			{"i-0a000000000000011", instance.StateTerminated},
		} {
			inst := inState(t, second, want.id, want.state)
			equal(t, "states heard", statesOf(notices, want.id), []instance.State{want.state})
			if want.id == "i-0a0000000000000fa" && inst.StateReason.Code != "Client.InternalError" {
				t.Errorf("the reason of the fall back is %v", inst.StateReason)
			}
		}
	})
	bubble(t, "gives what an earlier version recorded an image and host names", func(t *testing.T) {
		first := open(t, sim.Config{})
		create(t, first, sim.Spec{ID: id, State: instance.StateRunning})
		launched, err := first.Launch(t.Context(), instance.Launch{ImageID: "ami-0123456789abcdef0", Type: "t3.micro", Count: 2, ClientToken: "t"})
		if err != nil {
			t.Fatal(err)
		}
		known := all(t, first)
		older := journaled(known)
		for _, i := range older {
			s := i.Simulator
			if s.Launched != nil {
				s.Launched.ImageID, s.LaunchIndex = i.ImageID, uint64(i.AMILaunchIndex)
			}
			i.ImageID, i.AMILaunchIndex, i.PrivateDNSName, i.PublicDNSName = "", 0, "", ""
		}
		first.Close()
		second := sim.New(sim.Config{})
		defer second.Close()
		if err := second.Restore(older); err != nil {
			t.Fatal(err)
		}
		for n, i := range all(t, second) {
			if !i.Equal(known[n]) {
				t.Errorf("restored as\n%+v, want\n%+v", i, known[n])
			}
		}
		if i := older[0]; i.ImageID != "" {
			t.Error("what the journal has was modified")
		}
		again, err := second.Launch(t.Context(), instance.Launch{ImageID: "ami-0123456789abcdef0", Type: "t3.micro", Count: 2, ClientToken: "t"})
		if err != nil || len(again) != 2 || again[0].ID != launched[0].ID {
			t.Errorf("the client token launches %v, %v", again, err)
		}
	})
	bubble(t, "completes what is overdue at once, at its planned time", func(t *testing.T) {
		first := open(t, sim.Config{Speed: 1})
		create(t, first, sim.Spec{ID: id})
		must(t, first, instance.VerbStart, id)
		known := journaled(all(t, first))
		first.Close()
		time.Sleep(time.Hour)
		second := sim.New(sim.Config{Speed: 1})
		defer second.Close()
		if err := second.Restore(known); err != nil {
			t.Fatal(err)
		}
		inst := inState(t, second, id, instance.StateRunning)
		planned := known[0].Simulator.NextAt
		if got := inst.Simulator.Billed(time.Now()); got != int64(time.Since(planned)/time.Second)+1 {
			t.Errorf("%d seconds are billed since %v", got, planned)
		}
		notices := listen(t, second)()
		if len(notices) != 1 || !notices[0].OccurredAt.Equal(planned) {
			t.Fatalf("notices are %+v, want one of %v", notices, planned)
		}
	})
	bubble(t, "lets terminated instances vanish when they would have", func(t *testing.T) {
		first := open(t, sim.Config{})
		create(t, first, sim.Spec{ID: id})
		must(t, first, instance.VerbTerminate, id)
		known := journaled(all(t, first))
		first.Close()
		time.Sleep(30 * time.Minute)
		second := sim.New(sim.Config{})
		defer second.Close()
		if err := second.Restore(known); err != nil {
			t.Fatal(err)
		}
		inState(t, second, id, instance.StateTerminated)
		time.Sleep(31 * time.Minute)
		if get(t, second, id) != nil {
			t.Fatal("it is still there")
		}
	})
	bubble(t, "does not use ids again", func(t *testing.T) {
		first := open(t, sim.Config{Seed: 1})
		before := create(t, first, sim.Spec{Count: 10})
		known := journaled(all(t, first))[:5]
		first.Close()
		second := sim.New(sim.Config{Seed: 1})
		defer second.Close()
		if err := second.Restore(known); err != nil {
			t.Fatal(err)
		}
		for _, id := range create(t, second, sim.Spec{Count: 10}) {
			if slices.Contains(before, id) {
				t.Fatalf("%s was given out again", id)
			}
		}
	})
	bubble(t, "replaces everything, and can be called again", func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1, Fleet: []sim.Spec{{ID: id}}})
		known := journaled(all(t, b))
		must(t, b, instance.VerbStart, id)
		create(t, b, sim.Spec{Count: 3})
		if err := b.Restore(known); err != nil {
			t.Fatal(err)
		}
		heard := listen(t, b)
		time.Sleep(settled)
		inState(t, b, id, instance.StateStopped)
		if n := len(all(t, b)); n != 1 || len(heard()) != 0 {
			t.Fatalf("%d instances are left, want 1, and no notices", n)
		}
	})
	bubble(t, "an empty journal creates the fleet", func(t *testing.T) {
		b := open(t, sim.Config{Fleet: sim.BuiltinFleet()})
		if n := len(all(t, b)); n != len(sim.BuiltinFleet()) {
			t.Fatalf("%d instances", n)
		}
	})
	t.Run("reports what is wrong", func(t *testing.T) {
		tests := []struct {
			name   string
			config sim.Config
			known  []*instance.Instance
			want   string
		}{
			{"with the speed", sim.Config{Speed: -1}, nil, "simulator speed -1"},
			{"with the fleet", sim.Config{Fleet: []sim.Spec{{Type: "huge"}}}, nil, "instances[0].instance_type"},
			{"with the faults", sim.Config{Faults: []sim.Fault{{}}}, nil, "faults[0].kind"},
			{"with what is known", sim.Config{}, []*instance.Instance{{ID: id}}, "was not recorded by the simulator"},
		}
		for _, test := range tests {
			b := sim.New(test.config)
			defer b.Close()
			if err := b.Restore(test.known); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: error is %v, want %q", test.name, err, test.want)
			}
		}
	})
}

func TestReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1, Fleet: sim.BuiltinFleet(), Faults: sim.BuiltinFaults()})
		fresh := all(t, b)
		must(t, b, instance.VerbStart, "i-1234567890abcdef0")
		create(t, b, sim.Spec{Count: 5})
		if err := b.SetFaults(nil); err != nil {
			t.Fatal(err)
		}
		if err := b.Reset(); err != nil {
			t.Fatal(err)
		}
		again := all(t, b)
		if len(again) != len(fresh) || len(b.Faults()) != len(sim.BuiltinFaults()) {
			t.Fatalf("%d instances and %d faults", len(again), len(b.Faults()))
		}
		for i := range fresh {
			if !again[i].Equal(fresh[i]) {
				t.Errorf("%s is not as it was", fresh[i].ID)
			}
		}
	})
}

// TestSameSeedSameEvents runs one story several times.
func TestSameSeedSameEvents(t *testing.T) {
	story := func(t *testing.T, seed uint64) (events []string) {
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			b := open(t, sim.Config{Seed: seed, Speed: 1, Throttle: true})
			heard := listen(t, b)
			ids := create(t, b, sim.Spec{Count: 20}, sim.Spec{Count: 5, State: instance.StateRunning, AvailabilityZone: "b"})
			err := b.SetFaults([]sim.Fault{
				{Kind: sim.InsufficientCapacity, Probability: 0.3, Partial: true},
				{Kind: sim.FallBackToStopped, Probability: 0.3},
				{Kind: sim.NoticeLost, Probability: 0.1},
				{Kind: sim.NoticeDoubled, Probability: 0.2},
				{Kind: sim.Unavailable, Probability: 0.2},
				{Kind: sim.StuckTransition, Probability: 0.1},
			})
			if err != nil {
				t.Fatal(err)
			}
			for round := range 6 {
				for i, id := range ids {
					verb := instance.VerbStart
					if (i+round)%3 == 0 {
						verb = instance.VerbStop
					}
					result, err := do(t, b, verb, id, ids[(i+1)%len(ids)])
					events = append(events, fmt.Sprintf("%s %v %v", verb, len(result.Changes), err))
				}
				time.Sleep(20 * time.Second)
			}
			time.Sleep(settled)
			for _, n := range heard() {
				events = append(events, fmt.Sprintf("%s %s %v %s", n.ID, n.State, n.OccurredAt.Sub(begin), n.Instance.PublicIPAddress))
			}
		})
		return events
	}
	first := story(t, 1)
	if again := story(t, 1); !slices.Equal(first, again) {
		t.Error("the same seed gave other events")
	}
	if other := story(t, 2); slices.Equal(first, other) {
		t.Error("another seed gave the same events")
	}
}

// TestDelaysDoNotDependOnScheduling starts instances from many goroutines.
func TestDelaysDoNotDependOnScheduling(t *testing.T) {
	run := func(t *testing.T) (delays []time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			b := open(t, sim.Config{Seed: 3, Speed: 1})
			ids := create(t, b, sim.Spec{Count: 100})
			for _, id := range ids {
				go func() {
					_, _ = b.Execute(t.Context(), instance.Command{Verb: instance.VerbStart, IDs: []instance.ID{id}})
				}()
			}
			synctest.Wait()
			for _, inst := range all(t, b) {
				delays = append(delays, inst.Simulator.NextAt.Sub(inst.LaunchTime))
			}
		})
		return delays
	}
	equal(t, "delays", run(t), run(t))
}
