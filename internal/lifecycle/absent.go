package lifecycle

import (
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

const (
	// absentFor is how long it is remembered that an instance does not exist. EC2 may
	// need that long to know an instance that was just launched.
	absentFor = 5 * time.Second
	// mostAbsent bounds what is remembered.
	mostAbsent = 10_000
)

// absentees remembers for a short time which ids the backend did not know.
type absentees struct {
	mu    sync.Mutex
	until map[instance.ID]time.Time
}

func (a *absentees) has(id instance.ID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	until, ok := a.until[id]
	return ok && time.Now().Before(until)
}

func (a *absentees) add(id instance.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.until == nil || len(a.until) >= mostAbsent {
		a.until = make(map[instance.ID]time.Time)
	}
	a.until[id] = time.Now().Add(absentFor)
}
