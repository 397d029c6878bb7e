package server_test

import (
	"io"
	"log/slog"
	"runtime"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// BenchmarkMetrics compares starts of one instance a call at a server without a registry with a
// server whose metrics are registered, left alone and scraped every 10 ms, in turns, within one
// run. All of them count; what counting takes is in BenchmarkMetricsRecord.
func BenchmarkMetrics(b *testing.B) {
	const callers, perTurn = 256, 2_500
	registry := prometheus.NewRegistry()
	off, on := measuredServer(b, nil), measuredServer(b, registry)
	scraped := &measuredTurns{server: on.server, clients: on.clients}
	for b.Loop() {
		off.turn(b, callers, perTurn)
		on.turn(b, callers, perTurn)
		stop := scrapeOften(b, registry)
		scraped.turn(b, callers, perTurn)
		stop()
	}
	b.ReportMetric(0, "ns/op")
	for name, m := range map[string]*measuredTurns{"registered": on, "scraped": scraped} {
		b.ReportMetric(float64(m.spent.cpu-off.spent.cpu)/float64(m.calls), name+"-more-cpu-ns/call")
		b.ReportMetric(float64(off.spent.wall)/float64(m.spent.wall), name+"-ratio")
	}
	b.ReportMetric((float64(on.mallocs)-float64(off.mallocs))/float64(on.calls), "registered-more-allocs/call")
}

// scrapeOften gathers metrics every 10 ms until it is stopped.
func scrapeOften(b *testing.B, registry prometheus.Gatherer) (stop func()) {
	ending, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(10 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
			case <-ending:
				return
			}
			if _, err := registry.Gather(); err != nil {
				b.Error(err)
			}
		}
	}()
	return func() {
		close(ending)
		<-ended
	}
}

// measuredTurns is a server, and what the calls to it took.
type measuredTurns struct {
	server  *servertest.Server
	clients []instancedv1.InstanceServiceClient
	spent   spent
	calls   int
	mallocs uint64
}

// measuredServer returns a server without instances whose metrics are in a registry, or in none.
func measuredServer(b *testing.B, registry prometheus.Registerer) *measuredTurns {
	b.Helper()
	srv := servertest.New(b, servertest.Options{
		Fleet: &instancedv1.CreateInstancesRequest{}, Speed: 0.001, PollInterval: time.Hour, Metrics: registry,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	lis := listen(b)
	srv.Serve(lis)
	return &measuredTurns{server: srv, clients: clientsOf(connect(b, lis.Addr().String()))}
}

// turn starts so many instances, which are created before.
func (m *measuredTurns) turn(b *testing.B, callers, calls int) {
	b.StopTimer()
	fresh := create(b, m.server, int32(calls))
	b.StartTimer()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	m.spent.on(func() { turn(b, m.clients, callers, fresh) })
	runtime.ReadMemStats(&after)
	m.calls += calls
	m.mallocs += after.Mallocs - before.Mallocs
}
