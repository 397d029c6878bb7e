package server

import (
	"cmp"
	"slices"
	"time"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/admission"
)

// Load is what the server does at the moment, and its limits.
type Load struct {
	Limits            admission.Limits
	Requests, Streams int
	Memory            *instancedv1.MemoryUse
}

// Load returns what the server does at the moment.
func (s *Server) Load() Load {
	a := s.memory.admission
	return Load{
		Limits: a.Limits(), Requests: a.InFlight(admission.Unary), Streams: a.InFlight(admission.LongLived),
		Memory: s.memory.use(),
	}
}

// WatchLag is how far a watch is behind.
type WatchLag struct {
	// Principal is unverified.
	Principal string
	Began     time.Time
	// State is live, catching_up or stalled.
	State string
	// Age is how long ago the oldest change was recorded that is known to be not delivered, and
	// Behind how many revisions were not.
	Age    time.Duration
	Behind uint64
}

// LaggingWatches returns the n watches that are furthest behind, the furthest first, and how many
// watches there are.
func (s *Server) LaggingWatches(n int) (worst []WatchLag, total int) {
	return s.watches.furthestBehind(n)
}

func (w *watches) furthestBehind(n int) (worst []WatchLag, total int) {
	w.mu.Lock()
	open := make([]*delivery, 0, len(w.open)) // whose lags are found without the lock
	for d := range w.open {
		open = append(open, d)
	}
	w.mu.Unlock()
	now, head := time.Now(), w.head()
	for part := range slices.Chunk(open, 64) {
		for _, d := range part {
			lag := WatchLag{Principal: d.caller, Began: d.began}
			var state watchState
			state, lag.Age, lag.Behind = d.lag(now, head)
			lag.State = watchStates[state]
			worst = append(worst, lag)
		}
		slices.SortFunc(worst, func(a, b WatchLag) int {
			return cmp.Or(cmp.Compare(b.Age, a.Age), cmp.Compare(b.Behind, a.Behind), a.Began.Compare(b.Began))
		})
		worst = worst[:min(len(worst), n)]
	}
	return worst, len(open)
}
