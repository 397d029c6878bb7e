package sim_test

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

func TestALaunchRunsAfterAWhile(t *testing.T) {
	bubble(t, "launch", func(t *testing.T) {
		b := open(t, sim.Config{Speed: 1})
		launched, err := b.Launch(t.Context(), instance.Launch{ImageID: "ami-1", Type: "m5.large", Count: 2})
		if err != nil || len(launched) != 2 {
			t.Fatal(launched, err)
		}
		first, second := launched[0], launched[1]
		if first.State != instance.StatePending || first.ImageID != "ami-1" || *first.Simulator.Launched != *second.Simulator.Launched || first.ID == second.ID {
			t.Errorf("launched %+v and %+v", first.Simulator.Launched, second.Simulator.Launched)
		}
		if _, err := do(t, b, instance.VerbStop, first.ID); err == nil {
			t.Error("it can be stopped before it has been running")
		}
		time.Sleep(25 * time.Second) // the longest that a launch takes
		inState(t, b, first.ID, instance.StateRunning)
		if other, err := b.Launch(t.Context(), instance.Launch{ImageID: "ami-1", Type: "m5.large", Count: 1}); err != nil || other[0].Simulator.Launched.ReservationID == first.Simulator.Launched.ReservationID {
			t.Errorf("another launch: %v, %v", other, err)
		}
	})
}

func TestALaunchIsAnsweredInOneOrder(t *testing.T) {
	b := open(t, sim.Config{})
	launch := instance.Launch{ImageID: "ami-1", Type: "m5.large", Count: 20, ClientToken: "once"}
	first, err := b.Launch(t.Context(), launch)
	if err != nil {
		t.Fatal(err)
	}
	byID := func(a, b *instance.Instance) int { return strings.Compare(string(a.ID), string(b.ID)) }
	again, err := b.Launch(t.Context(), launch)
	if err != nil || !slices.IsSortedFunc(first, byID) || !slices.EqualFunc(first, again, func(a, b *instance.Instance) bool { return a.ID == b.ID }) {
		t.Errorf("first %v, then %v, %v", first, again, err)
	}
}

func TestALaunchIsRestoredWithItsToken(t *testing.T) {
	launch := instance.Launch{ImageID: "ami-1", Type: "m5.large", Tags: map[string]string{"b": "2", "a": "1"}, Count: 2, ClientToken: "once"}
	before, err := open(t, sim.Config{}).Launch(t.Context(), launch)
	if err != nil {
		t.Fatal(err)
	}
	b := sim.New(sim.Config{Seed: 2})
	defer b.Close()
	if err := b.Restore(before); err != nil {
		t.Fatal(err)
	}
	again, err := b.Launch(t.Context(), launch)
	if err != nil || len(again) != 2 || *again[0].Simulator.Launched != *before[0].Simulator.Launched {
		t.Errorf("%v, %v", again, err)
	}
	launch.Tags = map[string]string{"a": "1"}
	if _, err := b.Launch(t.Context(), launch); err == nil {
		t.Error("the token of another launch is accepted")
	}
	launch.Tags, launch.Forgotten = before[0].Tags, "a key"
	if _, err := b.Launch(t.Context(), launch); err == nil {
		t.Error("the token of a launch that asked for something else beside it is accepted")
	}
}

func TestTagsAreRemovedByValueAndAllTogether(t *testing.T) {
	b := open(t, sim.Config{})
	id := create(t, b, sim.Spec{Tags: map[string]string{"a": "1", "b": "2", "c": ""}})[0]
	for _, step := range []struct {
		change sim.Change
		want   map[string]string
	}{
		{sim.Change{RemoveTagValues: map[string]string{"a": "2", "c": "", "d": "4"}}, map[string]string{"a": "1", "b": "2"}},
		{sim.Change{RemoveAllTags: true, SetTags: map[string]string{"e": "5"}}, map[string]string{"e": "5"}},
		{sim.Change{RemoveAllTags: true}, nil},
	} {
		step.change.IDs = []instance.ID{id}
		if err := b.Change(t.Context(), []sim.Change{step.change}); err != nil {
			t.Fatal(err)
		}
		if got := get(t, b, id).Tags; !maps.Equal(got, step.want) {
			t.Errorf("%+v: tags %v, want %v", step.change, got, step.want)
		}
	}
}
