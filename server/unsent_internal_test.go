package server

import (
	"context"
	"log/slog"
	"net"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/mem"

	"github.com/instanced/instanced/internal/admission"
)

// connected returns connections of one admission.
func connected(t *testing.T, count int) []*connection {
	t.Helper()
	a := newConnections(admission.Config{Logger: slog.New(slog.DiscardHandler), Limits: admission.Limits{Requests: 2, Streams: 2, Connections: count}})
	conns := make([]*connection, count)
	for i := range conns {
		near, far := net.Pipe()
		t.Cleanup(func() { _ = far.Close() })
		conn, err := a.connect(near)
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = conn
	}
	return conns
}

// response returns an encoded response of so many bytes that shares its memory with others.
func response(bytes int) mem.BufferSlice {
	return mem.BufferSlice{mem.SliceBuffer(make([]byte, bytes))}
}

func mustQueue(t *testing.T, c *connection, bytes int) frame {
	t.Helper()
	f, err := c.queue(t.Context(), response(bytes))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestAResponseWaitsUntilThereIsRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := connected(t, 1)[0]
		first := mustQueue(t, c, maxUnsentBytes-unsentOverhead)
		go func() {
			time.Sleep(unsentTimeout - time.Second)
			first.data.Free()
		}()
		began := time.Now()
		second := mustQueue(t, c, 1)
		if took := time.Since(began); took != unsentTimeout-time.Second {
			t.Errorf("it was queued after %v", took)
		}
		second.data.Free()
		if a := c.admission; c.unsent.bytes != 0 || a.unsent.total != 0 || len(a.unsent.conns) != 0 {
			t.Errorf("%d bytes of the connection, and %d in all, are left", c.unsent.bytes, a.unsent.total)
		}
		_ = c.Close()
	})
}

func TestAConnectionWhosePeerDoesNotReadIsClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := connected(t, 1)[0]
		unread := mustQueue(t, c, maxUnsentBytes-unsentOverhead)
		began := time.Now()
		if _, err := c.queue(t.Context(), response(1)); err == nil {
			t.Error("it was queued")
		}
		if took := time.Since(began); took != unsentTimeout || !c.closed.Load() || c.admission.unsent.total != 0 {
			t.Errorf("after %v: closed %t, %d bytes are left", took, c.closed.Load(), c.admission.unsent.total)
		}
		runtime.KeepAlive(unread)
	})
}

func TestAResponseThatFindsNoRoomEndsWithItsCall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := connected(t, 1)[0]
		unread := mustQueue(t, c, maxUnsentBytes-unsentOverhead)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.queue(ctx, response(1)); err == nil || c.closed.Load() {
			t.Errorf("error %v, closed %t", err, c.closed.Load())
		}
		runtime.KeepAlive(unread)
		_ = c.Close()
	})
}

// TestManyConnectionsThatDoNotReadLeaveRoomForOthers has connections use up the room of all:
// they give way one after another, and one that reads does not.
func TestManyConnectionsThatDoNotReadLeaveRoomForOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const silent = maxTotalUnsentBytes / maxUnsentBytes
		conns := connected(t, silent+1)
		reads := conns[0]
		var unread []frame
		for _, c := range conns[1:] {
			room := maxTotalUnsentBytes - c.admission.unsent.total
			unread = append(unread, mustQueue(t, c, min(maxUnsentBytes, room)-unsentOverhead))
			time.Sleep(time.Millisecond)
		}
		began := time.Now()
		for range 60 {
			time.Sleep(time.Second)
			mustQueue(t, reads, 1000).data.Free()
		}
		runtime.KeepAlive(unread) // or else it is no longer counted
		if reads.closed.Load() || !conns[1].closed.Load() {
			t.Errorf("the one that reads is closed: %t; one that does not: %t", reads.closed.Load(), conns[1].closed.Load())
		}
		if took := time.Since(began); took > time.Minute+evictAfter+unsentInterval {
			t.Errorf("its responses took %v", took)
		}
		for _, c := range conns {
			_ = c.Close()
		}
	})
}

func TestAStreamThatEndsIsChargedForWhatIsLeft(t *testing.T) {
	t.Parallel()
	c := connected(t, 1)[0]
	var u unsentMessages
	frames := []frame{u.mark(response(100)), u.mark(response(100))}
	u.settle(t.Context(), c)
	if c.unsent.bytes != unsentStreamBytes {
		t.Errorf("charged %d bytes", c.unsent.bytes)
	}
	for _, f := range frames {
		f.data.Free()
	}
	if c.unsent.bytes != 0 {
		t.Errorf("%d bytes are left", c.unsent.bytes)
	}
	u.mark(response(100))
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	u.settle(cancelled, c)
	if c.unsent.bytes != 0 {
		t.Errorf("%d bytes of a stream that was cancelled", c.unsent.bytes)
	}
	_ = c.Close()
}

// TestAResponseThatTheTransportForgetsIsNotCountedForEver has it drop a response without
// freeing it, as it does for a stream that is reset at that moment.
func TestAResponseThatTheTransportForgetsIsNotCountedForEver(t *testing.T) {
	t.Parallel()
	c := connected(t, 1)[0]
	mustQueue(t, c, 100)
	for {
		c.admission.unsent.mu.Lock()
		left := c.unsent.bytes
		c.admission.unsent.mu.Unlock()
		if left == 0 {
			break
		}
		if t.Context().Err() != nil {
			t.Fatalf("%d bytes are left", left)
		}
		runtime.GC()
	}
	_ = c.Close()
}
