package lifecycle_test

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"testing"
	"time"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

// growing is something that is done to some instances, whose cost is to be in proportion to
// how many they are, and to nothing else.
type growing struct {
	name string
	do   func(f *fixture, ids []string) error
}

var growings = []growing{
	{"start", func(f *fixture, ids []string) error {
		_, err := f.command(context.Background(), instance.VerbStart, ids...)
		return err
	}},
	{"start again", func(f *fixture, ids []string) error {
		_, err := f.command(context.Background(), instance.VerbStart, ids...)
		return err
	}},
	{"start under a client token", func(f *fixture, ids []string) error {
		_, err := f.Command(context.Background(), caller, lifecycle.CommandRequest{
			Verb: instance.VerbStart, InstanceIDs: ids, ClientToken: fmt.Sprintf("%s-%d", ids[0], len(ids)),
		})
		return err
	}},
	{"stop", func(f *fixture, ids []string) error {
		_, err := f.Command(context.Background(), caller, lifecycle.CommandRequest{Verb: instance.VerbStop, InstanceIDs: ids, FailureMode: lifecycle.PerInstance})
		return err
	}},
	{"wait", func(f *fixture, ids []string) error {
		_, err := f.Wait(context.Background(), caller, lifecycle.WaitRequest{InstanceIDs: ids, States: instance.States()})
		return err
	}},
	{"describe by ids", func(f *fixture, ids []string) error {
		// Something has changed since the last description, as on a busy system.
		change := sim.Change{IDs: []instance.ID{instance.ID(ids[0])}, SetTags: map[string]string{"changed": fmt.Sprint(time.Now().UnixNano())}}
		if err := f.sim.Change(context.Background(), []sim.Change{change}); err != nil {
			return err
		}
		if _, err := f.Refresh(context.Background(), []instance.ID{instance.ID(ids[0])}); err != nil {
			return err
		}
		_, err := f.Describe(context.Background(), caller, lifecycle.DescribeRequest{Filter: lifecycle.Filter{InstanceIDs: ids}, PageSize: lifecycle.MaxPageSize})
		return err
	}},
	{"refresh", func(f *fixture, ids []string) error {
		parsed := make([]instance.ID, len(ids))
		for i, id := range ids {
			parsed[i] = instance.ID(id)
		}
		_, err := f.Refresh(context.Background(), parsed)
		return err
	}},
	{"look up what does not exist", func(f *fixture, ids []string) error {
		absent := make([]string, len(ids))
		for i := range ids {
			absent[i] = "i-f" + ids[i][3:]
		}
		_, err := f.Describe(context.Background(), caller, lifecycle.DescribeRequest{Filter: lifecycle.Filter{InstanceIDs: absent}})
		if reasonOf(err) == instance.CodeNotFound {
			return nil
		}
		return fmt.Errorf("got %w, want that none exists", err)
	}},
	{"notices of changes from outside", func(f *fixture, ids []string) error {
		change := sim.Change{Action: sim.ActionTerminate}
		for _, id := range ids {
			change.IDs = append(change.IDs, instance.ID(id))
		}
		if err := f.sim.Change(context.Background(), []sim.Change{change}); err != nil {
			return err
		}
		_, err := f.Wait(context.Background(), caller, lifecycle.WaitRequest{InstanceIDs: ids, States: []instance.State{instance.StateShuttingDown}})
		return err
	}},
	{"watch from now", func(f *fixture, ids []string) error {
		_, err := f.Watch(context.Background(), caller, lifecycle.WatchRequest{FromNow: true, Filter: lifecycle.Filter{InstanceIDs: ids}})
		return err
	}},
}

// rounds is how often something is measured; the smallest counts, so that what the process
// does beside it does not.
const rounds = 4

// slackBytes is what may be allocated in the background of a measurement.
const slackBytes = 16 << 10

// allocated returns how many bytes something allocates that is done to n instances at a
// time, others each time.
func (g growing) allocated(t *testing.T, f *fixture, ids []string, n int) float64 {
	t.Helper()
	smallest := math.Inf(1)
	for round := range rounds {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := g.do(f, ids[round*n:(round+1)*n])
		runtime.ReadMemStats(&after)
		if err != nil {
			t.Fatal(err)
		}
		smallest = min(smallest, float64(after.TotalAlloc-before.TotalAlloc))
	}
	return smallest
}

// fleetOf serves a fleet of stopped instances that takes for ever to start, and of which
// nothing is polled. It returns their ids.
func fleetOf(t *testing.T, size int) (*fixture, []string) {
	t.Helper()
	f := start(t, options{poll: time.Hour, sim: sim.Config{Speed: 0.001, Fleet: []sim.Spec{{Count: size}}}})
	var ids []string
	for _, r := range f.journal.Snapshot().Records {
		ids = append(ids, string(r.Instance.ID))
	}
	if len(ids) != size {
		t.Fatalf("%d instances are known, want %d", len(ids), size)
	}
	return f, ids
}

// The cost for each instance stays within twice, for calls of 10 to 1,000.
func TestWhatACallCostsIsInProportionToWhatItNames(t *testing.T) {
	f, ids := fleetOf(t, rounds*lifecycle.MaxInstanceIDs)
	for _, g := range growings {
		before := math.Inf(1)
		for _, n := range []int{10, 100, lifecycle.MaxInstanceIDs} {
			bytes := g.allocated(t, f, ids, n)
			t.Logf("%s of %d: %.0f bytes each", g.name, n, bytes/float64(n))
			if limit := 2*before*float64(n) + slackBytes; bytes > limit {
				t.Errorf("%s of %d allocates %.0f bytes, want at most %.0f", g.name, n, bytes, limit)
			}
			before = bytes / float64(n)
		}
	}
}

// The cost stays within twice whatever the size of the fleet.
func TestWhatACallCostsDoesNotDependOnTheFleet(t *testing.T) {
	const n = 20
	costs := make(map[string]float64)
	for _, size := range []int{100, 10_000} {
		f, ids := fleetOf(t, size)
		for _, g := range growings {
			bytes := g.allocated(t, f, ids, n)
			t.Logf("%s of %d in a fleet of %d: %.0f bytes", g.name, n, size, bytes)
			before, found := costs[g.name]
			costs[g.name] = bytes
			if limit := 2*before + slackBytes; found && bytes > limit {
				t.Errorf("%s of %d in a fleet of %d allocates %.0f bytes, want at most %.0f", g.name, n, size, bytes, limit)
			}
		}
	}
}

// What a comparison of everything costs for each instance stays within twice.
func TestWhatAComparisonCostsIsInProportionToTheFleet(t *testing.T) {
	before := math.Inf(1)
	for _, size := range []int{100, 1000, 10_000} {
		f, ids := fleetOf(t, size)
		compare := growing{do: func(f *fixture, _ []string) error { _, err := f.Reconcile(context.Background()); return err }}
		bytes := compare.allocated(t, f, ids, 0)
		t.Logf("a fleet of %d: %.0f bytes each", size, bytes/float64(size))
		if limit := 2*before*float64(size) + slackBytes; bytes > limit {
			t.Errorf("comparing a fleet of %d allocates %.0f bytes, want at most %.0f", size, bytes, limit)
		}
		before = bytes / float64(size)
	}
}
