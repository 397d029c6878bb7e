package server_test

import (
	"context"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// BenchmarkTracing compares the start of one instance without tracing, with 1 % of the calls
// sampled, and with all of them: processor time and allocations of a call, both ends together.
// The servers take turns within one run. Spans are batched as in production, and discarded
// where they would be sent.
func BenchmarkTracing(b *testing.B) {
	const callers = 256
	modes := []struct {
		name   string
		server *servertest.Server
		calls  []instancedv1.InstanceServiceClient
		spent
		allocations uint64
	}{{name: "off"}, {name: "1%"}, {name: "100%"}}
	for i := range modes {
		opts := servertest.Options{
			Fleet: &instancedv1.CreateInstancesRequest{}, Speed: 0.001, PollInterval: time.Hour,
			Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		}
		if ratio := []float64{0, 0.01, 1}[i]; ratio > 0 {
			provider := sdktrace.NewTracerProvider(
				sdktrace.WithBatcher(tracetest.NewNoopExporter()),
				sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(ratio))))
			b.Cleanup(func() { _ = provider.Shutdown(context.Background()) })
			opts.Tracing = provider
		}
		m := &modes[i]
		m.server = servertest.New(b, opts)
		lis := listen(b)
		m.server.Serve(lis)
		m.calls = clientsOf(connect(b, lis.Addr().String()))
	}
	calls := 0
	for b.Loop() {
		for range turnsPerIteration {
			for i := range modes {
				m := &modes[i]
				b.StopTimer()
				fresh := create(b, m.server, callsPerTurn)
				b.StartTimer()
				m.allocations -= allocated()
				m.on(func() { turn(b, m.calls, callers, slices.Clip(fresh)) })
				m.allocations += allocated()
			}
			calls += callsPerTurn
		}
	}
	b.ReportMetric(0, "ns/op")
	for _, m := range modes {
		b.ReportMetric(float64(m.cpu.Nanoseconds())/float64(calls), m.name+"-ns/call")
		b.ReportMetric(float64(m.allocations)/float64(calls), m.name+"-allocs/call")
	}
}

// allocated returns how many objects the process has allocated.
func allocated() uint64 {
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.Mallocs
}
