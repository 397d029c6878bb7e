package server

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/instanced/instanced/internal/admission"
)

// connections are the connections of a server: who is admitted on them, what floods on them
// cost, and which responses wait on them.
type connections struct {
	*admission.Admission
	unsent unsentBudget

	mu sync.Mutex
	// paid is until when is paid what floods have cost, see [connections.pay].
	paid time.Time
}

func newConnections(log *slog.Logger, limits admission.Limits) *connections {
	return &connections{Admission: admission.New(log, limits)}
}

// connection is a connection and the account of what is in flight on it.
type connection struct {
	net.Conn
	admission *connections
	account   *admission.Connection

	// unsent is guarded by the budget of the admission.
	unsent unsentOf

	// refused counts the calls that were refused since the connection was last read,
	// arrived those that were admitted, or were refused and have ended.
	refused atomic.Int64
	arrived atomic.Int64

	// These belong to the goroutine that reads: what was read; how many calls have begun,
	// in all and when it last read, and how many of them are given up as lost on their way
	// to the gate; and what may still be read free of charge, as of chargedAt.
	frames    frameCounter
	begun     int64
	begunThen int64
	lost      int64
	free      time.Duration
	chargedAt time.Time

	// writing has an element while something is written, which began at writingSince, in
	// nanoseconds; 0 for nothing.
	writing      chan struct{}
	writingSince atomic.Int64
	written      atomic.Int64 // bytes that were not spent on updates of windows
	closed       atomic.Bool
}

// What a flood costs the connection that it comes from, in time for which it is not read.
const (
	// A call that is refused.
	refusalPrice = 200 * time.Microsecond
	// A call that is cancelled.
	cancelPrice = time.Millisecond
	// A frame that carries no request and takes work all the same.
	framePrice = 50 * time.Microsecond
	// A connection has maxFree free of charge, which comes back by a twentieth of the time:
	// a client may cancel 250 calls at once, or 50 a second for ever.
	maxFree   = 250 * time.Millisecond
	freeShare = 20
	// All connections together pay one after another, once more than this is due.
	maxDue = 100 * time.Millisecond
	// A client may update its windows once for so much that was written to it.
	bytesPerUpdate = 1 << 10
)

const (
	// maxArriving is how many calls of a connection may have a goroutine and no place:
	// those whose handlers have not come to the gate, and those that are refused.
	maxArriving = 128
	// arrivingTimeout is when such calls are given up: grpc-go refuses a few by itself,
	// such as those with an encoding that it does not know.
	arrivingTimeout = time.Second
	// arrivingInterval is how often they are counted while there are too many.
	arrivingInterval = time.Millisecond
	// minCallBytes is what the headers of a call take at the least.
	minCallBytes = 14
	// stalledAfter is when a peer counts as one that does not take what is written.
	stalledAfter = 10 * time.Millisecond
)

// Read reads. From a connection that floods the service it does so slowly: each call that
// is read gets a goroutine if only to be refused, each frame takes the processor, and the
// calls of others would wait behind thousands of them: BenchmarkShedding,
// TestFloodsCostWhoeverSendsThem.
//
// When it is called, the transport has handled all whole frames that were read before.
func (c *connection) Read(p []byte) (int, error) {
	c.awaitWrite()
	c.charge()
	c.awaitArrivals()
	n, err := c.Conn.Read(p[:min(len(p), c.frames.payload+maxArriving*minCallBytes)])
	c.frames.read(p[:n])
	return n, err
}

// awaitWrite waits while the peer does not take what is written to it: the answers to what
// it sends meanwhile would fill the memory.
func (c *connection) awaitWrite() {
	if since := c.writingSince.Load(); since != 0 && time.Now().UnixNano()-since > int64(stalledAfter) {
		c.writing <- struct{}{}
		<-c.writing
	}
}

// charge waits for what was read last to be paid. Headers with which no call has begun were
// turned away by the transport, and cost what a refusal costs.
func (c *connection) charge() {
	seen := c.frames.take()
	refused := c.refused.Swap(0) + max(0, int64(seen.headers)-(c.begun-c.begunThen))
	c.begunThen = c.begun
	if seen.updates > 0 {
		earned := min(int64(seen.updates), c.written.Load()/bytesPerUpdate)
		c.written.Add(-earned * bytesPerUpdate)
		seen.others += seen.updates - int(earned)
	}
	price := time.Duration(refused)*refusalPrice + time.Duration(seen.cancels)*cancelPrice + time.Duration(seen.others)*framePrice
	if price == 0 {
		return
	}
	now := time.Now()
	c.free = min(maxFree, c.free+now.Sub(c.chargedAt)/freeShare) - price
	c.chargedAt = now
	if c.free < 0 {
		price, c.free = -c.free, 0
		time.Sleep(c.admission.pay(now, price))
	}
}

// pay returns how long a connection is not to be read that has cost so much.
func (a *connections) pay(now time.Time, price time.Duration) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.paid.Before(now) {
		a.paid = now
	}
	a.paid = a.paid.Add(price)
	return a.paid.Sub(now) - maxDue
}

// awaitArrivals waits until there are few calls that have a goroutine and no place.
func (c *connection) awaitArrivals() {
	for waited := time.Duration(0); ; waited += arrivingInterval {
		arriving := c.begun - c.arrived.Load() - c.lost
		switch {
		case arriving < 0: // some that were given up have come
			c.lost += arriving
			return
		case arriving < maxArriving || c.closed.Load():
			return
		case waited >= arrivingTimeout:
			c.lost += arriving
			return
		}
		time.Sleep(arrivingInterval)
	}
}

// Write writes. One goroutine does so at a time.
func (c *connection) Write(p []byte) (int, error) {
	c.writing <- struct{}{}
	defer func() { <-c.writing }()
	c.writingSince.Store(time.Now().UnixNano())
	defer c.writingSince.Store(0)
	n, err := c.Conn.Write(p)
	c.written.Add(int64(n))
	return n, err
}

// connect opens the account of a connection.
func (a *connections) connect(conn net.Conn) (*connection, error) {
	account, err := a.Connect(conn)
	if err != nil {
		return nil, err
	}
	return &connection{
		Conn: conn, admission: a, account: account,
		free: maxFree, chargedAt: time.Now(), writing: make(chan struct{}, 1),
	}, nil
}

// admit admits a call, as [admission.Connection.Admit] does. A call that is refused costs
// the connection.
func (c *connection) admit(ctx context.Context) (admission.Ticket, error) {
	principal := callerOf(ctx).Principal
	if principal == anonymous {
		principal = "" // such callers can only be told apart by their connections
	}
	ticket, err := c.account.Admit(principal)
	if err != nil {
		c.refused.Add(1)
	}
	return ticket, err
}

// promote gives a call a long-lived place, as [admission.Ticket.Promote] does.
func (c *connection) promote(t *admission.Ticket) error {
	err := t.Promote()
	if err != nil {
		c.refused.Add(1)
	}
	return err
}

// Close closes the connection and its account.
func (c *connection) Close() error {
	c.closed.Store(true)
	c.account.Disconnect()
	c.admission.unsent.close(c)
	return c.Conn.Close()
}

// counted are credentials whose connections have accounts.
type counted struct {
	credentials.TransportCredentials
	admission *connections
}

// peerInfo is what is known of the peer of a call.
type peerInfo struct {
	credentials.AuthInfo
	conn *connection
}

// ServerHandshake opens the account of a connection once that is secured.
func (c counted) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secured, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	conn, err := c.admission.connect(secured)
	if err != nil {
		return nil, nil, err
	}
	return conn, peerInfo{info, conn}, nil
}

// Clone returns credentials that share the accounts.
func (c counted) Clone() credentials.TransportCredentials {
	return counted{c.TransportCredentials.Clone(), c.admission}
}

// connectionOf returns the connection of a call.
func connectionOf(ctx context.Context) *connection {
	p, _ := peer.FromContext(ctx)
	return p.AuthInfo.(peerInfo).conn
}
