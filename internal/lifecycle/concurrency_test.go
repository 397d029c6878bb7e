package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

// hook runs something before a command, or before a description of instances by id, gets
// to the backend.
type hook struct {
	lifecycle.Backend
	execute  func(context.Context, instance.Command) error
	describe func()
}

func (h *hook) wrap(b lifecycle.Backend) lifecycle.Backend { h.Backend = b; return h }

func (h *hook) Execute(ctx context.Context, cmd instance.Command) (instance.Result, error) {
	if h.execute != nil {
		if err := h.execute(ctx, cmd); err != nil {
			return instance.Result{}, err
		}
	}
	return h.Backend.Execute(ctx, cmd)
}

func (h *hook) Describe(ctx context.Context, q instance.DescribeQuery) (instance.DescribePage, error) {
	if h.describe != nil && !q.All {
		h.describe()
	}
	return h.Backend.Describe(ctx, q)
}

// told is what a caller was told of a change that it caused.
type told struct {
	request string
	change  instance.StateChange
}

// checkTold checks that each change that a caller was told of is one event with its
// request as the cause.
func checkTold(t *testing.T, changes []*instance.Change, all []told) {
	t.Helper()
	for _, w := range all {
		n := 0
		for _, c := range changes {
			if c.Type == instance.ChangeState && c.Cause.RequestID == w.request && c.ID() == w.change.ID &&
				c.Before.State == w.change.Previous && c.After.State == w.change.Current {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%s was told %v -> %v of %s, which is recorded %d times", w.request, w.change.Previous, w.change.Current, w.change.ID, n)
		}
	}
}

// TestEveryChangeThatACallerWasToldOfIsRecordedOnceWithItsCause has callers start and stop
// the same instances at once, beside changes from outside, also at speeds at which
// transitions are over before answers are recorded.
func TestEveryChangeThatACallerWasToldOfIsRecordedOnceWithItsCause(t *testing.T) {
	for seed, speed := range []float64{0, 5000, 300} {
		t.Run(fmt.Sprint("speed ", speed), func(t *testing.T) {
			f := start(t, options{sim: sim.Config{Speed: speed, Fleet: []sim.Spec{{Count: 3}}}})
			var names []string
			for _, r := range f.journal.Snapshot().Records {
				names = append(names, string(r.Instance.ID))
			}
			var mu sync.Mutex
			var all []told
			var work sync.WaitGroup
			for worker := range 8 {
				work.Go(func() {
					random := rand.New(rand.NewPCG(uint64(seed), uint64(worker)))
					for round := range 40 {
						ids := names[random.IntN(3):]
						if random.IntN(6) == 0 {
							action := []sim.Action{sim.ActionStart, sim.ActionStop}[random.IntN(2)]
							_ = f.sim.Change(t.Context(), []sim.Change{{IDs: []instance.ID{instance.ID(ids[0])}, Action: action}}) // refused in some states
							continue
						}
						verb := []instance.Verb{instance.VerbStart, instance.VerbStop}[random.IntN(2)]
						me := lifecycle.Caller{Principal: "p", RequestID: fmt.Sprintf("%s-%d-%d", verb, worker, round)}
						r, err := f.Command(t.Context(), me, lifecycle.CommandRequest{Verb: verb, InstanceIDs: ids, FailureMode: lifecycle.PerInstance})
						if err != nil {
							t.Error(err)
							return
						}
						mu.Lock()
						for _, c := range r.Changes {
							if c.Previous != c.Current {
								all = append(all, told{me.RequestID, c})
							}
						}
						mu.Unlock()
					}
				})
			}
			work.Wait()
			changes := f.changes(t, names...)
			checkTold(t, changes, all)
			checkChains(t, changes)
		})
	}
}

// TestAnAnswerThatComesLateKeepsItsPlace has a start that acts after a stop by another, of
// an instance that somebody outside had started: each sees the state that the next begins
// with only after the others are recorded.
func TestAnAnswerThatComesLateKeepsItsPlace(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	h := &hook{execute: func(_ context.Context, cmd instance.Command) error {
		if cmd.Principal == "slow" {
			close(entered)
			<-release
		}
		return nil
	}}
	f := start(t, options{wrap: h.wrap})
	var work sync.WaitGroup
	do := func(who string, verb instance.Verb) {
		_, err := f.Command(t.Context(), lifecycle.Caller{Principal: who, RequestID: who}, lifecycle.CommandRequest{Verb: verb, InstanceIDs: []string{first}})
		if err != nil {
			t.Error(err)
		}
	}
	work.Go(func() { do("slow", instance.VerbStart) })
	<-entered
	if err := f.sim.Change(t.Context(), []sim.Change{{IDs: []instance.ID{first}, Action: sim.ActionStart}}); err != nil {
		t.Fatal(err)
	}
	do("quick", instance.VerbStop)
	close(release)
	work.Wait()
	f.wait(t, f.Cursor(), instance.StateRunning, first)
	got := steps(f.changes(t, first))
	// Whose start the first one was cannot be told while the slow one may have been it.
	if len(got) > 0 {
		got[0], got[1] = "stopped -> pending", "pending -> running"
	}
	expect(t, got, "stopped -> pending", "pending -> running",
		"running -> stopping by quick", "stopping -> stopped by quick",
		"stopped -> pending by slow", "pending -> running by slow")
}

func TestASlowCommandDoesNotHoldUpNotices(t *testing.T) {
	release := make(chan struct{})
	h := &hook{execute: func(_ context.Context, cmd instance.Command) error {
		if cmd.Principal == "slow" {
			<-release
		}
		return nil
	}}
	f := start(t, options{wrap: h.wrap})
	var work sync.WaitGroup
	defer work.Wait()
	defer close(release)
	for _, verb := range []instance.Verb{instance.VerbReboot, instance.VerbStart} {
		work.Go(func() {
			_, err := f.Command(t.Context(), lifecycle.Caller{Principal: "slow"}, lifecycle.CommandRequest{Verb: verb, InstanceIDs: []string{first}})
			if err != nil && reasonOf(err) != instance.CodeIncorrectInstanceState {
				t.Error(err)
			}
		})
	}
	before := f.Cursor()
	if err := f.sim.Change(t.Context(), []sim.Change{{IDs: []instance.ID{first}, Action: sim.ActionStart}}); err != nil {
		t.Fatal(err)
	}
	if r := f.wait(t, before, instance.StateRunning, first)[0]; r.Outcome != lifecycle.Reached {
		t.Errorf("waiting beside a slow command got %+v, want reached", r)
	}
	r, err := f.command(t.Context(), instance.VerbStop, first)
	if err != nil || r.Changes[0].Previous != instance.StateRunning {
		t.Errorf("stopping beside a slow command got %+v, %v", r.Changes, err)
	}
}

func TestASlowCommandIsTheCauseOfWhatItDid(t *testing.T) {
	for range 2 {
		f := start(t, options{sim: sim.Config{Faults: []sim.Fault{{Kind: sim.SlowCall, Delay: 1100 * time.Millisecond}}, Fleet: []sim.Spec{{Count: 20}}}})
		var work sync.WaitGroup
		var names []string
		for _, r := range f.journal.Snapshot().Records {
			names = append(names, string(r.Instance.ID))
			work.Go(func() {
				if _, err := f.command(t.Context(), instance.VerbStart, string(r.Instance.ID)); err != nil {
					t.Error(err)
				}
			})
		}
		work.Wait()
		for _, c := range f.changes(t, names...) {
			if c.Type == instance.ChangeState && c.Cause.Principal != caller.Principal {
				t.Errorf("%v -> %v of %s is said to come from outside", c.Before.State, c.After.State, c.ID())
			}
		}
		f.stop()
	}
}

func TestAnOutdatedDescriptionWritesNoHistory(t *testing.T) {
	f := start(t, options{sim: sim.Config{Speed: 100}, poll: 10 * time.Millisecond})
	lag := []sim.Fault{{Kind: sim.DescribeLag, Delay: 2 * time.Second, Match: sim.Match{Verbs: []instance.Verb{"DescribeInstances"}}}}
	if err := f.sim.SetFaults(lag); err != nil {
		t.Fatal(err)
	}
	r, err := f.command(t.Context(), instance.VerbStart, first)
	if err != nil {
		t.Fatal(err)
	}
	f.wait(t, r.Cursor, instance.StateRunning, first)
	// It returns once Describe shows what is known, which it does not for a while.
	if _, err := f.Refresh(t.Context(), []instance.ID{first}); err != nil {
		t.Fatal(err)
	}
	expect(t, steps(f.changes(t, first)), "stopped -> pending by tester", "pending -> running by tester")
}

func TestAnUnobservedRestartIsInferred(t *testing.T) {
	f := start(t, options{sim: sim.Config{Fleet: []sim.Spec{{ID: first, State: instance.StateRunning}}, Faults: []sim.Fault{{Kind: sim.NoticeLost}}}})
	for _, action := range []sim.Action{sim.ActionStop, sim.ActionStart} {
		if err := f.sim.Change(t.Context(), []sim.Change{{IDs: []instance.ID{first}, Action: action}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect(t, steps(f.changes(t, first)),
		"running -> stopping, inferred", "stopping -> stopped, inferred", "stopped -> pending, inferred", "pending -> running")
}

func TestWaitingForAStateThatTheFallBackLeadsTo(t *testing.T) {
	f := start(t, options{sim: sim.Config{Speed: 50}})
	if _, err := f.command(t.Context(), instance.VerbStart, first); err != nil {
		t.Fatal(err)
	}
	r, err := f.command(t.Context(), instance.VerbStop, first)
	if err != nil {
		// It was never running: EC2 refuses to stop it then.
		t.Fatal(err)
	}
	if got := f.wait(t, r.Cursor, instance.StateStopped, first)[0]; got.Outcome != lifecycle.Reached {
		t.Errorf("got %+v, want stopped to be reached", got)
	}
}

func TestAnInstanceThatCameAgainIsWaitedFor(t *testing.T) {
	f := start(t, options{})
	before := f.Cursor()
	if _, err := f.command(t.Context(), instance.VerbTerminate, first); err != nil {
		t.Fatal(err)
	}
	if err := f.sim.Reset(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		if _, err := f.command(t.Context(), instance.VerbStart, first); err != nil {
			t.Error(err)
		}
	})
	if got := f.wait(t, before, instance.StateRunning, first)[0]; got.Outcome != lifecycle.Reached {
		t.Errorf("got %+v, want running to be reached", got)
	}
	work.Wait()
}

func TestAWaitKeepsItsTimeout(t *testing.T) {
	release := make(chan struct{})
	h := &hook{describe: func() { <-release }}
	f := start(t, options{wrap: h.wrap})
	defer close(release)
	r, err := f.Wait(t.Context(), caller, lifecycle.WaitRequest{
		InstanceIDs: []string{first, "i-0123456789abcdef0"}, States: []instance.State{instance.StateRunning}, Timeout: new(50 * time.Millisecond),
	})
	if err != nil || r.Results[0].Outcome != lifecycle.TimedOut || r.Results[1].Outcome != lifecycle.TimedOut {
		t.Errorf("got %+v, %v; want timed out for both", r.Results, err)
	}
}

func TestTheFirstFailureEndsAWaitThatAsksForIt(t *testing.T) {
	f := start(t, options{sim: sim.Config{Fleet: []sim.Spec{{ID: first}, {ID: second, State: instance.StateTerminated}}}})
	r, err := f.Wait(t.Context(), caller, lifecycle.WaitRequest{
		InstanceIDs: []string{first, second}, States: []instance.State{instance.StateRunning}, Until: lifecycle.FirstFailure,
	})
	if err != nil || r.Results[0].Outcome != lifecycle.Unsettled || r.Results[1].Outcome != lifecycle.Unreachable {
		t.Errorf("got %+v, %v; want unsettled, unreachable", r.Results, err)
	}
}

func TestACommandThatDidNothingIsNoCause(t *testing.T) {
	f := start(t, options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.command(ctx, instance.VerbStart, first); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want that the caller has left", err)
	}
	before := f.Cursor()
	if err := f.sim.Change(t.Context(), []sim.Change{{IDs: []instance.ID{first}, Action: sim.ActionStart}}); err != nil {
		t.Fatal(err)
	}
	f.wait(t, before, instance.StateRunning, first)
	expect(t, steps(f.changes(t, first)), "stopped -> pending", "pending -> running")
}

func TestWhoeverWaitsForTheBackendIsToldWhenTheServiceEnds(t *testing.T) {
	looking, release := make(chan struct{}, 4), make(chan struct{})
	h := &hook{describe: func() { looking <- struct{}{}; <-release }}
	f := start(t, options{wrap: h.wrap})
	told := make(chan error, 2)
	for _, id := range []string{"i-0123456789abcdef0", "i-0123456789abcdef1"} {
		go func() {
			_, err := f.Describe(context.Background(), caller, lifecycle.DescribeRequest{Filter: lifecycle.Filter{InstanceIDs: []string{id}}})
			told <- err
		}()
	}
	<-looking
	f.stop()
	close(release)
	for range 2 {
		if e, ok := errors.AsType[*instance.Error](<-told); !ok || !slices.Contains([]instance.Kind{instance.KindUnavailable, instance.KindNotFound}, e.Kind) {
			t.Errorf("got %v, want that the service is unavailable", e)
		}
	}
}
