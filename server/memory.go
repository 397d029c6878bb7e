package server

import (
	"context"
	"log/slog"
	"runtime/metrics"
	"time"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/lifecycle"
)

// memoryLogInterval is how often the log says, at debug level, what takes memory.
const memoryLogInterval = time.Minute

// memoryReport says what takes memory in this process.
type memoryReport struct {
	lifecycle *lifecycle.Service
	admission *admission
	log       *slog.Logger
}

// use returns how much memory is in use now.
func (r *memoryReport) use() *instancedv1.MemoryUse {
	m := r.lifecycle.Info().Memory
	runtime := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
	}
	metrics.Read(runtime)
	r.admission.mu.Lock()
	streams := r.admission.shares[lasting].Taken()
	r.admission.mu.Unlock()
	return &instancedv1.MemoryUse{
		RecentHistoryBytes:    m.Ring,
		MaxRecentHistoryBytes: m.MaxRing,
		InstancesBytes:        m.Instances,
		ClientTokensBytes:     m.ClientTokens,
		IndexBytes:            m.Index,
		Streams:               int64(streams),
		HeapBytes:             int64(runtime[0].Value.Uint64()),
		ProcessBytes:          int64(runtime[1].Value.Uint64() - runtime[2].Value.Uint64()),
	}
}

// run logs at debug level what takes memory, until stop is closed.
func (r *memoryReport) run(stop <-chan struct{}) {
	if !r.log.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	ticker := time.NewTicker(memoryLogInterval)
	defer ticker.Stop()
	for {
		use := r.use()
		r.log.Debug("memory in use", "heap_bytes", use.GetHeapBytes(), "process_bytes", use.GetProcessBytes(),
			"recent_history_bytes", use.GetRecentHistoryBytes(), "instances_bytes", use.GetInstancesBytes(),
			"client_tokens_bytes", use.GetClientTokensBytes(), "index_bytes", use.GetIndexBytes(), "streams", use.GetStreams())
		select {
		case <-ticker.C:
		case <-stop:
			return
		}
	}
}
