package server

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// kind is a kind of calls. Each has places of its own.
type kind uint8

// The kinds: calls that are answered as soon as may be, and subscriptions and waits,
// which last as long as their callers like.
const (
	brief kind = iota
	lasting
	kinds
)

// sheddingLogInterval is how often the log speaks of calls that were shed.
const sheddingLogInterval = time.Second

// admission bounds what is under way at once. A caller, which is a principal or a
// connection, may have as many places as are left over: one that floods the service
// gets half of them, two get a third each, and whoever comes next still finds some.
type admission struct {
	log             *slog.Logger
	mostConnections int
	unsent          unsentBudget

	mu sync.Mutex
	// shares are those of the principals; connections count what they hold themselves.
	shares      [kinds]instance.Shares
	connections map[*connection]struct{}
	// paid is until when is paid what floods have cost, see [admission.pay].
	paid time.Time
	// turns count ends of calls and begins of connections.
	turns uint64
	// shed counts calls since the log last spoke of them, at loggedAt.
	shed     int
	loggedAt time.Time
}

func newAdmission(log *slog.Logger, requests, streams, connections int) *admission {
	return &admission{
		log:             log,
		mostConnections: connections,
		shares:          [kinds]instance.Shares{brief: instance.NewShares(requests), lasting: instance.NewShares(streams)},
		connections:     make(map[*connection]struct{}),
	}
}

// ticket is the place of a call.
type ticket struct {
	admission *admission
	kind      kind
	principal string
	conn      *connection
	// left is whether it was given back; the admission guards it.
	left bool
}

// admit gives a call a place among the brief ones, as all are until their request was
// received.
func (a *admission) admit(principal string, conn *connection) (ticket, error) {
	t := ticket{admission: a, kind: brief, principal: principal, conn: conn}
	a.mu.Lock()
	admitted := a.takeLocked(brief, principal, conn)
	a.mu.Unlock()
	if !admitted {
		return ticket{}, a.refuse(brief, principal, conn)
	}
	return t, nil
}

// last exchanges the place of a call for one among those that last. A call that is
// refused keeps the place that it has. A request may be received when the call has ended
// already, because its caller has gone: it gets no place any more.
func (t *ticket) last() error {
	a := t.admission
	a.mu.Lock()
	if t.left {
		a.mu.Unlock()
		return context.Canceled
	}
	admitted := a.takeLocked(lasting, t.principal, t.conn)
	if admitted {
		a.giveLocked(t.kind, t.principal, t.conn)
		t.kind = lasting
	}
	a.mu.Unlock()
	if !admitted {
		return a.refuse(lasting, t.principal, t.conn)
	}
	return nil
}

// leave gives the place back.
func (t *ticket) leave() {
	t.admission.mu.Lock()
	t.admission.giveLocked(t.kind, t.principal, t.conn)
	t.left = true
	t.admission.mu.Unlock()
}

// takeLocked takes a place if the caller may have one more.
func (a *admission) takeLocked(k kind, principal string, conn *connection) bool {
	if !a.shares[k].MayTake(conn.calls[k], 1) || !a.shares[k].Take(holderOf(principal), 1) {
		return false
	}
	conn.calls[k]++
	return true
}

func (a *admission) giveLocked(k kind, principal string, conn *connection) {
	a.shares[k].Give(holderOf(principal), 1)
	conn.calls[k]--
	a.turns++
	conn.turn = a.turns
}

// holderOf returns the holder of a principal's places. Callers that do not say who they
// are are told apart by their connections alone.
func holderOf(principal string) string {
	if principal == anonymous {
		return ""
	}
	return principal
}

// refuse returns what a caller is told for whom there is no place. To return at
// different times spreads those who were refused together.
func (a *admission) refuse(k kind, principal string, conn *connection) error {
	conn.refused.Add(1)
	a.note(k, principal)
	if k == lasting {
		return &instance.Error{
			Kind:       instance.KindExhausted,
			Reason:     instance.ReasonTooManyStreams,
			Message:    fmt.Sprintf("too many subscriptions and waits are under way: of %d places a caller may have as many as are left over", a.shares[k].Max()),
			RetryAfter: time.Second + rand.N(2*time.Second), //nolint:gosec // to spread load takes no secret
		}
	}
	return &instance.Error{
		Kind:       instance.KindExhausted,
		Reason:     instance.ReasonTooManyRequests,
		Message:    fmt.Sprintf("too many calls are under way: of %d places a caller may have as many as are left over; nothing was changed by this call", a.shares[k].Max()),
		RetryAfter: 100*time.Millisecond + rand.N(200*time.Millisecond), //nolint:gosec // as above
	}
}

// note counts a call that was shed. Of a flood, the log has one line an interval.
func (a *admission) note(k kind, principal string) {
	a.mu.Lock()
	a.shed++
	count, now := a.shed, time.Now()
	if now.Sub(a.loggedAt) < sheddingLogInterval {
		a.mu.Unlock()
		return
	}
	a.shed, a.loggedAt = 0, now
	taken := [kinds]int{brief: a.shares[brief].Taken(), lasting: a.shares[lasting].Taken()}
	a.mu.Unlock()
	a.log.Warn("calls are shed", "calls", count, "one_of", principal, "of_lasting_kind", k == lasting,
		"requests_under_way", taken[brief], "streams_under_way", taken[lasting])
}
