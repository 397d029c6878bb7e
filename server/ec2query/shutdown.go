package ec2query

import (
	"context"
	"time"
)

// lingerTimeout is how long connections without a call in flight, but perhaps with part of
// a request, stay open on shutdown.
const lingerTimeout = 500 * time.Millisecond

// Shutdown shuts the server down gracefully: it rejects new calls and lets calls in flight
// finish. If ctx ends first, it cuts them off and returns the error of ctx.
func (s *Server) Shutdown(ctx context.Context) error {
	var late error
	select {
	case <-s.admission.Drain():
	case <-ctx.Done():
		late = ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, lingerTimeout)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close() // errors of connections that are cut off do not matter
	}
	return late
}
