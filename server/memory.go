package server

import (
	"context"
	"log/slog"
	"runtime"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"time"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/admission"
	"github.com/instanced/instanced/internal/lifecycle"
)

const (
	// memoryLogInterval is how often the log says, at debug level, what takes memory.
	memoryLogInterval = time.Minute
	// releaseInterval is how often an idle process looks for memory to release, and
	// minLeftoverBytes is how much is worth it.
	releaseInterval  = 10 * time.Second
	minLeftoverBytes = 8 << 20
)

// memoryReport says what takes memory in this process.
type memoryReport struct {
	lifecycle *lifecycle.Service
	admission *admission.Admission
	log       *slog.Logger
}

// use returns how much memory is in use now.
func (r *memoryReport) use() *instancedv1.MemoryUse {
	m := r.lifecycle.Info().Memory
	samples := []runtimemetrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
	}
	runtimemetrics.Read(samples)
	return &instancedv1.MemoryUse{
		RecentHistoryBytes:    m.Ring,
		MaxRecentHistoryBytes: m.MaxRing,
		InstancesBytes:        m.Instances,
		ClientTokensBytes:     m.ClientTokens,
		IndexBytes:            m.Index,
		Streams:               int64(r.admission.InFlight(admission.LongLived)),
		HeapBytes:             int64(samples[0].Value.Uint64()),
		ProcessBytes:          int64(samples[1].Value.Uint64() - samples[2].Value.Uint64()),
	}
}

// run releases the memory that bursts of calls leave behind, and logs at debug level what
// takes memory, until stop is closed.
func (r *memoryReport) run(stop <-chan struct{}) {
	r.report()
	reports := time.NewTicker(memoryLogInterval)
	defer reports.Stop()
	ticker := time.NewTicker(releaseInterval)
	defer ticker.Stop()
	var left leftover
	left.due(readHeap())
	for {
		select {
		case <-reports.C:
			r.report()
		case <-ticker.C:
			if left.due(readHeap()) {
				// What pools hold is garbage only to the second collection.
				runtime.GC()
				debug.FreeOSMemory()
				left = leftover{}
				left.due(readHeap())
			}
		case <-stop:
			return
		}
	}
}

func (r *memoryReport) report() {
	if !r.log.Enabled(context.Background(), slog.LevelDebug) { // which can change at run time
		return
	}
	use := r.use()
	r.log.Debug("memory in use", "heap_bytes", use.GetHeapBytes(), "process_bytes", use.GetProcessBytes(),
		"recent_history_bytes", use.GetRecentHistoryBytes(), "instances_bytes", use.GetInstancesBytes(),
		"client_tokens_bytes", use.GetClientTokensBytes(), "index_bytes", use.GetIndexBytes(), "streams", use.GetStreams())
}

// leftover decides when to collect garbage in an idle process. The runtime collects when
// the heap has doubled, or else every two minutes: what a burst of calls took would stay in
// memory for minutes after the last of them.
type leftover struct {
	cycles uint64 // completed collections
	min    uint64 // minimum of the bytes in memory since the last release
}

// due reports whether there was no collection since it was last called, and there is
// notably more memory than need be.
func (l *leftover) due(cycles, bytes uint64) bool {
	idle := cycles == l.cycles
	l.cycles = cycles
	if l.min == 0 || bytes < l.min {
		l.min = bytes
	}
	return idle && bytes > l.min+l.min/4+minLeftoverBytes
}

// readHeap returns how many collections were completed, and how much memory is mapped.
func readHeap() (cycles, bytes uint64) {
	samples := []runtimemetrics.Sample{
		{Name: "/gc/cycles/total:gc-cycles"},
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
	}
	runtimemetrics.Read(samples)
	return samples[0].Value.Uint64(), samples[1].Value.Uint64() - samples[2].Value.Uint64()
}
