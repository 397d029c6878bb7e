package ec2query

import (
	"net"
	"net/http"
	"slices"
	"testing"
)

// closing is a connection that tells when it is closed.
type closing struct {
	net.Conn
	name   string
	closed *[]string
}

func (c closing) Close() error { *c.closed = append(*c.closed, c.name); return nil }

func TestTheLongestIdleConnectionGivesWay(t *testing.T) {
	c := connections{most: 3}
	var closed []string
	conn := func(name string) net.Conn { return closing{name: name, closed: &closed} }
	silent, busy, idle := conn("silent"), conn("busy"), conn("idle")
	for _, n := range []net.Conn{idle, silent, busy} {
		c.note(n, http.StateNew)
	}
	c.note(busy, http.StateActive)
	c.note(idle, http.StateActive)
	c.note(idle, http.StateIdle) // more lately than silent was new
	c.note(conn("first"), http.StateNew)
	c.note(conn("second"), http.StateNew)
	if want := []string{"silent", "idle"}; !slices.Equal(closed, want) {
		t.Errorf("closed %v, want %v", closed, want)
	}
	for each := range c.idle {
		c.note(each, http.StateActive)
	}
	c.note(conn("one too many"), http.StateNew)
	if want := []string{"silent", "idle", "one too many"}; !slices.Equal(closed, want) {
		t.Errorf("closed %v, want %v", closed, want)
	}
}
