package server

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

// Limits on responses that the transport has not sent yet, because their peer does not read
// them or keeps its HTTP/2 windows shut. A call whose response finds no room keeps its
// handler, and so its place among --max-requests, until there is some.
const (
	maxUnsentBytes      = 4 << 20
	maxTotalUnsentBytes = 256 << 20
	// unsentOverhead is what the transport keeps of a call beside its response.
	unsentOverhead = 4 << 10
	// unsentStreamBytes is what may be left of a stream when its handler returns: a
	// message, and as much again as the transport queues.
	unsentStreamBytes = 128 << 10
	// unsentTimeout is after how long without a response sent a connection is closed whose
	// responses wait for room; evictAfter, where the room of all connections is used up.
	unsentTimeout = 30 * time.Second
	evictAfter    = 5 * time.Second
	// unsentInterval is how often those who wait for room look for such connections.
	unsentInterval = time.Second
)

// errUnread is the response of a call whose response found no room in time.
var errUnread = status.Error(codes.Unavailable, "the connection is closed: its peer does not read the responses")

// unsentBudget is the account of all responses that are not sent. It is safe for concurrent
// use. The per-connection fields of [connection.unsent] belong to it.
type unsentBudget struct {
	mu    sync.Mutex
	total int
	// released is closed when there is more room; nil while no response waits.
	released chan struct{}
	conns    map[*connection]struct{} // those with unsent bytes
}

// unsentOf is the part of a connection in an [unsentBudget].
type unsentOf struct {
	bytes int
	// progressed is when a response was sent last, or the first of these was queued.
	progressed time.Time
	closed     bool
}

// reserve waits for room for a response of so many bytes. The error is that of ctx, or that
// the connection was closed since its peer does not read.
func (b *unsentBudget) reserve(ctx context.Context, c *connection, bytes int) error {
	for {
		released, err := b.tryReserve(c, bytes)
		if released == nil {
			return err
		}
		timer := time.NewTimer(unsentInterval)
		select {
		case <-released:
		case <-timer.C:
			b.evictStalled(c)
		case <-ctx.Done():
			timer.Stop()
			return status.FromContextError(ctx.Err()).Err()
		}
		timer.Stop()
	}
}

// tryReserve returns what is closed when it is worth trying again; nil when it is done.
func (b *unsentBudget) tryReserve(c *connection, bytes int) (<-chan struct{}, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	u := &c.unsent
	if u.closed {
		return nil, errUnread
	}
	if (u.bytes == 0 || u.bytes+bytes <= maxUnsentBytes) && (b.total == 0 || b.total+bytes <= maxTotalUnsentBytes) {
		if u.bytes == 0 {
			u.progressed = time.Now()
			if b.conns == nil {
				b.conns = make(map[*connection]struct{})
			}
			b.conns[c] = struct{}{}
		}
		u.bytes += bytes
		b.total += bytes
		return nil, nil
	}
	if b.released == nil {
		b.released = make(chan struct{})
	}
	return b.released, nil
}

// release gives room back: a response was sent, or is no longer wanted.
func (b *unsentBudget) release(c *connection, bytes int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !c.unsent.closed {
		c.unsent.progressed = time.Now()
		b.releaseLocked(c, bytes)
	}
}

func (b *unsentBudget) releaseLocked(c *connection, bytes int) {
	c.unsent.bytes -= bytes
	b.total -= bytes
	if c.unsent.bytes == 0 {
		delete(b.conns, c)
	}
	if b.released != nil {
		close(b.released)
		b.released = nil
	}
}

// sent reports whether nothing of a connection is unsent.
func (b *unsentBudget) sent(c *connection) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return c.unsent.bytes == 0
}

// close gives back all room of a connection that is closed.
func (b *unsentBudget) close(c *connection) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !c.unsent.closed {
		b.releaseLocked(c, c.unsent.bytes)
		c.unsent.closed = true
	}
}

// evictStalled closes the connection of a waiting response if nothing was sent on it for
// too long, or, where the room of all is used up, the one that has been stalled for longest.
func (b *unsentBudget) evictStalled(c *connection) {
	now := time.Now()
	b.mu.Lock()
	victim, timeout := c, unsentTimeout
	if b.total > maxTotalUnsentBytes-maxUnsentBytes {
		timeout = evictAfter
		for other := range b.conns {
			if victim.unsent.bytes == 0 || other.unsent.progressed.Before(victim.unsent.progressed) {
				victim = other
			}
		}
	}
	stalled := victim.unsent.bytes > 0 && now.Sub(victim.unsent.progressed) >= timeout
	b.mu.Unlock()
	if stalled {
		_ = victim.Close() // it is given up, whatever that says
	}
}

// unsentMark is a buffer without content at the end of each message. The transport frees it
// with the message: when it was sent, or its stream or connection has ended. Buffers of less
// capacity are not counted by mem.
var unsentMark = make([]byte, 0, 2<<10)

// marked returns an encoded message with a mark that is put back into pool when it is freed.
func marked(data mem.BufferSlice, pool mem.BufferPool) frame {
	return frame{append(slices.Clip(data), mem.NewBuffer(&unsentMark, pool))}
}

// unsentResponse is the response of a unary call.
type unsentResponse struct {
	mem.NopBufferPool
	conn    *connection
	bytes   int
	cleanup runtime.Cleanup
}

// Put is called when the response is no longer in memory.
func (u *unsentResponse) Put(*[]byte) {
	u.cleanup.Stop()
	u.conn.admission.unsent.release(u.conn, u.bytes)
	runtime.KeepAlive(u)
}

// queue returns an encoded response for the transport once there is room for it.
func (c *connection) queue(ctx context.Context, data mem.BufferSlice) (frame, error) {
	bytes := data.Len() + unsentOverhead
	if err := c.admission.unsent.reserve(ctx, c, bytes); err != nil {
		data.Free()
		return frame{}, err
	}
	u := &unsentResponse{conn: c, bytes: bytes}
	// The transport forgets to free what it gets for a stream that is reset at that moment.
	u.cleanup = runtime.AddCleanup(u, func(bytes int) { c.admission.unsent.release(c, bytes) }, bytes)
	return marked(data, u), nil
}

// unsentMessages counts the messages of a stream that are not sent.
type unsentMessages struct {
	mem.NopBufferPool
	mu    sync.Mutex
	count int
	// conn is charged for what is left when the handler returns; nil before.
	conn *connection
}

// Put is called when a message is no longer in memory.
func (u *unsentMessages) Put(*[]byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.count--; u.count == 0 && u.conn != nil {
		u.conn.admission.unsent.release(u.conn, unsentStreamBytes)
	}
}

// mark returns a message that is counted.
func (u *unsentMessages) mark(data mem.BufferSlice) frame {
	u.mu.Lock()
	u.count++
	u.mu.Unlock()
	return marked(data, u)
}

// settle waits for room for what is left of a stream whose handler is about to return. What
// is left of one that its caller has cancelled was dropped.
func (u *unsentMessages) settle(ctx context.Context, c *connection) {
	u.mu.Lock()
	left := u.count
	u.mu.Unlock()
	if left == 0 || errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	// The deadline of the stream may have passed; its connection ends the wait.
	if c.admission.unsent.reserve(context.WithoutCancel(ctx), c, unsentStreamBytes) != nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.conn = c; u.count == 0 {
		c.admission.unsent.release(c, unsentStreamBytes)
	}
}
