package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/instanced/instanced/internal/admission"
)

// connections are the connections of a server: admission on them, the cost of floods, and
// the responses that are not sent yet.
type connections struct {
	*admission.Admission
	unsent unsentBudget
	tls    tlsConnections

	log        *slog.Logger
	mismatches mismatches

	mu sync.Mutex
	// paid is the time up to which the cost of floods is paid, see [connections.pay].
	paid time.Time
}

func newConnections(cfg admission.Config) *connections {
	return &connections{Admission: admission.New(cfg), log: cfg.Logger}
}

// connection is a connection and its account.
type connection struct {
	net.Conn
	admission *connections
	account   *admission.Connection
	// tls is nil in plaintext.
	tls *tlsClient

	// unsent is guarded by the budget in admission.
	unsent unsentOf

	// refused counts calls rejected since the last read; arrived counts calls that were
	// admitted, or rejected and have ended.
	refused atomic.Int64
	arrived atomic.Int64

	// These belong to the reading goroutine: whether anything was read; the frames read; how many calls have begun, in
	// total and as of the last read; how many of them are given up because they did not
	// reach admission; and how much may still be read free of charge, as of chargedAt.
	greeted   bool
	frames    frameCounter
	begun     int64
	begunThen int64
	lost      int64
	free      time.Duration
	chargedAt time.Time

	// writing has an element during a write, which began at writingSince, in nanoseconds; 0
	// when nothing is written.
	writing      chan struct{}
	writingSince atomic.Int64
	written      atomic.Int64 // bytes for which no window update was accepted yet
	closed       atomic.Bool
}

// What a flood costs its connection: the time for which the connection is not read.
const (
	// A rejected call.
	refusalPrice = 200 * time.Microsecond
	// A canceled call.
	cancelPrice = time.Millisecond
	// A frame that carries no request but still takes work.
	framePrice = 50 * time.Microsecond
	// A connection has a credit of maxFree, which is refilled at a twentieth of the time
	// that passes: a client may cancel 250 calls at once, or 50 per second forever.
	maxFree   = 250 * time.Millisecond
	freeShare = 20
	// Once more than this is due, all connections pay one after another.
	maxDue = 100 * time.Millisecond
	// A client may update its windows once per this many bytes written to it.
	bytesPerUpdate = 1 << 10
)

const (
	// maxArriving is how many calls of a connection may have a goroutine but no place: those
	// that have not reached admission yet, and rejected ones that have not ended.
	maxArriving = 128
	// arrivingTimeout is after how long such calls are given up: grpc-go rejects some calls
	// itself, such as those with an unknown encoding.
	arrivingTimeout = time.Second
	// arrivingInterval is how often they are counted while there are too many of them.
	arrivingInterval = time.Millisecond
	// minCallBytes is the minimum size of the headers of a call.
	minCallBytes = 14
	// tlsHandshakeRecord is the first byte of a client that speaks TLS.
	tlsHandshakeRecord = 0x16
	// stalledAfter is after how long a pending write means that the peer does not read.
	stalledAfter = 10 * time.Millisecond
)

// Read throttles connections that flood the server: even a rejected call costs a goroutine,
// every frame takes processor time, and the calls of others would wait behind thousands of
// them. See BenchmarkShedding and TestFloodsCostWhoeverSendsThem.
//
// When it is called, the transport has handled all complete frames read before.
func (c *connection) Read(p []byte) (int, error) {
	c.awaitWrite()
	c.charge()
	c.awaitArrivals()
	n, err := c.Conn.Read(p[:min(len(p), c.frames.payload+maxArriving*minCallBytes)])
	if n > 0 && !c.greeted {
		c.greeted = true
		if c.tls == nil && p[0] == tlsHandshakeRecord {
			c.admission.mismatches.log(c.admission.log, c.RemoteAddr(), "connections fail", errTLSOnPlaintext)
		}
	}
	c.frames.read(p[:n])
	return n, err
}

// awaitWrite waits while the peer does not read what is written to it; otherwise responses
// to what it keeps sending would fill the memory.
func (c *connection) awaitWrite() {
	if since := c.writingSince.Load(); since != 0 && time.Now().UnixNano()-since > int64(stalledAfter) {
		c.writing <- struct{}{}
		<-c.writing
	}
}

// charge waits until the cost of the last read is paid. Headers that began no call were
// rejected by the transport, and cost as much as a rejected call.
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

// pay returns how long not to read a connection that owes this price.
func (a *connections) pay(now time.Time, price time.Duration) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.paid.Before(now) {
		a.paid = now
	}
	a.paid = a.paid.Add(price)
	return a.paid.Sub(now) - maxDue
}

// awaitArrivals waits while too many calls have a goroutine but no place.
func (c *connection) awaitArrivals() {
	for waited := time.Duration(0); ; waited += arrivingInterval {
		arriving := c.begun - c.arrived.Load() - c.lost
		switch {
		case arriving < 0: // some that were given up have arrived
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

// Write writes. Only one goroutine writes at a time.
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

// admit admits a call, as [admission.Connection.Admit] does, and charges the connection for
// a rejected one.
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
	if c.tls != nil {
		c.admission.tls.remove(c)
	}
	return c.Conn.Close()
}

// trackedCredentials are credentials that open an account for each connection.
type trackedCredentials struct {
	credentials.TransportCredentials
	admission *connections
	// present returns the present configuration of TLS; nil in plaintext.
	present func() *tls.Config
}

// peerInfo identifies the connection of a call.
type peerInfo struct {
	credentials.AuthInfo
	conn *connection
}

// ServerHandshake opens the account of a connection before the handshake, so that clients that
// do not finish theirs are limited too.
func (c trackedCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, err := c.admission.connect(raw)
	if err != nil {
		return nil, nil, err
	}
	var authorities *x509.CertPool
	if c.present != nil {
		// Read first: if it changes meanwhile, the certificate is verified again.
		authorities = c.present().ClientCAs
	}
	lingering := &lingeringConn{Conn: raw}
	secured, info, err := c.TransportCredentials.ServerHandshake(lingering)
	lingering.established.Store(err == nil)
	if err != nil {
		c.admission.handshakeFailed(raw.RemoteAddr(), err)
		_ = conn.Close() // it is of no use
		return nil, nil, err
	}
	conn.Conn = secured
	if info, ok := info.(credentials.TLSInfo); ok {
		conn.tls = newTLSClient(info.State, authorities)
		c.admission.tls.add(conn)
	}
	return conn, peerInfo{info, conn}, nil
}

// Clone returns credentials that share the accounts.
func (c trackedCredentials) Clone() credentials.TransportCredentials {
	return trackedCredentials{c.TransportCredentials.Clone(), c.admission, c.present}
}

// connectionOf returns the connection of a call.
func connectionOf(ctx context.Context) *connection {
	p, _ := peer.FromContext(ctx)
	return p.AuthInfo.(peerInfo).conn
}
