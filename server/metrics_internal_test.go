package server

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc/tap"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/admission"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

// recorder returns a function that does what metrics add to a StartInstances call that fails
// with an error: at admission, in the chain, and at its end.
func recorder(tb testing.TB, principals int, err error) (record func(principal string)) {
	tb.Helper()
	registry := prometheus.NewRegistry()
	a := admission.New(admission.Config{
		Logger: slog.New(slog.DiscardHandler), Metrics: registry, Endpoint: "grpc", MetricsPrincipals: principals,
	})
	m := newMetrics(registry, a)
	const method = instancedv1.InstanceService_StartInstances_FullMethodName
	m.register(method)
	contexts := make(map[string]context.Context)
	return func(principal string) {
		ctx := contexts[principal]
		if ctx == nil {
			ctx = lifecycle.WithCaller(context.Background(), lifecycle.Caller{Principal: principal})
			contexts[principal] = ctx
		}
		m.begin(method).end(ctx, nil, 3*time.Millisecond, err)
	}
}

func TestMetricsOfACallAllocateNothing(t *testing.T) {
	refused := asStatus(&instance.Error{Kind: instance.KindNotFound, Code: instance.CodeNotFound}, "r", false)
	for name, err := range map[string]error{"OK": nil, "an error": refused} {
		record := recorder(t, 2, err)
		callers := []string{"ana", "bob", "beyond the bound"}
		for _, caller := range callers {
			record(caller)
		}
		if allocs := testing.AllocsPerRun(1000, func() {
			for _, caller := range callers {
				record(caller)
			}
		}); allocs != 0 {
			t.Errorf("%s: %v allocations", name, allocs)
		}
	}
}

func TestTheTraceOfASampledCallIsAnExemplar(t *testing.T) {
	registry := prometheus.NewRegistry()
	m := newMetrics(registry, admission.New(admission.Config{}))
	const method = instancedv1.InstanceService_StartInstances_FullMethodName
	m.register(method)
	exemplars := func() (ids []string) {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range families {
			for _, metric := range family.GetMetric() {
				for _, bucket := range metric.GetHistogram().GetBucket() {
					for _, label := range bucket.GetExemplar().GetLabel() {
						ids = append(ids, label.GetName()+"="+label.GetValue())
					}
				}
			}
		}
		return ids
	}
	config := trace.SpanContextConfig{TraceID: trace.TraceID{15: 7}, SpanID: trace.SpanID{7: 1}}
	for _, flags := range []trace.TraceFlags{0, trace.FlagsSampled} {
		config.TraceFlags = flags
		_, span := noop.NewTracerProvider().Tracer("").Start(trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(config)), "")
		m.begin(method).end(t.Context(), span, 3*time.Millisecond, nil)
		if got := exemplars(); len(got) != int(flags) || flags != 0 && got[0] != "trace_id=00000000000000000000000000000007" {
			t.Errorf("with the flags %v the exemplars are %q", flags, got)
		}
	}
}

func TestAHundredThousandMethodNamesAreOneSeries(t *testing.T) {
	registry := prometheus.NewRegistry()
	m := newMetrics(registry, admission.New(admission.Config{}))
	onHeaders := onHeaders(m)
	for n := range 100_000 {
		if _, err := onHeaders(t.Context(), &tap.Info{FullMethodName: fmt.Sprintf("/hostile.Service/Method%d", n)}); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := testutil.GatherAndCount(registry, "rpc_server_call_duration_seconds"); got != 1 || err != nil {
		t.Errorf("there are %d series: %v", got, err)
	}
}

func BenchmarkMetricsRecord(b *testing.B) {
	record := recorder(b, 1, nil)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			record("ana")
		}
	})
}

// TestTheStateOfAWatch has a watch pass through its states as time does.
func TestTheStateOfAWatch(t *testing.T) {
	now := time.Now()
	for _, test := range []struct {
		name            string
		delivered       uint64
		oldest, sending time.Duration // ago; 0 for none
		want            watchState
		wantAge         time.Duration
		wantBehind      uint64
	}{
		{"all is delivered", 10, 0, 0, watchLive, 0, 0},
		{"all is delivered, late", 10, time.Hour, 0, watchLive, 0, 0},
		{"about to deliver", 9, 0, 0, watchLive, 0, 1},
		{"delivering", 9, time.Millisecond, time.Millisecond, watchLive, time.Millisecond, 1},
		{"replaying", 3, time.Hour, 0, watchCatchingUp, time.Hour, 7},
		{"a message is not read", 9, 2 * time.Second, 2 * time.Second, watchCatchingUp, 2 * time.Second, 1},
		{"a message is not read for long", 3, time.Minute, time.Minute, watchStalled, time.Minute, 7},
		{"a progress message is not read for long", 10, 0, time.Minute, watchStalled, 0, 0},
	} {
		d := &delivery{}
		d.revision.Store(test.delivered)
		if test.oldest != 0 {
			d.oldest.Store(now.Add(-test.oldest).UnixNano())
		}
		if test.sending != 0 {
			d.sending.Store(now.Add(-test.sending).UnixNano())
		}
		state, age, behind := d.lag(now, 10)
		if got, want := fmt.Sprint(watchStates[state], age, behind), fmt.Sprint(watchStates[test.want], test.wantAge, test.wantBehind); got != want {
			t.Errorf("%s: %s, want %s", test.name, got, want)
		}
	}
}
