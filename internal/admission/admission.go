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

	"github.com/instanced/instanced/internal/instance"
)

// Defaults of [Limits].
const (
	DefaultMaxRequests    = 2048
	DefaultMaxStreams     = 8192
	DefaultMaxConnections = 5000
)

// logInterval is how often the log mentions refused calls.
const logInterval = time.Second

// Kind is a kind of call. Each has places of its own.
type Kind uint8

// The kinds: calls that are answered as soon as possible, and streams and waits, which last
// as long as their callers like.
const (
	Unary Kind = iota
	LongLived
	kinds
)

// Limits are how much a server admits at once.
type Limits struct {
	Requests    int // unary calls
	Streams     int // long-lived calls
	Connections int
}

// Admission admits the calls and connections of a server. It is safe for concurrent use.
type Admission struct {
	limits Limits
	log    *slog.Logger

	mu    sync.Mutex
	calls [kinds]instance.Shares // by principal; connections count their own calls
	open  int                    // connections
	owned instance.Shares        // of the connections, those that belong to a principal
	// idle are the owned connections without a call in flight, unowned those without an
	// owner; in each the first is the one that has been idle for longest.
	idle    Queue[*Connection]
	unowned Queue[*Connection]
	// drained is closed when the last call has ended after [Admission.Drain]; nil before.
	drained chan struct{}
	// refused counts refusals since the log last mentioned them, at loggedAt.
	refused  int
	loggedAt time.Time
}

// New returns an admission that has admitted nothing.
func New(log *slog.Logger, limits Limits) *Admission {
	return &Admission{
		limits: limits,
		log:    log,
		calls:  [kinds]instance.Shares{Unary: instance.NewShares(limits.Requests), LongLived: instance.NewShares(limits.Streams)},
		owned:  instance.NewShares(limits.Connections),
	}
}

// Limits returns how much is admitted at once.
func (a *Admission) Limits() Limits { return a.limits }

// InFlight returns how many calls of a kind are in flight.
func (a *Admission) InFlight(kind Kind) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.calls[kind].Taken()
}

// Drain refuses all calls from now on. It returns a channel that is closed when no call is in
// flight any more.
func (a *Admission) Drain() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.drained == nil {
		a.drained = make(chan struct{})
		a.endDrainLocked()
	}
	return a.drained
}

// endDrainLocked is called when calls may have ended, none of which begin any more.
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
	// owner is meaningless before the connection is owned.
	owner         string
	owned, closed bool
}

var errTooManyConnections = errors.New("too many connections, each with a call in flight")

// Connect admits a connection. If there are too many, it closes an idle one to make room:
// the client of that, if there still is one, connects again for its next call. The error is
// that none is idle. [Connection.Disconnect] must be called in the end.
func (a *Admission) Connect(conn io.Closer) (*Connection, error) {
	a.mu.Lock()
	var victim *Connection
	if a.open >= a.limits.Connections {
		if victim = a.victimLocked(); victim == nil {
			a.mu.Unlock()
			return nil, errTooManyConnections
		}
		victim.removeLocked()
	}
	c := &Connection{admission: a, conn: conn}
	c.entry.Value = c
	a.unowned.Add(&c.entry, "")
	a.open++
	a.mu.Unlock()
	if victim != nil {
		_ = victim.conn.Close() // nothing can be done about an error
	}
	return c, nil
}

// victimLocked returns the connection that makes room for another; nil if none is idle.
// Connections on which no call was admitted go first, but a tenth of all may always be such:
// each client needs one before its first call.
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

// Disconnect ends the account of a connection that is closed. It may be called more than
// once, and before the last calls on the connection have ended.
func (c *Connection) Disconnect() {
	c.admission.mu.Lock()
	defer c.admission.mu.Unlock()
	c.removeLocked()
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

// Ticket is the place of a call in flight. Its zero value is none.
type Ticket struct {
	conn      *Connection
	kind      Kind
	principal string
	left      bool // guarded by the admission
}

// Admit gives a call a place among the unary ones, as all calls are until their request was
// received. Callers who cannot be told apart have the principal "": they share what there is
// by connection alone. The error is an [instance.Error] for the caller.
func (c *Connection) Admit(principal string) (Ticket, error) {
	a := c.admission
	a.mu.Lock()
	if a.drained != nil {
		a.mu.Unlock()
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
	if victim != nil {
		_ = victim.conn.Close() // nothing can be done about an error
	}
	return Ticket{conn: c, kind: Unary, principal: principal}, nil
}

// ownLocked makes a principal the owner of a connection that has none. One that has its share
// of connections must give up the one that has been idle for longest: it is returned.
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
		// Its place, even if that is beyond the share: another principal may have taken many since.
		a.owned.Force(principal, 1)
	}
	a.unowned.Remove(&c.entry)
	c.owned, c.owner = true, principal
	return victim, true
}

// Promote exchanges the place of a call for a long-lived one. A call that is refused keeps
// the place that it has. A request may be received when its call has ended already, because
// the caller has gone: the error is [context.Canceled] then.
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

// Admitted reports whether there is a place to give back.
func (t *Ticket) Admitted() bool { return t.conn != nil }

// Leave gives the place back.
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

// takeLocked takes a place if both the principal and the connection may have one more.
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

// ErrDraining is what callers are told who come while the server shuts down. Zero means that
// it does not say when to try again.
func ErrDraining(retryAfter time.Duration) error {
	return &instance.Error{
		Kind:       instance.KindUnavailable,
		Reason:     instance.ReasonDraining,
		Message:    "the server is shutting down; nothing was changed by this call",
		RetryAfter: retryAfter,
	}
}

// refuse returns what a caller is told for whom there is no place. The delays differ, so
// that those who were refused together do not come back together.
func (a *Admission) refuse(kind Kind, principal string) error {
	a.logRefusal(principal, kind)
	if kind == LongLived {
		return &instance.Error{
			Kind:       instance.KindExhausted,
			Reason:     instance.ReasonTooManyStreams,
			Message:    fmt.Sprintf("too many watches and waits: of %d, a caller may have as many as it leaves free", a.limits.Streams),
			RetryAfter: time.Second + rand.N(2*time.Second), //nolint:gosec // to spread load takes no secret
		}
	}
	return &instance.Error{
		Kind:       instance.KindExhausted,
		Reason:     instance.ReasonTooManyRequests,
		Message:    fmt.Sprintf("too many concurrent requests: of %d, a caller may have as many as it leaves free; nothing was changed by this call", a.limits.Requests),
		RetryAfter: 100*time.Millisecond + rand.N(200*time.Millisecond), //nolint:gosec // as above
	}
}

func (a *Admission) refuseConnection(principal string) error {
	a.logRefusal(principal, Unary)
	return &instance.Error{
		Kind:       instance.KindExhausted,
		Reason:     instance.ReasonTooManyConnections,
		Message:    fmt.Sprintf("too many connections with calls in flight: of %d, a caller may have as many as it leaves free; nothing was changed by this call", a.limits.Connections),
		RetryAfter: time.Second + rand.N(2*time.Second), //nolint:gosec // as above
	}
}

// logRefusal counts a refused call. Of a flood, the log has one line an interval.
func (a *Admission) logRefusal(principal string, kind Kind) {
	a.mu.Lock()
	a.refused++
	count, now := a.refused, time.Now()
	if now.Sub(a.loggedAt) < logInterval {
		a.mu.Unlock()
		return
	}
	a.refused, a.loggedAt = 0, now
	unary, longLived, open := a.calls[Unary].Taken(), a.calls[LongLived].Taken(), a.open
	a.mu.Unlock()
	a.log.Warn("too many calls: some are refused", "refused", count, "last_principal", principal, "last_was_long_lived", kind == LongLived,
		"requests", unary, "streams", longLived, "connections", open)
}
