package ec2query

import (
	"context"
	"time"
)

// lingering is how long connections without a call in flight, but perhaps with half of a
// request, stay open at the end.
const lingering = 500 * time.Millisecond

// Shutdown ends the door: calls that come from now on are sent away, those in flight
// finish. When ctx is done first, they are cut off, and the error is that of ctx.
func (d *Door) Shutdown(ctx context.Context) error {
	var late error
	select {
	case <-d.admission.Drain():
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
