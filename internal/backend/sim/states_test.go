package sim_test

import (
	"testing"
	"time"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

func TestStates(t *testing.T) {
	// How long until an instance in a transitional state comes to rest, at speed 1.
	timings := []struct {
		name             string
		spec             sim.Spec
		cmd              instance.Command
		minimum, maximum time.Duration
		end              instance.State
	}{
		{"a start", sim.Spec{}, instance.Command{Verb: instance.VerbStart}, 10 * time.Second, 25 * time.Second, instance.StateRunning},
		{"a stop", sim.Spec{State: instance.StateRunning}, instance.Command{Verb: instance.VerbStop}, 15 * time.Second, 40 * time.Second, instance.StateStopped},
		{"a stop that skips the OS shutdown", sim.Spec{State: instance.StateRunning}, instance.Command{Verb: instance.VerbStop, SkipOSShutdown: true}, 5 * time.Second, 15 * time.Second, instance.StateStopped},
		{"a hibernation", sim.Spec{State: instance.StateRunning, HibernationConfigured: true}, instance.Command{Verb: instance.VerbStop, Hibernate: true}, 40 * time.Second, 90 * time.Second, instance.StateStopped},
		{"a termination", sim.Spec{State: instance.StateRunning}, instance.Command{Verb: instance.VerbTerminate}, 15 * time.Second, 40 * time.Second, instance.StateTerminated},
		{"a termination of a stopped instance", sim.Spec{}, instance.Command{Verb: instance.VerbTerminate}, 2 * time.Second, 6 * time.Second, instance.StateTerminated},
		{"a launch", sim.Spec{State: instance.StatePending}, instance.Command{}, 10 * time.Second, 25 * time.Second, instance.StateRunning},
		{"a stop under way", sim.Spec{State: instance.StateStopping}, instance.Command{}, 15 * time.Second, 40 * time.Second, instance.StateStopped},
		{"a termination under way", sim.Spec{State: instance.StateShuttingDown}, instance.Command{}, 15 * time.Second, 40 * time.Second, instance.StateTerminated},
	}
	for _, test := range timings {
		bubble(t, test.name, func(t *testing.T) {
			b := open(t, sim.Config{Speed: 1})
			heard := listen(t, b)
			begin := time.Now()
			test.spec.ID = id
			create(t, b, test.spec)
			if test.cmd.Verb != "" {
				test.cmd.IDs = []instance.ID{id}
				if _, err := b.Execute(t.Context(), test.cmd); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(settled)
			inState(t, b, id, test.end)
			notices := heard()
			last := notices[len(notices)-1]
			if last.State != test.end {
				t.Fatalf("the last notice is of %s, want %s", last.State, test.end)
			}
			within(t, test.name, last.OccurredAt.Sub(begin), test.minimum, test.maximum)
		})
	}

	bubble(t, "the default speed brings a start to running in 2 to 5 seconds", func(t *testing.T) {
		b := open(t, sim.Config{Speed: sim.DefaultSpeed})
		ids := create(t, b, sim.Spec{Count: 200})
		changes := must(t, b, instance.VerbStart, ids...)
		for _, c := range changes {
			within(t, "a start", c.After.Simulator.NextAt.Sub(c.At), 2*time.Second, 5*time.Second)
		}
		time.Sleep(5 * time.Second)
		for _, id := range ids {
			inState(t, b, id, instance.StateRunning)
		}
	})
	bubble(t, "at speed 0 transitions take no time, and their times still increase", func(t *testing.T) {
		b := open(t, sim.Config{})
		create(t, b, sim.Spec{ID: id})
		heard := listen(t, b)
		change := must(t, b, instance.VerbStart, id)[0]
		if change.Current != instance.StatePending {
			t.Fatalf("the answer is %s, want pending", change.Current)
		}
		inState(t, b, id, instance.StateRunning)
		must(t, b, instance.VerbStop, id)
		inState(t, b, id, instance.StateStopped)
		must(t, b, instance.VerbTerminate, id)
		inState(t, b, id, instance.StateTerminated)
		notices := heard()
		for i := 1; i < len(notices); i++ {
			if !notices[i].OccurredAt.After(notices[i-1].OccurredAt) {
				t.Fatalf("notice %d at %v is not after %v", i, notices[i].OccurredAt, notices[i-1].OccurredAt)
			}
		}
		equal(t, "states", statesOf(notices, id), []instance.State{
			instance.StateStopped, instance.StatePending, instance.StateRunning, instance.StateStopping,
			instance.StateStopped, instance.StateShuttingDown, instance.StateTerminated,
		})
	})
	bubble(t, "a terminated instance vanishes after one hour, whatever the speed", func(t *testing.T) {
		b := open(t, sim.Config{})
		ids := create(t, b, sim.Spec{Count: 3})
		must(t, b, instance.VerbTerminate, ids[1])
		time.Sleep(time.Hour - time.Second)
		inState(t, b, ids[1], instance.StateTerminated)
		time.Sleep(2 * time.Second)
		if get(t, b, ids[1]) != nil {
			t.Fatal("it is still there")
		}
		page, err := b.Describe(t.Context(), instance.DescribeQuery{All: true})
		if err != nil || len(page.Instances) != 2 {
			t.Fatalf("%d instances are left, %v, want 2", len(page.Instances), err)
		}
	})
}

func TestWhatAStartAndAStopChange(t *testing.T) {
	bubble(t, "reasons, launch time, addresses and memory", func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1})
		create(t, b, sim.Spec{ID: id, State: instance.StateRunning})
		first := get(t, b, id)
		if first.StateReason != nil || first.StateTransitionReason != "" || first.PublicIPAddress == "" {
			t.Fatalf("a running instance is %+v", first)
		}

		time.Sleep(time.Hour)
		must(t, b, instance.VerbStop, id)
		time.Sleep(settled)
		stopped := inState(t, b, id, instance.StateStopped)
		if got, want := stopped.StateTransitionReason, "User initiated (2000-01-01 01:00:00 GMT)"; got != want {
			t.Errorf("state transition reason is %q, want %q", got, want)
		}
		want := instance.StateReason{Code: "Client.UserInitiatedShutdown", Message: "Client.UserInitiatedShutdown: User initiated shutdown"}
		if stopped.StateReason == nil || *stopped.StateReason != want {
			t.Errorf("state reason is %v, want %v", stopped.StateReason, want)
		}
		if stopped.PublicIPAddress != "" || stopped.PrivateIPAddress != first.PrivateIPAddress {
			t.Errorf("addresses are %q and %q", stopped.PublicIPAddress, stopped.PrivateIPAddress)
		}
		if stopped.PublicDNSName != "" || stopped.PrivateDNSName != first.PrivateDNSName || first.PublicDNSName != first.UsualPublicDNSName() {
			t.Errorf("host names are %q and %q, and were %q and %q", stopped.PublicDNSName, stopped.PrivateDNSName, first.PublicDNSName, first.PrivateDNSName)
		}
		if !stopped.Simulator.MemoryLost || stopped.Simulator.Hibernated {
			t.Error("a stop has to lose the contents of RAM")
		}

		startedAt := time.Now().UTC()
		must(t, b, instance.VerbStart, id)
		pending := inState(t, b, id, instance.StatePending)
		if pending.StateReason != nil || pending.StateTransitionReason != "" {
			t.Errorf("a start left the reasons %v and %q", pending.StateReason, pending.StateTransitionReason)
		}
		if !pending.LaunchTime.Equal(startedAt.Truncate(time.Second)) {
			t.Errorf("launch time is %v, want %v", pending.LaunchTime, startedAt)
		}
		if pending.PublicIPAddress == "" || pending.PublicIPAddress == first.PublicIPAddress {
			t.Errorf("the public address is %q, and was %q", pending.PublicIPAddress, first.PublicIPAddress)
		}
		if !pending.HasUsualPublicDNSName() || !pending.HasUsualPrivateDNSName() || pending.ImageID != first.ImageID || pending.ImageID == "" {
			t.Errorf("host names are %q and %q, the image is %q", pending.PublicDNSName, pending.PrivateDNSName, pending.ImageID)
		}
		must(t, b, instance.VerbTerminate, id)
		time.Sleep(settled)
		if gone := inState(t, b, id, instance.StateTerminated); gone.PublicDNSName != "" || gone.PrivateDNSName != "" || gone.ImageID == "" {
			t.Errorf("once terminated, host names are %q and %q, the image is %q", gone.PublicDNSName, gone.PrivateDNSName, gone.ImageID)
		}
	})
	bubble(t, "a reboot changes nothing and makes no notice", func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1})
		create(t, b, sim.Spec{ID: id, State: instance.StateRunning})
		heard := listen(t, b)
		before := get(t, b, id)
		change := must(t, b, instance.VerbReboot, id)[0]
		if change.After != before || len(heard()) != 1 {
			t.Fatal("it did")
		}
	})
}

func TestHibernation(t *testing.T) {
	hibernate := instance.Command{Verb: instance.VerbStop, IDs: []instance.ID{id}, Hibernate: true}
	bubble(t, "keeps the contents of RAM", func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1})
		create(t, b, sim.Spec{ID: id, State: instance.StateRunning, HibernationConfigured: true})
		if _, err := b.Execute(t.Context(), hibernate); err != nil {
			t.Fatal(err)
		}
		time.Sleep(settled)
		inst := inState(t, b, id, instance.StateStopped)
		if !inst.Simulator.Hibernated || inst.Simulator.MemoryLost || inst.StateReason.Code != "Client.UserInitiatedHibernate" {
			t.Fatalf("it is %+v, %v", inst.Simulator, inst.StateReason)
		}
	})
	bubble(t, "soon after a start is a normal shutdown", func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1})
		create(t, b, sim.Spec{ID: id, HibernationConfigured: true})
		must(t, b, instance.VerbStart, id)
		time.Sleep(time.Minute)
		if _, err := b.Execute(t.Context(), hibernate); err != nil {
			t.Fatal(err)
		}
		if inst := inState(t, b, id, instance.StateStopping); inst.Simulator.Hibernated || !inst.Simulator.MemoryLost {
			t.Fatal("it hibernated")
		}
	})
	bubble(t, "two minutes after a start it works", func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1})
		create(t, b, sim.Spec{ID: id, HibernationConfigured: true})
		must(t, b, instance.VerbStart, id)
		time.Sleep(2 * time.Minute)
		if _, err := b.Execute(t.Context(), hibernate); err != nil {
			t.Fatal(err)
		}
		if inst := inState(t, b, id, instance.StateStopping); !inst.Simulator.Hibernated {
			t.Fatal("it did not hibernate")
		}
	})
}

func TestBilling(t *testing.T) {
	bubble(t, "a minute at least for each start, then by the second, nothing while stopped", func(t *testing.T) {
		b := open(t, sim.Config{})
		create(t, b, sim.Spec{ID: id})
		billed := func() int64 { return get(t, b, id).Simulator.Billed(time.Now()) }
		expect := func(when string, want int64) {
			t.Helper()
			if got := billed(); got != want {
				t.Fatalf("%s: %d seconds are billed, want %d", when, got, want)
			}
		}
		time.Sleep(time.Hour)
		expect("never started", 0)
		must(t, b, instance.VerbStart, id)
		time.Sleep(10 * time.Second)
		expect("after 10 seconds", 60)
		must(t, b, instance.VerbStop, id)
		time.Sleep(time.Hour)
		expect("stopped", 60)
		must(t, b, instance.VerbStart, id)
		time.Sleep(90 * time.Second)
		expect("after 90 more seconds", 150)
		must(t, b, instance.VerbTerminate, id)
		time.Sleep(time.Minute)
		expect("terminated", 150)
	})
	bubble(t, "pending and stopping are free, but not the stopping that hibernates", func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1})
		create(t, b, sim.Spec{ID: id, State: instance.StatePending, HibernationConfigured: true})
		if s := get(t, b, id).Simulator; !s.BilledFrom.IsZero() || s.Billed(time.Now()) != 0 {
			t.Fatal("pending is billed")
		}
		time.Sleep(10 * time.Minute)
		if _, err := b.Execute(t.Context(), instance.Command{Verb: instance.VerbStop, IDs: []instance.ID{id}, Hibernate: true}); err != nil {
			t.Fatal(err)
		}
		if get(t, b, id).Simulator.BilledFrom.IsZero() {
			t.Fatal("hibernating is free")
		}
		time.Sleep(settled)
		if s := get(t, b, id).Simulator; !s.BilledFrom.IsZero() || s.BilledSeconds < 600 {
			t.Fatalf("after the hibernation %+v", s)
		}
	})
	bubble(t, "a start that falls back is free", func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1, Faults: []sim.Fault{{Kind: sim.FallBackToStopped}}})
		create(t, b, sim.Spec{ID: id})
		must(t, b, instance.VerbStart, id)
		time.Sleep(settled)
		if s := inState(t, b, id, instance.StateStopped).Simulator; s.Billed(time.Now()) != 0 {
			t.Fatalf("%d seconds are billed", s.Billed(time.Now()))
		}
	})
}
