package instance

import (
	"sync/atomic"
	"time"
)

// Heartbeat tells a loop that is stuck from one that goes on or has nothing to do. The zero
// value is at rest. It is safe for concurrent use.
type Heartbeat struct{ last atomic.Pointer[time.Time] }

// Beat says that the loop goes on.
func (h *Heartbeat) Beat() { h.last.Store(new(time.Now())) }

// Rest says that the loop has ended, or has nothing to do until it is woken.
func (h *Heartbeat) Rest() { h.last.Store(nil) }

// Silence returns how long ago the last beat was; 0 at rest.
func (h *Heartbeat) Silence() time.Duration {
	if last := h.last.Load(); last != nil {
		return time.Since(*last)
	}
	return 0
}
