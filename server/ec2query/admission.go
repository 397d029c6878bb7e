package ec2query

import (
	"context"
	"math"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// What may be under way at once, unless a [Config] says otherwise: as much as at the gRPC
// door.
const (
	defaultMaxRequests    = 2048
	defaultMaxConnections = 5000
)

// admission bounds the calls that are under way. A principal may have as many places as
// are left over: one that floods the door gets half of them, and whoever comes next still
// finds some.
type admission struct {
	most       int
	mu         sync.Mutex
	taken      int
	principals map[string]int
}

// enter takes a place, which leave gives back.
func (a *admission) enter(principal string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.principals[principal] >= a.most-a.taken {
		return errBusy()
	}
	if a.principals == nil {
		a.principals = make(map[string]int)
	}
	a.taken++
	a.principals[principal]++
	return nil
}

func (a *admission) leave(principal string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.taken--
	if a.principals[principal]--; a.principals[principal] == 0 {
		delete(a.principals, principal)
	}
}

// reading bounds how many requests are being read at once, from the form to what is wrong
// with it: that takes a processor and no time beside, but up to fifty times the memory of
// the form.
type reading chan struct{}

// begin waits for a place, which the function that it returns gives back, however often
// it is called.
func (r reading) begin(ctx context.Context) (end func(), err error) {
	select {
	case r <- struct{}{}:
		return sync.OnceFunc(func() { <-r }), nil
	case <-ctx.Done():
		return nil, errBusy()
	}
}

func errBusy() error {
	return &instance.Error{
		Kind: instance.KindExhausted, Code: instance.CodeRequestLimitExceeded, Reason: "TOO_MANY_REQUESTS", RetryAfter: time.Second,
		Message: "Request limit exceeded. Too many calls are under way; nothing was changed by this call.",
	}
}

// connections bounds the connections. When there are too many, the one that has been
// without a call for longest gives way: its client connects again for its next call.
type connections struct {
	most int
	mu   sync.Mutex
	// idle holds when a connection came to be without a call; 0 while it has one.
	idle map[net.Conn]uint64
	turn uint64
}

// note follows a connection; see http.Server.ConnState.
func (c *connections) note(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew:
		if len(c.idle) >= c.most {
			c.giveWay(conn)
		}
		c.await(conn)
	case http.StateIdle:
		c.await(conn)
	case http.StateActive:
		c.idle[conn] = 0
	case http.StateHijacked, http.StateClosed:
		delete(c.idle, conn)
	}
}

func (c *connections) await(conn net.Conn) {
	if c.idle == nil {
		c.idle = make(map[net.Conn]uint64)
	}
	c.turn++
	c.idle[conn] = c.turn
}

// giveWay closes the connection that is idle for longest, or else the new one.
func (c *connections) giveWay(newest net.Conn) {
	longest, least := newest, uint64(math.MaxUint64)
	for conn, since := range c.idle {
		if since > 0 && since < least {
			longest, least = conn, since
		}
	}
	delete(c.idle, longest)
	_ = longest.Close() // it is given up, whatever that says
}
