package admission

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/instanced/instanced/internal/instance"
)

// Defaults of [Limits].
const (
	DefaultMaxRequests    = 2048
	DefaultMaxStreams     = 8192
	DefaultMaxConnections = 5000
)

// Kind is a kind of call. Each has places of its own.
type Kind uint8

// The kinds: unary calls, which end as soon as possible, and streams and waits, whose
// callers decide how long they last.
const (
	Unary Kind = iota
	LongLived
	kinds
)

// String returns the name of the kind.
func (k Kind) String() string {
	if k == LongLived {
		return "long_lived"
	}
	return "unary"
}

// Limits are the maximum numbers of concurrent calls and connections.
type Limits struct {
	Requests    int // unary calls
	Streams     int // long-lived calls
	Connections int
}

// Config configures an [Admission].
type Config struct {
	Limits Limits
	Logger *slog.Logger
	// Metrics registers the metrics; nil for none. Endpoint is the value of their label
	// endpoint.
	Metrics  prometheus.Registerer
	Endpoint string
	// MetricsPrincipals is how many principals have metrics of their own: the first ones to
	// call.
	MetricsPrincipals int
}

// Admission admits the calls and connections of a server. It is safe for concurrent use.
type Admission struct {
	limits  Limits
	log     *slog.Logger
	metrics *metrics

	mu    sync.Mutex
	calls [kinds]instance.Shares // by principal; connections count their own calls
	open  int                    // connections
	owned instance.Shares        // of the connections, those that belong to a principal
	// idle are the owned connections without a call in flight, unowned the connections
	// without an owner. The first of each has been idle for longest.
	idle    Queue[*Connection]
	unowned Queue[*Connection]
	// drained is closed when the last call has ended after [Admission.Drain]; nil before.
	drained chan struct{}
}

// New returns an admission without calls and connections.
func New(cfg Config) *Admission {
	limits := cfg.Limits
	a := &Admission{
		limits: limits,
		log:    cfg.Logger,
		calls:  [kinds]instance.Shares{Unary: instance.NewShares(limits.Requests), LongLived: instance.NewShares(limits.Streams)},
		owned:  instance.NewShares(limits.Connections),
	}
	a.metrics = newMetrics(cfg, a)
	return a
}

// Limits returns the limits.
func (a *Admission) Limits() Limits { return a.limits }

// InFlight returns the number of calls of a kind in flight.
func (a *Admission) InFlight(kind Kind) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.calls[kind].Taken()
}

func (a *Admission) connections() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.open
}

// Drain rejects all calls from now on. It returns a channel that is closed when no call is
// in flight.
func (a *Admission) Drain() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.drained == nil {
		a.drained = make(chan struct{})
		a.endDrainLocked()
	}
	return a.drained
}

// endDrainLocked closes the channel of [Admission.Drain] if no call is in flight.
func (a *Admission) endDrainLocked() {
	if a.calls[Unary].Taken()+a.calls[LongLived].Taken() == 0 {
		close(a.drained)
	}
}

// Connection is a connection of a server.
type Connection struct {
	admission *Admission
	conn      io.Closer
	calls     [kinds]int // in flight
	entry     Entry[*Connection]
	// owner is valid only if the connection is owned.
	owner         string
	owned, closed bool
}

var errTooManyConnections = errors.New("too many connections, each with a call in flight")

// Connect admits a connection. If there are too many, it closes an idle one, whose client
// reconnects for its next call. It fails if none is idle. [Connection.Disconnect] must be
// called when the connection has ended.
func (a *Admission) Connect(conn io.Closer) (*Connection, error) {
	a.mu.Lock()
	var victim *Connection
	if a.open >= a.limits.Connections {
		if victim = a.victimLocked(); victim == nil {
			a.mu.Unlock()
			a.metrics.refusedConnections.Inc()
			return nil, errTooManyConnections
		}
		victim.removeLocked()
	}
	c := &Connection{admission: a, conn: conn}
	c.entry.Value = c
	a.unowned.Add(&c.entry, "")
	a.open++
	a.mu.Unlock()
	a.close(victim)
	return c, nil
}

// close closes a connection that made room for another; there may be none.
func (a *Admission) close(victim *Connection) {
	if victim == nil {
		return
	}
	a.metrics.closedConnections.Inc()
	_ = victim.conn.Close() // nothing can be done about an error
}

// victimLocked returns the connection to close to make room for another; nil if none is
// idle. Connections on which no call was admitted come first, except for a tenth of all
// connections, because each client needs one before its first call.
func (a *Admission) victimLocked() *Connection {
	unowned, idle := a.unowned.First(), a.idle.First()
	switch {
	case unowned != nil && (idle == nil || a.open-a.owned.Taken() > a.limits.Connections/10):
		return unowned.Value
	case idle != nil:
		return idle.Value
	}
	return nil
}

// Disconnect removes a closed connection. It may be called more than once, and before the
// last calls on the connection have ended.
func (c *Connection) Disconnect() {
	c.admission.mu.Lock()
	defer c.admission.mu.Unlock()
	c.removeLocked()
}

// Idle reports whether no call is in flight on the connection.
func (c *Connection) Idle() bool {
	c.admission.mu.Lock()
	defer c.admission.mu.Unlock()
	return c.calls == [kinds]int{}
}

func (c *Connection) removeLocked() {
	if c.closed {
		return
	}
	c.closed = true
	c.admission.open--
	if !c.owned {
		c.admission.unowned.Remove(&c.entry)
		return
	}
	c.admission.idle.Remove(&c.entry)
	c.admission.owned.Give(c.owner, 1)
	if c.owner != "" && c.admission.owned.Held(c.owner) == 0 {
		c.admission.idle.Forget(c.owner)
	}
}

// Ticket is the place of a call in flight. The zero value is no place.
type Ticket struct {
	conn      *Connection
	kind      Kind
	principal string
	left      bool // guarded by the admission
}

// Admit gives a call a unary place, which every call has until its request was received.
// Callers that cannot be told apart have the principal "": only their connections limit
// their shares. The error is an [instance.Error] for the caller.
func (c *Connection) Admit(principal string) (Ticket, error) {
	a := c.admission
	a.mu.Lock()
	if a.drained != nil {
		a.mu.Unlock()
		a.metrics.refused.Get(instance.ReasonDraining).Inc()
		return Ticket{}, ErrDraining(0)
	}
	if !c.takeLocked(Unary, principal) {
		a.mu.Unlock()
		return Ticket{}, a.refuse(Unary, principal)
	}
	victim, ok := c.ownLocked(principal)
	if !ok {
		a.calls[Unary].Give(principal, 1)
		c.calls[Unary]--
		a.mu.Unlock()
		return Ticket{}, a.refuseConnection(principal)
	}
	a.idle.Remove(&c.entry)
	a.mu.Unlock()
	a.close(victim)
	return Ticket{conn: c, kind: Unary, principal: principal}, nil
}

// ownLocked makes a principal the owner of a connection without an owner. If the principal
// already has its share of connections, it returns the one to close, which has been idle
// for longest.
func (c *Connection) ownLocked(principal string) (victim *Connection, ok bool) {
	a := c.admission
	if c.owned || c.closed {
		return nil, !c.closed
	}
	if !a.owned.Take(principal, 1) {
		idle := a.idle.FirstOf(principal)
		if idle == nil {
			return nil, false
		}
		victim = idle.Value
		victim.removeLocked()
		// It replaces the closed one, even beyond the share, which may have shrunk since.
		a.owned.Force(principal, 1)
	}
	a.unowned.Remove(&c.entry)
	c.owned, c.owner = true, principal
	return victim, true
}

// Promote exchanges the place of a call for a long-lived one. If that fails the call keeps
// its place. If the call has already ended, because the caller left before its request was
// received, the error is [context.Canceled].
func (t *Ticket) Promote() error {
	a := t.conn.admission
	a.mu.Lock()
	if t.left {
		a.mu.Unlock()
		return context.Canceled
	}
	admitted := t.conn.takeLocked(LongLived, t.principal)
	if admitted {
		t.conn.giveLocked(t.kind, t.principal)
		t.kind = LongLived
	}
	a.mu.Unlock()
	if !admitted {
		return a.refuse(LongLived, t.principal)
	}
	return nil
}

// Kind returns the kind of the call.
func (t *Ticket) Kind() Kind { return t.kind }

// Admitted reports whether the call has a place.
func (t *Ticket) Admitted() bool { return t.conn != nil }

// Leave releases the place.
func (t *Ticket) Leave() {
	c, a := t.conn, t.conn.admission
	a.mu.Lock()
	defer a.mu.Unlock()
	t.left = true
	c.giveLocked(t.kind, t.principal)
	if c.calls == [kinds]int{} && !c.closed {
		a.idle.Add(&c.entry, c.owner)
	}
	if a.drained != nil {
		a.endDrainLocked()
	}
}

// takeLocked takes a place if both the principal and the connection may have another.
func (c *Connection) takeLocked(kind Kind, principal string) bool {
	shares := &c.admission.calls[kind]
	if !shares.MayTake(c.calls[kind], 1) || !shares.Take(principal, 1) {
		return false
	}
	c.calls[kind]++
	return true
}

func (c *Connection) giveLocked(kind Kind, principal string) {
	c.admission.calls[kind].Give(principal, 1)
	c.calls[kind]--
}

// ErrDraining returns the error for calls during shutdown. A delay of zero means none.
func ErrDraining(retryAfter time.Duration) *instance.Error {
	return &instance.Error{
		Kind:       instance.KindUnavailable,
		Reason:     instance.ReasonDraining,
		Message:    "the server is shutting down; nothing was changed by this call",
		RetryAfter: retryAfter,
	}
}

// refuse returns the error for a call without a place. Its retry delay is jittered, so that
// callers that were rejected together do not retry together.
func (a *Admission) refuse(kind Kind, principal string) error {
	if kind == LongLived {
		a.countRefusal(principal, kind, instance.ReasonTooManyStreams)
		return &instance.Error{
			Kind:       instance.KindExhausted,
			Reason:     instance.ReasonTooManyStreams,
			Message:    fmt.Sprintf("too many watches and waits: of %d, a caller may have as many as it leaves free", a.limits.Streams),
			RetryAfter: time.Second + rand.N(2*time.Second), //nolint:gosec // to spread load takes no secret
		}
	}
	a.countRefusal(principal, kind, instance.ReasonTooManyRequests)
	return &instance.Error{
		Kind:       instance.KindExhausted,
		Reason:     instance.ReasonTooManyRequests,
		Message:    fmt.Sprintf("too many concurrent requests: of %d, a caller may have as many as it leaves free; nothing was changed by this call", a.limits.Requests),
		RetryAfter: 100*time.Millisecond + rand.N(200*time.Millisecond), //nolint:gosec // as above
	}
}

func (a *Admission) refuseConnection(principal string) error {
	a.countRefusal(principal, Unary, instance.ReasonTooManyConnections)
	return &instance.Error{
		Kind:       instance.KindExhausted,
		Reason:     instance.ReasonTooManyConnections,
		Message:    fmt.Sprintf("too many connections with calls in flight: of %d, a caller may have as many as it leaves free; nothing was changed by this call", a.limits.Connections),
		RetryAfter: time.Second + rand.N(2*time.Second), //nolint:gosec // as above
	}
}

// countRefusal counts and logs a rejected call. There may be floods of them: the log holds back
// repeats at this level.
func (a *Admission) countRefusal(principal string, kind Kind, reason string) {
	a.metrics.refused.Get(reason).Inc()
	ctx := context.Background()
	if !a.log.Enabled(ctx, slog.LevelWarn) {
		return
	}
	a.mu.Lock()
	unary, longLived, open := a.calls[Unary].Taken(), a.calls[LongLived].Taken(), a.open
	a.mu.Unlock()
	a.log.LogAttrs(ctx, slog.LevelWarn, "too many calls: a call is rejected", slog.String("principal", principal), slog.Bool("long_lived", kind == LongLived),
		slog.Int("requests", unary), slog.Int("streams", longLived), slog.Int("connections", open))
}
