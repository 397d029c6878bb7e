package observer

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/instanced/instanced/internal/instance"
)

// What is counted of a command that succeeds, and of a notice, costs no allocation.
func TestCountingACommandAllocatesNothing(t *testing.T) {
	m := newMetrics(prometheus.NewRegistry())
	if n := testing.AllocsPerRun(100, func() {
		m.verb(instance.VerbStart).inFlight.Inc()
		m.commandEnded(trace.SpanFromContext(t.Context()), instance.VerbStart, time.Millisecond, Result{}, nil)
		m.verb(instance.VerbStart).inFlight.Dec()
		m.notices[duplicate].Inc()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Whatever the backend's errors say, the labels are few.
func TestTheReasonsOfCommandsAreBounded(t *testing.T) {
	m := newMetrics(nil)
	seen := make(map[string]bool)
	for i := range 1000 {
		text := strings.Repeat("x", i)
		for kind := range kindLabels {
			seen[m.reasonOf(&instance.Error{Kind: instance.Kind(kind), Code: text, Reason: text})] = true
		}
	}
	for _, reason := range reasons {
		seen[m.reasonOf(&instance.Error{Kind: instance.KindInternal, Code: reason})] = true
	}
	if want := len(kindLabels) + len(reasons); len(seen) != want {
		t.Errorf("%d labels, want %d", len(seen), want)
	}
}

// BenchmarkCountingACommand is what the metrics add to a command that succeeds: run it with
// go test ./internal/observer -run '^$' -bench CountingACommand -benchmem.
func BenchmarkCountingACommand(b *testing.B) {
	m := newMetrics(prometheus.NewRegistry())
	span := trace.SpanFromContext(b.Context())
	b.ReportAllocs()
	for b.Loop() {
		began, measured := time.Now(), m.verb(instance.VerbStart)
		measured.inFlight.Inc()
		m.commandEnded(span, instance.VerbStart, time.Since(began), Result{}, nil)
		measured.inFlight.Dec()
	}
}
