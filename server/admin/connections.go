package admin

import (
	"net"
	"net/http"
	"sync"
)

// DefaultMaxConnections is how many connections may be open unless [Config] says otherwise.
const DefaultMaxConnections = 64

// connections limits the open connections, so that clients of the admin endpoints cannot use up
// the files that the service needs. Beyond the limit the connection that has been without a
// request for the longest is closed: a probe gets through although others keep connections open.
type connections struct {
	max int

	mu sync.Mutex
	// open has when each connection began to wait for a request, counted in such beginnings; 0
	// if it has one.
	open map[net.Conn]uint64
	last uint64
	// closing are those that were closed here and that the server has not let go of yet: until
	// then they keep their files. A channel is closed once it has.
	closing map[net.Conn]chan struct{}
}

func newConnections(limit int) *connections {
	return &connections{max: limit, open: make(map[net.Conn]uint64), closing: make(map[net.Conn]chan struct{})}
}

// changed is the hook of an [http.Server], which accepts the next connection only after it has
// returned for the last.
func (c *connections) changed(conn net.Conn, state http.ConnState) {
	if excess := c.count(conn, state); excess != nil {
		<-excess
	}
}

// count counts a connection in its state, and closes one if there are too many; the channel is
// closed once it is gone. It is nil if there is nothing to wait for.
func (c *connections) count(conn net.Conn, state http.ConnState) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if gone, ok := c.closing[conn]; ok && state == http.StateClosed {
		delete(c.closing, conn)
		close(gone)
	}
	if _, known := c.open[conn]; !known && state != http.StateNew {
		return nil // closed here
	}
	switch state {
	case http.StateNew, http.StateIdle:
		c.last++
		c.open[conn] = c.last
	case http.StateActive:
		c.open[conn] = 0
	case http.StateClosed, http.StateHijacked:
		delete(c.open, conn)
	}
	if len(c.open) <= c.max {
		return nil
	}
	longest := conn // which waits, since it is new
	for other, since := range c.open {
		if since != 0 && since < c.open[longest] {
			longest = other
		}
	}
	delete(c.open, longest)
	_ = longest.Close() // the server finds that it is closed
	if longest == conn {
		return nil // the server does not read it yet
	}
	gone := make(chan struct{})
	c.closing[longest] = gone
	return gone
}
