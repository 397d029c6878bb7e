package server

import (
	"context"
	"errors"
	"math"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// connection is a connection and the account of what is under way on it.
type connection struct {
	net.Conn
	admission *admission

	// All below is guarded by the admission: how many calls of each kind are under
	// way, and when the last one ended, or else the connection began, in turns.
	calls [kinds]int
	turn  uint64

	// refused counts the calls that were refused since the connection was last read.
	refused atomic.Int64
}

const (
	// For each call that is refused a connection is not read for so long, and for no
	// longer than maxPause at once.
	pausePerRefusal = 200 * time.Microsecond
	maxPause        = 50 * time.Millisecond
)

// Read reads. From a connection that floods the service it does so slowly: of what is
// read, each call gets a goroutine if only to be refused, and the calls of others would
// wait behind thousands of them: BenchmarkShedding.
func (c *connection) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if refused := c.refused.Swap(0); refused > 0 {
		time.Sleep(min(time.Duration(refused)*pausePerRefusal, maxPause))
	}
	return n, err
}

var errTooManyConnections = errors.New("too many connections, with a call under way on each")

// connect opens an account. When there are too many connections, the one that has
// been without a call for longest gives way: its client, if there is one, connects
// again for its next call.
func (a *admission) connect(conn net.Conn) (*connection, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.connections) >= a.mostConnections {
		idle := a.longestIdle()
		if idle == nil {
			return nil, errTooManyConnections
		}
		delete(a.connections, idle)
		_ = idle.Conn.Close() // it is given up, whatever that says
	}
	a.turns++
	c := &connection{Conn: conn, admission: a, turn: a.turns}
	a.connections[c] = struct{}{}
	return c, nil
}

func (a *admission) longestIdle() *connection {
	var idle *connection
	least := uint64(math.MaxUint64)
	for c := range a.connections {
		if c.calls == [kinds]int{} && c.turn < least {
			idle, least = c, c.turn
		}
	}
	return idle
}

// Close closes the connection and its account.
func (c *connection) Close() error {
	c.admission.mu.Lock()
	delete(c.admission.connections, c)
	c.admission.mu.Unlock()
	return c.Conn.Close()
}

// counted are credentials whose connections have accounts.
type counted struct {
	credentials.TransportCredentials
	admission *admission
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
