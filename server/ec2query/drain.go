package ec2query

import (
	"context"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// lingering is how long connections without a call under way, but perhaps with half of a
// request, are listened to at the end.
const lingering = 500 * time.Millisecond

// drain counts the calls that are under way, until there are to be no more.
type drain struct {
	mu       sync.Mutex
	draining bool
	under    int
	// done is closed when the last call has ended after the draining began.
	done chan struct{}
}

// begin begins a call, which end ends. It refuses once the draining has begun.
func (d *drain) begin() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.draining {
		return errDraining()
	}
	d.under++
	return nil
}

func (d *drain) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.under--; d.draining && d.under == 0 {
		close(d.done)
	}
}

// start begins the draining, and returns what is closed at its end.
func (d *drain) start() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.draining {
		d.draining, d.done = true, make(chan struct{})
		if d.under == 0 {
			close(d.done)
		}
	}
	return d.done
}

// Shutdown ends the door: calls that come from now on are sent away, those under way
// finish. When ctx is done first, they are cut off, and the error is that of ctx.
func (d *Door) Shutdown(ctx context.Context) error {
	var late error
	select {
	case <-d.drain.start():
	case <-ctx.Done():
		late = ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, lingering)
	defer cancel()
	if d.http.Shutdown(ctx) != nil {
		_ = d.http.Close() // what it says of connections that are cut off helps nobody
	}
	return late
}

func errDraining() error {
	return &instance.Error{
		Kind:    instance.KindUnavailable,
		Reason:  instance.ReasonDraining,
		Message: "The server is shutting down; nothing was changed by this call.",
	}
}
