package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
	"github.com/instanced/instanced/internal/lifecycle"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	first  = "i-0000000000000000a"
	second = "i-0000000000000000b"
)

var caller = lifecycle.Caller{Principal: "tester", RequestID: "request-1"}

// fixture is a service on a real journal and the simulator.
type fixture struct {
	*lifecycle.Service
	journal *journal.Journal
	sim     *sim.Backend
	dir     string
	// stop ends the service; it is called at the end of the test at the latest.
	stop context.CancelFunc
}

type options struct {
	sim  sim.Config
	dir  string
	wrap func(lifecycle.Backend) lifecycle.Backend
	poll time.Duration

	endpoints []string
	address   string
	ttl       time.Duration

	callTimeout time.Duration
	retention   time.Duration
	reconcile   time.Duration
	consistency time.Duration
	maxTokens   int

	metrics prometheus.Registerer
}

func start(t *testing.T, o options) *fixture {
	t.Helper()
	if o.dir == "" {
		o.dir = t.TempDir()
	}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	config := journal.Config{DataDir: o.dir, MinFreeDisk: -1, Logger: log, Address: o.address, OwnerTTL: o.ttl, Retention: o.retention, MaxClientTokens: o.maxTokens, Metrics: o.metrics}
	if o.endpoints != nil {
		config.DataDir, config.Endpoints = "", o.endpoints
	}
	j, err := journal.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if o.sim.Fleet == nil {
		o.sim.Fleet = []sim.Spec{{ID: first, Tags: map[string]string{"Name": "first"}}, {ID: second}}
	}
	f := &fixture{journal: j, sim: sim.New(o.sim), dir: o.dir}
	var backend lifecycle.Backend = f.sim
	if o.wrap != nil {
		backend = o.wrap(backend)
	}
	f.Service = lifecycle.New(lifecycle.Config{
		Journal: j, Backend: backend, Logger: log, PollInterval: o.poll, CallTimeout: o.callTimeout,
		ReconcileInterval: o.reconcile, Consistency: o.consistency, Metrics: o.metrics,
	})
	ctx, cancel := context.WithCancel(context.Background())
	f.stop = cancel
	var running sync.WaitGroup
	running.Go(func() {
		if err := f.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
		f.sim.Close()
		if err := j.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-f.Ready():
	case <-time.After(10 * time.Second):
		t.Fatal("the service is not ready after 10 s")
	}
	return f
}

// crash opens a copy of what is on disk now, as after a kill.
func (f *fixture) crash(t *testing.T, o options) *fixture {
	t.Helper()
	o.dir = t.TempDir()
	if err := os.CopyFS(o.dir, os.DirFS(f.dir)); err != nil {
		t.Fatal(err)
	}
	return start(t, o)
}

func (f *fixture) command(ctx context.Context, verb instance.Verb, ids ...string) (lifecycle.CommandResponse, error) {
	return f.Command(ctx, caller, lifecycle.CommandRequest{Verb: verb, InstanceIDs: ids})
}

func (f *fixture) wait(t *testing.T, cursor string, state instance.State, ids ...string) []lifecycle.WaitResult {
	t.Helper()
	r, err := f.Wait(t.Context(), caller, lifecycle.WaitRequest{
		InstanceIDs: ids, States: []instance.State{state}, AfterCursor: cursor, Timeout: new(20 * time.Second),
	})
	if err != nil {
		t.Fatal(err)
	}
	return r.Results
}

// changes returns the recorded changes of the instances, oldest first.
func (f *fixture) changes(t *testing.T, ids ...string) []*instance.Change {
	t.Helper()
	var all []*instance.Change
	req := lifecycle.EventsRequest{InstanceIDs: ids, PageSize: 3}
	for {
		page, err := f.Events(t.Context(), caller, req)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Events {
			all = append(all, e.Change)
		}
		if page.NextPageToken == "" {
			return all
		}
		req.PageToken = page.NextPageToken
	}
}

// steps renders changes of state, with who caused them.
func steps(changes []*instance.Change) []string {
	var out []string
	for _, c := range changes {
		if c.Type != instance.ChangeState {
			continue
		}
		s := fmt.Sprintf("%v -> %v", c.Before.State, c.After.State)
		if !c.Cause.External() {
			s += " by " + c.Cause.Principal
		}
		if c.Inferred {
			s += ", inferred"
		}
		out = append(out, s)
	}
	return out
}

func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func reasonOf(err error) string {
	if e, ok := errors.AsType[*instance.Error](err); ok {
		return e.Reason + e.Code
	}
	return fmt.Sprint(err)
}

func TestAStartIsRecordedOnceWithItsCause(t *testing.T) {
	f := start(t, options{})
	r, err := f.command(t.Context(), instance.VerbStart, first)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Changes) != 1 || r.Changes[0].Previous != instance.StateStopped || r.Changes[0].Current != instance.StatePending {
		t.Fatalf("got %+v, want stopped -> pending", r.Changes)
	}
	f.wait(t, r.Cursor, instance.StateRunning, first)
	expect(t, steps(f.changes(t, first)), "stopped -> pending by tester", "pending -> running by tester")
}

func TestOfConcurrentCallersOneCausesTheStart(t *testing.T) {
	const callers = 64
	f := start(t, options{sim: sim.Config{Speed: 0.01}})
	var claims atomic.Int32
	var claimer atomic.Pointer[string]
	var work sync.WaitGroup
	for i := range callers {
		work.Go(func() {
			me := lifecycle.Caller{Principal: fmt.Sprintf("caller-%d", i), RequestID: "r"}
			r, err := f.Command(t.Context(), me, lifecycle.CommandRequest{Verb: instance.VerbStart, InstanceIDs: []string{first, second}})
			if err != nil {
				t.Error(err)
				return
			}
			if r.Changes[0].Previous == instance.StateStopped {
				claims.Add(1)
				claimer.Store(&me.Principal)
			}
			d, err := f.Describe(t.Context(), me, lifecycle.DescribeRequest{})
			if err != nil || d.Instances[0].State != instance.StatePending || d.Instances[1].State != instance.StatePending {
				t.Errorf("a caller that was told of pending does not see it: %v, %v", d.Instances, err)
			}
		})
	}
	work.Wait()
	if claims.Load() != 1 {
		t.Fatalf("%d callers saw stopped, want 1", claims.Load())
	}
	expect(t, steps(f.changes(t, first)), "stopped -> pending by "+*claimer.Load())
}

func TestChangesFromOutsideAreExternal(t *testing.T) {
	f := start(t, options{})
	before := f.Cursor()
	if err := f.sim.Change(t.Context(), []sim.Change{{IDs: []instance.ID{first}, Action: sim.ActionStart}}); err != nil {
		t.Fatal(err)
	}
	f.wait(t, before, instance.StateRunning, first)
	expect(t, steps(f.changes(t, first)), "stopped -> pending", "pending -> running")
}

func TestAChangeOfTagsLeavesWhatFollowsFromACommandItsCause(t *testing.T) {
	f := start(t, options{sim: sim.Config{Speed: 20}})
	r, err := f.command(t.Context(), instance.VerbStart, first)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.sim.Change(t.Context(), []sim.Change{{IDs: []instance.ID{first}, SetTags: map[string]string{"team": "red"}}}); err != nil {
		t.Fatal(err)
	}
	f.wait(t, r.Cursor, instance.StateRunning, first)
	expect(t, steps(f.changes(t, first)), "stopped -> pending by tester", "pending -> running by tester")
}

func TestALostAnswerIsRecordedWithItsCause(t *testing.T) {
	f := start(t, options{sim: sim.Config{
		Faults: []sim.Fault{{Kind: sim.AnswerLost, Remaining: 1}, {Kind: sim.NoticeLost}},
	}})
	before := f.Cursor()
	_, err := f.command(t.Context(), instance.VerbStart, first)
	if e, ok := errors.AsType[*instance.Error](err); !ok || !e.OutcomeUnknown {
		t.Fatalf("got %v, want an error that leaves the outcome open", err)
	}
	f.wait(t, before, instance.StateRunning, first)
	expect(t, steps(f.changes(t, first)), "stopped -> pending by tester, inferred", "pending -> running by tester")
}

func TestAStaleDescriptionIsNotRecorded(t *testing.T) {
	f := start(t, options{sim: sim.Config{Speed: 50}, poll: 10 * time.Millisecond})
	lag := []sim.Fault{{Kind: sim.DescribeLag, Delay: 500 * time.Millisecond, Match: sim.Match{Verbs: []instance.Verb{"DescribeInstances"}}}}
	if err := f.sim.SetFaults(lag); err != nil {
		t.Fatal(err)
	}
	r, err := f.command(t.Context(), instance.VerbStart, first)
	if err != nil {
		t.Fatal(err)
	}
	f.wait(t, r.Cursor, instance.StateRunning, first)
	expect(t, steps(f.changes(t, first)), "stopped -> pending by tester", "pending -> running by tester")
}

func TestAStartThatFellBackEndsTheWait(t *testing.T) {
	f := start(t, options{sim: sim.Config{Faults: []sim.Fault{{Kind: sim.FallBackToStopped, Remaining: 1}}}})
	r, err := f.command(t.Context(), instance.VerbStart, first)
	if err != nil {
		t.Fatal(err)
	}
	result := f.wait(t, r.Cursor, instance.StateRunning, first)[0]
	if result.Outcome != lifecycle.Unreachable || result.Reason == nil || result.Reason.Code != "Client.InternalError" {
		t.Fatalf("got %+v, want unreachable for Client.InternalError", result)
	}
	// A fall-back from before the cursor counts no more.
	r, err = f.command(t.Context(), instance.VerbStart, first)
	if err != nil {
		t.Fatal(err)
	}
	if result := f.wait(t, r.Cursor, instance.StateRunning, first)[0]; result.Outcome != lifecycle.Reached {
		t.Fatalf("got %+v, want reached", result)
	}
}

func TestOnlyTerminatedIsHopelessWithoutACursor(t *testing.T) {
	f := start(t, options{sim: sim.Config{Fleet: []sim.Spec{{ID: first}, {ID: second, State: instance.StateTerminated}}}})
	r, err := f.Wait(t.Context(), caller, lifecycle.WaitRequest{
		InstanceIDs: []string{first, second}, States: []instance.State{instance.StateRunning}, Timeout: new(50 * time.Millisecond),
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.Results[0].Outcome != lifecycle.TimedOut || r.Results[1].Outcome != lifecycle.Unreachable {
		t.Errorf("got %v, %v; want timed out, unreachable", r.Results[0].Outcome, r.Results[1].Outcome)
	}
}

// counting counts the Describe calls that name ids, each of which waits until opened.
type counting struct {
	lifecycle.Backend
	calls atomic.Int32
	open  chan struct{}
}

func (c *counting) Describe(ctx context.Context, q instance.DescribeQuery) (instance.DescribePage, error) {
	if !q.All {
		c.calls.Add(1)
		<-c.open
	}
	return c.Backend.Describe(ctx, q)
}

func TestAnUnknownIDIsLookedUpOnceForEverybody(t *testing.T) {
	c := &counting{open: make(chan struct{})}
	f := start(t, options{wrap: func(b lifecycle.Backend) lifecycle.Backend { c.Backend = b; return c }})
	unknown := "i-0123456789abcdef0"
	var asked, work sync.WaitGroup
	for range 32 {
		asked.Add(1)
		work.Go(func() {
			asked.Done()
			_, err := f.Describe(t.Context(), caller, lifecycle.DescribeRequest{Filter: lifecycle.Filter{InstanceIDs: []string{unknown}}})
			if reasonOf(err) != instance.CodeNotFound {
				t.Errorf("got %v, want %s", err, instance.CodeNotFound)
			}
		})
	}
	asked.Wait()
	close(c.open)
	work.Wait()
	// Those who came while the first call was under way share the second.
	if n := c.calls.Load(); n < 1 || n > 2 {
		t.Errorf("%d calls, want 1 or 2", n)
	}
	if _, err := f.Describe(t.Context(), caller, lifecycle.DescribeRequest{Filter: lifecycle.Filter{InstanceIDs: []string{unknown}}}); reasonOf(err) != instance.CodeNotFound {
		t.Errorf("got %v, want %s", err, instance.CodeNotFound)
	}
	if n := c.calls.Load(); n > 2 {
		t.Errorf("a call was made for an id that was just looked up: %d", n)
	}
}

func TestPagesOfADescriptionAreBoundToTheirFilter(t *testing.T) {
	f := start(t, options{sim: sim.Config{Fleet: []sim.Spec{{Count: 25}}}})
	var seen []instance.ID
	req := lifecycle.DescribeRequest{PageSize: 10, Filter: lifecycle.Filter{States: []instance.State{instance.StateStopped, instance.StateRunning}}}
	for {
		r, err := f.Describe(t.Context(), caller, req)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range r.Instances {
			seen = append(seen, i.ID)
		}
		if r.NextPageToken == "" {
			break
		}
		req.PageToken = r.NextPageToken
		slices.Reverse(req.Filter.States) // the same filter
	}
	if len(seen) != 25 || !slices.IsSorted(seen) {
		t.Errorf("got %d instances, sorted %v; want 25, true", len(seen), slices.IsSorted(seen))
	}
	req.Filter.States = req.Filter.States[:1]
	if _, err := f.Describe(t.Context(), caller, req); reasonOf(err) != instance.ReasonInvalidRequest {
		t.Errorf("a page token with another filter: got %v", err)
	}
}

// TestTheJournalEndsInWhatDescribeSays feeds the observer with lost, doubled, late and
// reordered notices while commands and changes from outside go on.
func TestTheJournalEndsInWhatDescribeSays(t *testing.T) {
	seeds := 12
	if testing.Short() {
		seeds = 3
	}
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			observe(t, seed)
		})
	}
}

func observe(t *testing.T, seed uint64) {
	const fleet = 8
	f := start(t, options{poll: 20 * time.Millisecond, sim: sim.Config{
		Seed:  seed,
		Speed: 2000,
		Fleet: []sim.Spec{{Count: fleet, State: instance.StateStopped}},
	}})
	if err := f.sim.SetFaults([]sim.Fault{
		{Kind: sim.NoticeLost, Probability: 0.3},
		{Kind: sim.NoticeDoubled, Probability: 0.3},
		{Kind: sim.NoticeLate, Probability: 0.3, Delay: 30 * time.Millisecond},
		{Kind: sim.NoticeReordered, Probability: 0.3},
		{Kind: sim.AnswerLost, Probability: 0.1},
		{Kind: sim.FallBackToStopped, Probability: 0.2},
		{Kind: sim.DescribeLag, Probability: 0.2, Delay: 5 * time.Millisecond, Match: sim.Match{Verbs: []instance.Verb{"DescribeInstances"}}},
	}); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range f.journal.Snapshot().Records {
		names = append(names, string(r.Instance.ID))
	}
	var work sync.WaitGroup
	for worker := range 4 {
		work.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(worker)))
			for range 40 {
				id := names[random.IntN(fleet)]
				verb := []instance.Verb{instance.VerbStart, instance.VerbStop, instance.VerbStart, instance.VerbStop, instance.VerbReboot}[random.IntN(5)]
				if random.IntN(4) == 0 {
					action := []sim.Action{sim.ActionStart, sim.ActionStop}[random.IntN(2)]
					_ = f.sim.Change(t.Context(), []sim.Change{{IDs: []instance.ID{instance.ID(id)}, Action: action}}) // refused in some states
					continue
				}
				_, err := f.command(t.Context(), verb, id, names[random.IntN(fleet)])
				if e, ok := errors.AsType[*instance.Error](err); err != nil && (!ok || e.Kind == instance.KindInternal) {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	if err := f.sim.SetFaults(nil); err != nil {
		t.Fatal(err)
	}
	// Everything comes to rest, and is then compared once more.
	for {
		if _, err := f.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(f.journal.Snapshot().Records, func(r *journal.Record) bool { return r.Instance.State.Transitional() }) {
			break
		}
	}
	page, err := f.sim.Describe(t.Context(), instance.DescribeQuery{All: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range page.Instances {
		if known, _ := f.journal.Get(want.ID); !known.Instance.Equal(want) {
			t.Errorf("the journal says %+v, Describe says %+v", known.Instance, want)
		}
	}
	checkChains(t, f.changes(t, names...))
}

// checkChains checks that each change begins where the one before it ended, and that
// every step is legal.
func checkChains(t *testing.T, changes []*instance.Change) {
	t.Helper()
	now := make(map[instance.ID]*instance.Instance)
	for _, c := range changes {
		before := now[c.ID()]
		if !before.Equal(c.Before) {
			t.Errorf("%s: a change begins with %+v, the one before it ended with %+v", c.ID(), c.Before, before)
		}
		if c.Type == instance.ChangeState && !instance.CanFollow(c.Before.State, c.After.State) {
			t.Errorf("%s: %v -> %v is not legal", c.ID(), c.Before.State, c.After.State)
		}
		if c.Inferred && !c.Cause.External() && !slices.Contains([]instance.Verb{instance.VerbStart, instance.VerbStop}, c.Cause.Verb) {
			t.Errorf("%s: an inferred change is said to be caused by %v", c.ID(), c.Cause)
		}
		now[c.ID()] = c.After
	}
}

func TestTransitionsUnderWayFinishAfterACrash(t *testing.T) {
	f := start(t, options{sim: sim.Config{Speed: 20}})
	r, err := f.command(t.Context(), instance.VerbStart, first)
	if err != nil {
		t.Fatal(err)
	}
	after := f.crash(t, options{sim: sim.Config{Speed: 20}})
	if result := after.wait(t, r.Cursor, instance.StateRunning, first)[0]; result.Outcome != lifecycle.Reached {
		t.Fatalf("got %+v, want running", result)
	}
	expect(t, steps(after.changes(t, first)), "stopped -> pending by tester", "pending -> running by tester")
}
