package lifecycle_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
	"github.com/instanced/instanced/internal/metricstest"
)

// awaitSample returns when a sample of a registry is as wanted.
func awaitSample(t *testing.T, registry *prometheus.Registry, name string, wanted func(float64) bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		value := metricstest.Samples(t, registry)[name]
		if wanted(value) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is %v after 20 s", name, value)
		}
	}
}

func TestStateChangesAreCountedByTransitionCauseAndSource(t *testing.T) {
	registry := prometheus.NewRegistry()
	f := start(t, options{metrics: registry})
	r, err := f.command(t.Context(), instance.VerbStart, first)
	if err != nil {
		t.Fatal(err)
	}
	f.wait(t, r.Cursor, instance.StateRunning, first)
	if err := f.sim.Change(t.Context(), []sim.Change{{IDs: []instance.ID{first}, Action: sim.ActionStop}}); err != nil {
		t.Fatal(err)
	}
	f.wait(t, r.EndCursor, instance.StateStopped, first)
	metricstest.Expect(t, registry, map[string]float64{
		`instanced_journal_state_changes_total{cause="StartInstances",from="stopped",inferred="false",source="answer",to="pending"}`:    1,
		`instanced_journal_state_changes_total{cause="StartInstances",from="pending",inferred="false",source="simulator",to="running"}`: 1,
		`instanced_journal_state_changes_total{cause="external",from="running",inferred="false",source="simulator",to="stopping"}`:      1,
		`instanced_journal_state_changes_total{cause="external",from="stopping",inferred="false",source="simulator",to="stopped"}`:      1,
		`instanced_journal_changes_total{type="added"}`:               2,
		`instanced_journal_changes_total{type="state_changed"}`:       4,
		`instanced_journal_change_age_seconds_count{source="answer"}`: 1,
		`instanced_journal_instances{state="stopped"}`:                2,
		`instanced_journal_instances{state="running"}`:                0,
		`instanced_journal_owner`:                                     1,
		`instanced_journal_terms_total`:                               1,
		`instanced_journal_revision`:                                  float64(f.journal.Head().Seq),
		`instanced_journal_history_bytes`:                             float64(f.Info().JournalBytes),
	})
	got := metricstest.Samples(t, registry)
	oldest, newest := got["instanced_journal_oldest_change_timestamp_seconds"], got["instanced_journal_newest_change_timestamp_seconds"]
	if now := float64(time.Now().Unix()); oldest > newest || oldest < now-60 || newest > now+1 {
		t.Errorf("the oldest change is of %v, the newest of %v, and now is %v", oldest, newest, now)
	}
}

func TestCommandsAreCountedByOutcomeAndReason(t *testing.T) {
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	for _, tc := range []struct {
		ctx     context.Context
		request lifecycle.CommandRequest
		fault   sim.FaultKind
		want    string
	}{
		{request: command(instance.VerbStart, first), want: `outcome="ok",reason=""`},
		{request: command(instance.VerbReboot, first), want: `outcome="failed",reason="IncorrectInstanceState"`},
		{request: command(instance.VerbStart, first, second), fault: sim.InsufficientCapacity, want: `outcome="failed",reason="InsufficientInstanceCapacity"`},
		{request: command(instance.VerbStart, first), fault: sim.VcpuLimitExceeded, want: `outcome="failed",reason="exhausted"`},
		{request: command(instance.VerbStart, first), fault: sim.Unavailable, want: `outcome="failed",reason="Unavailable"`},
		{request: command(instance.VerbStart, first), fault: sim.InternalError, want: `outcome="unknown",reason="InternalError"`},
		{
			request: lifecycle.CommandRequest{Verb: instance.VerbStart, InstanceIDs: []string{first, unknown}, FailureMode: lifecycle.PerInstance},
			want:    `outcome="partial",reason="InvalidInstanceID.NotFound"`,
		},
		{
			request: lifecycle.CommandRequest{Verb: instance.VerbStart, InstanceIDs: []string{unknown}, FailureMode: lifecycle.PerInstance},
			want:    `outcome="failed",reason="InvalidInstanceID.NotFound"`,
		},
		{ctx: canceled, request: command(instance.VerbStart, first), want: `outcome="canceled",reason="CANCELED"`},
		{ctx: late, request: command(instance.VerbStart, first), want: `outcome="not_sent",reason="NOT_SENT_IN_TIME"`},
	} {
		t.Run(tc.want, func(t *testing.T) {
			registry := prometheus.NewRegistry()
			config := sim.Config{}
			if tc.fault != sim.FaultUnspecified {
				config.Faults = []sim.Fault{{Kind: tc.fault}}
			}
			f := start(t, options{metrics: registry, sim: config})
			_, err := f.Command(cmp.Or(tc.ctx, t.Context()), caller, tc.request)
			got := metricstest.Samples(t, registry)
			for name, value := range got {
				wanted := strings.Contains(name, tc.want) && strings.Contains(name, string(tc.request.Verb))
				if strings.HasPrefix(name, "instanced_observer_commands_total") && (value == 1) != wanted {
					t.Errorf("after %v, %s is %v", err, name, value)
				}
			}
			outcome, _, _ := strings.Cut(tc.want, ",")
			if name := fmt.Sprintf(`instanced_observer_command_duration_seconds_count{%s,verb="%s"}`, outcome, tc.request.Verb); got[name] != 1 {
				t.Errorf("%s is %v, want 1", name, got[name])
			}
			if name := `instanced_observer_commands_in_flight{verb="StartInstances"}`; got[name] != 0 {
				t.Errorf("%s is %v, want 0", name, got[name])
			}
		})
	}
}

// unknown is the id of no instance.
const unknown = "i-0000000000000000f"

func command(verb instance.Verb, ids ...string) lifecycle.CommandRequest {
	return lifecycle.CommandRequest{Verb: verb, InstanceIDs: ids}
}

// scripted is a backend whose notices are those that a test sends, and whose descriptions fail
// or leave instances out on demand.
type scripted struct {
	lifecycle.Backend
	notices chan instance.Notice // one without an id stands for a failure
	failing atomic.Bool
	hidden  atomic.Pointer[instance.ID]
}

func newScripted() *scripted { return &scripted{notices: make(chan instance.Notice)} }

func (s *scripted) wrap(b lifecycle.Backend) lifecycle.Backend {
	s.Backend = b
	return s
}

func (s *scripted) Notices(ctx context.Context) iter.Seq2[instance.Notice, error] {
	return func(yield func(instance.Notice, error) bool) {
		for {
			select {
			case n := <-s.notices:
				var err error
				if n.ID == "" {
					err = errors.New("the queue cannot be reached")
				}
				if !yield(n, err) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

func (s *scripted) Describe(ctx context.Context, query instance.DescribeQuery) (instance.DescribePage, error) {
	if s.failing.Load() {
		return instance.DescribePage{}, &instance.Error{Kind: instance.KindUnavailable, Reason: instance.ReasonBackendUnavailable}
	}
	page, err := s.Backend.Describe(ctx, query)
	if hidden := s.hidden.Load(); hidden != nil {
		page.Instances = slices.DeleteFunc(page.Instances, func(i *instance.Instance) bool { return i.ID == *hidden })
	}
	return page, err
}

// send has a notice delivered, and returns when it is acknowledged.
func (s *scripted) send(id instance.ID, state instance.State, at time.Time) {
	acknowledged := make(chan struct{})
	s.notices <- instance.Notice{ID: id, State: state, OccurredAt: at, Source: instance.SourceSimulator, Ack: sync.OnceFunc(func() { close(acknowledged) })}
	<-acknowledged
}

func TestNoticesAreCountedByWhatFollowsFromThem(t *testing.T) {
	registry, b := prometheus.NewRegistry(), newScripted()
	f := start(t, options{metrics: registry, wrap: b.wrap, poll: time.Hour})
	r, err := f.command(t.Context(), instance.VerbStart, first)
	if err != nil {
		t.Fatal(err)
	}
	started := f.changes(t, first)[1].OccurredAt
	b.notices <- instance.Notice{}
	b.send(first, instance.StatePending, started)
	b.send(first, instance.StateStopped, started.Add(-time.Second))
	b.send(first, instance.StateStopped, started.Add(-time.Minute))
	b.send(first, instance.StateRunning, started.Add(time.Microsecond))
	b.send(second, instance.StateRunning, time.Now()) // which cannot follow stopped
	f.wait(t, r.Cursor, instance.StateRunning, first)
	metricstest.Expect(t, registry, map[string]float64{
		`instanced_observer_notices_total{class="duplicate"}`: 1,
		`instanced_observer_notices_total{class="late"}`:      2,
		`instanced_observer_notices_total{class="recorded"}`:  1,
		`instanced_observer_notices_total{class="described"}`: 1,
		`instanced_observer_notice_errors_total`:              1,
		`instanced_observer_notices_held`:                     0,
	})
	if n := metricstest.Samples(t, registry)[`instanced_observer_refresh_duration_seconds_count{outcome="ok"}`]; n == 0 {
		t.Error("no description is counted")
	}
}

func TestInstancesInTransitionWithoutNoticesAreCountedAsPolled(t *testing.T) {
	registry, b := prometheus.NewRegistry(), newScripted()
	f := start(t, options{metrics: registry, wrap: b.wrap, poll: 10 * time.Millisecond, sim: sim.Config{Speed: 100}})
	r, err := f.command(t.Context(), instance.VerbStart, first)
	if err != nil {
		t.Fatal(err)
	}
	f.wait(t, r.Cursor, instance.StateRunning, first)
	if n := metricstest.Samples(t, registry)["instanced_observer_polls_total"]; n == 0 {
		t.Error("no poll is counted")
	}
}

func TestADisagreementThatAComparisonFindsIsCountedOnce(t *testing.T) {
	registry, b := prometheus.NewRegistry(), newScripted()
	f := start(t, options{metrics: registry, wrap: b.wrap, poll: time.Hour, reconcile: 10 * time.Millisecond, consistency: time.Nanosecond})
	metricstest.Expect(t, registry, map[string]float64{`instanced_observer_disagreements_total{type="added"}`: 2})
	if err := f.sim.Change(t.Context(), []sim.Change{
		{IDs: []instance.ID{first}, SetTags: map[string]string{"team": "platform"}},
		{IDs: []instance.ID{second}, Action: sim.ActionStart},
	}); err != nil {
		t.Fatal(err)
	}
	once := func(n float64) bool { return n == 1 }
	awaitSample(t, registry, `instanced_observer_disagreements_total{type="attributes_changed"}`, once)
	awaitSample(t, registry, `instanced_observer_disagreements_total{type="state_changed"}`, once)
	gone := instance.ID(first)
	b.hidden.Store(&gone)
	awaitSample(t, registry, `instanced_observer_disagreements_total{type="removed"}`, once)
	const reconciled = `instanced_observer_reconcile_duration_seconds_count{outcome="ok"}`
	now := metricstest.Samples(t, registry)[reconciled]
	awaitSample(t, registry, reconciled, func(n float64) bool { return n >= now+2 })
	metricstest.Expect(t, registry, map[string]float64{
		`instanced_observer_disagreements_total{type="added"}`:              2,
		`instanced_observer_disagreements_total{type="attributes_changed"}`: 1,
		`instanced_observer_disagreements_total{type="state_changed"}`:      1,
		`instanced_observer_disagreements_total{type="removed"}`:            1,
		`instanced_journal_instances{state="running"}`:                      1,
		`instanced_journal_instances{state="stopped"}`:                      0,
	})
}

func TestComparisonsAndDescriptionsThatFailAreCounted(t *testing.T) {
	registry, b := prometheus.NewRegistry(), newScripted()
	f := start(t, options{metrics: registry, wrap: b.wrap, poll: time.Hour})
	const last = "instanced_observer_reconcile_last_success_timestamp_seconds"
	if at := metricstest.Samples(t, registry)[last]; at != float64(f.LastReconciled().UnixNano())/1e9 {
		t.Errorf("the last comparison was at %v, want %v", at, f.LastReconciled())
	}
	b.failing.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := f.Reconcile(ctx); err == nil {
		t.Error("a comparison succeeded without the backend")
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := f.Refresh(ctx, []instance.ID{first}); err == nil {
		t.Error("a description succeeded without the backend")
	}
	metricstest.Expect(t, registry, map[string]float64{
		`instanced_observer_reconcile_duration_seconds_count{outcome="failed"}`: 1,
		`instanced_observer_refresh_duration_seconds_count{outcome="failed"}`:   1,
	})
	const refreshed = "instanced_observer_refresh_last_success_timestamp_seconds"
	if at, ok := metricstest.Samples(t, registry)[refreshed]; ok {
		t.Errorf("instances were described at %v, before it ever succeeded", at)
	}
	b.failing.Store(false)
	if _, err := f.Refresh(t.Context(), []instance.ID{first}); err != nil {
		t.Fatal(err)
	}
	awaitSample(t, registry, refreshed, func(at float64) bool { return at > 0 })
}

func TestUnknownOutcomesAreOutstandingUntilTheInstanceIsDescribed(t *testing.T) {
	registry, b := prometheus.NewRegistry(), newScripted()
	f := start(t, options{
		metrics: registry, wrap: b.wrap, poll: time.Hour,
		sim: sim.Config{Faults: []sim.Fault{{Kind: sim.InternalError}}},
	})
	const outstanding = `instanced_observer_unresolved_commands{state="unknown"}`
	b.failing.Store(true)
	if _, err := f.command(t.Context(), instance.VerbStart, first, second); err == nil {
		t.Fatal("the command did not fail")
	}
	metricstest.Expect(t, registry, map[string]float64{outstanding: 2})
	awaitSample(t, registry, "instanced_observer_refreshes_waiting", func(n float64) bool { return n == 2 })
	b.failing.Store(false)
	if _, err := f.Refresh(t.Context(), []instance.ID{first, second}); err != nil {
		t.Fatal(err)
	}
	metricstest.Expect(t, registry, map[string]float64{outstanding: 0, "instanced_observer_refreshes_waiting": 0})
}

func TestTheUseOfClientTokensIsCounted(t *testing.T) {
	registry := prometheus.NewRegistry()
	s := &slow{entered: make(chan instance.Command, 1), pass: make(chan struct{})}
	o := options{metrics: registry, maxTokens: 2, wrap: func(b lifecycle.Backend) lifecycle.Backend { s.Backend = b; return s }}
	f := start(t, o)
	call := func(f *fixture, token string, ids ...string) error {
		_, err := f.Command(t.Context(), caller, lifecycle.CommandRequest{Verb: instance.VerbStart, InstanceIDs: ids, ClientToken: token})
		return err
	}
	results := make(chan error, 2)
	go func() { results <- call(f, "one", first) }()
	<-s.entered
	go func() { results <- call(f, "one", first) }()
	uses := func(use string) string { return fmt.Sprintf("instanced_lifecycle_client_tokens_total{use=%q}", use) }
	awaitSample(t, registry, uses("joined"), func(n float64) bool { return n == 1 })
	metricstest.Expect(t, registry, map[string]float64{`instanced_observer_commands_in_flight{verb="StartInstances"}`: 1})
	afterCrash := prometheus.NewRegistry()
	resumed := f.crash(t, options{metrics: afterCrash})
	close(s.pass)
	for range cap(results) {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if err := call(f, "one", first); err != nil {
		t.Error(err)
	}
	if err := call(f, "one", second); reasonOf(err) != instance.ReasonClientTokenReused {
		t.Errorf("got %v, want CLIENT_TOKEN_REUSED", err)
	}
	if err := call(f, "two", second); reasonOf(err) != instance.ReasonTooManyClientTokens {
		t.Errorf("got %v, want TOO_MANY_CLIENT_TOKENS", err)
	}
	metricstest.Expect(t, registry, map[string]float64{
		uses("new"): 1, uses("joined"): 1, uses("recorded"): 1, uses("reused"): 1, uses("refused"): 1, uses("resumed"): 0,
		`instanced_observer_commands_total{outcome="ok",reason="",verb="StartInstances"}`: 1,
		`instanced_observer_commands_in_flight{verb="StartInstances"}`:                    0,
		"instanced_journal_client_tokens":                                                 1,
		"instanced_journal_max_client_tokens":                                             2,
		"instanced_journal_client_token_bytes":                                            float64(f.journal.Stats().ClientTokenBytes),
	})
	if err := call(resumed, "one", first); err != nil {
		t.Error(err)
	}
	metricstest.Expect(t, afterCrash, map[string]float64{uses("resumed"): 1, uses("new"): 0})
}

func TestWaitsInFlightAreCounted(t *testing.T) {
	registry := prometheus.NewRegistry()
	f := start(t, options{metrics: registry})
	const waits = "instanced_lifecycle_waits_in_flight"
	waited := make(chan struct{})
	go func() {
		defer close(waited)
		f.wait(t, f.Cursor(), instance.StateRunning, first)
	}()
	awaitSample(t, registry, waits, func(n float64) bool { return n == 1 })
	if _, err := f.command(t.Context(), instance.VerbStart, first); err != nil {
		t.Fatal(err)
	}
	<-waited
	metricstest.Expect(t, registry, map[string]float64{waits: 0})
}

// Two processes share a log: each says who owns it, and one only counts a change.
func TestTheOwnerCountsChangesAndAFollowerShowsThem(t *testing.T) {
	endpoints := []string{startEtcd(t)}
	registries := [2]*prometheus.Registry{prometheus.NewRegistry(), prometheus.NewRegistry()}
	owner := start(t, options{endpoints: endpoints, address: "owner:1", metrics: registries[0], ttl: 2 * time.Second})
	other := start(t, options{endpoints: endpoints, address: "other:2", metrics: registries[1], ttl: 2 * time.Second})
	r, err := owner.command(t.Context(), instance.VerbStart, first)
	if err != nil {
		t.Fatal(err)
	}
	owner.wait(t, r.Cursor, instance.StateRunning, first) // its own view may be the later one
	other.wait(t, r.Cursor, instance.StateRunning, first)
	if _, err := other.command(t.Context(), instance.VerbStop, first); reasonOf(err) != instance.ReasonNotOwner {
		t.Errorf("got %v, want NOT_OWNER", err)
	}
	shown := map[string]float64{
		`instanced_journal_instances{state="running"}`: 1,
		`instanced_journal_instances{state="stopped"}`: 1,
		"instanced_journal_reachable":                  1,
		"instanced_journal_revision":                   float64(owner.journal.Head().Seq),
	}
	for i, registry := range registries {
		metricstest.Expect(t, registry, shown)
		mine := float64(1 - i)
		metricstest.Expect(t, registry, map[string]float64{
			"instanced_journal_owner": mine, "instanced_journal_writable": mine, "instanced_journal_terms_total": mine,
			`instanced_journal_changes_total{type="state_changed"}`: 2 * mine,
		})
		if left := metricstest.Samples(t, registry)["instanced_journal_lease_remaining_seconds"]; left < 0 || left > 2 || left == 0 != (mine == 0) {
			t.Errorf("the lease of process %d remains for %v s", i, left)
		}
	}
	const since = "instanced_journal_owner_since_timestamp_seconds"
	was := metricstest.Samples(t, registries[1])[since]
	owner.stop()
	if err := owner.journal.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitSample(t, registries[1], "instanced_journal_owner", func(n float64) bool { return n == 1 })
	got := metricstest.Samples(t, registries[1])
	if was == 0 || got[since] <= was || got["instanced_journal_terms_total"] != 1 {
		t.Errorf("a term of %v follows that of %v; %v terms", got[since], was, got["instanced_journal_terms_total"])
	}
	metricstest.Expect(t, registries[0], map[string]float64{"instanced_journal_owner": 0, "instanced_journal_lease_remaining_seconds": 0})
}

func TestTheDurationOfATracedCommandHasItsTraceAsExemplar(t *testing.T) {
	registry := prometheus.NewRegistry()
	f := start(t, options{metrics: registry})
	ctx, span := sdktrace.NewTracerProvider().Tracer("test").Start(t.Context(), "caller")
	defer span.End()
	if _, err := f.Command(ctx, caller, command(instance.VerbStart, first)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.command(t.Context(), instance.VerbStart, second); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var traces []string
	for _, family := range families {
		for _, m := range family.GetMetric() {
			for _, bucket := range m.GetHistogram().GetBucket() {
				for _, label := range bucket.GetExemplar().GetLabel() {
					traces = append(traces, family.GetName()+" "+label.GetName()+" "+label.GetValue())
				}
			}
		}
	}
	expect(t, traces, "instanced_observer_command_duration_seconds trace_id "+span.SpanContext().TraceID().String())
}
