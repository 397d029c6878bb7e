package lifecycle_test

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

// samples returns all samples of a registry by name and labels, as a scrape shows them; of a
// histogram its count and its sum.
func samples(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]float64)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			suffix := ""
			if len(labels) > 0 {
				suffix = "{" + strings.Join(labels, ",") + "}"
			}
			if h := m.GetHistogram(); h != nil {
				all[family.GetName()+"_count"+suffix] = float64(h.GetSampleCount())
				all[family.GetName()+"_sum"+suffix] = h.GetSampleSum()
				continue
			}
			all[family.GetName()+suffix] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return all
}

// expectSamples checks some samples of a registry.
func expectSamples(t *testing.T, registry *prometheus.Registry, want map[string]float64) {
	t.Helper()
	got := samples(t, registry)
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s is %v, want %v", name, got[name], value)
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
	expectSamples(t, registry, map[string]float64{
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
	got := samples(t, registry)
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
			got := samples(t, registry)
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
