package ec2query

import (
	"math"
	"net"
	"net/http"
	"strings"
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

// admission bounds the calls that are under way, in shares of the principals.
type admission struct {
	mu     sync.Mutex
	shares instance.Shares
}

// enter takes a place, which leave gives back.
func (a *admission) enter(principal string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.shares.Take(principal, 1) {
		return errBusy()
	}
	return nil
}

func (a *admission) leave(principal string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.shares.Give(principal, 1)
}

// claimedKey returns the access key that a request names, or "" if no caller has that key.
// It is not verified yet: it only divides the places of the requests that are received and
// parsed, so that callers without a key share one part of them, whatever they claim.
func (d *Door) claimedKey(r *http.Request) string {
	credential := r.URL.Query().Get("X-Amz-Credential")
	if _, signed, ok := strings.Cut(r.Header.Get("Authorization"), "Credential="); ok {
		credential, _, _ = strings.Cut(signed, ",")
	}
	var claimed signature
	claimed.scope(credential)
	if keys := d.keys(); keys != nil {
		if _, known := keys[claimed.accessKeyID]; !known {
			return ""
		}
	}
	return claimed.accessKeyID
}

func errBusy() error {
	return &instance.Error{
		Kind: instance.KindExhausted, Code: instance.CodeRequestLimitExceeded, Reason: instance.ReasonTooManyRequests, RetryAfter: time.Second,
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
