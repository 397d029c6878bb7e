package admission_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/instanced/instanced/internal/admission"
	"github.com/instanced/instanced/internal/instance"
)

func newAdmission(requests, streams, connections int) *admission.Admission {
	return admission.New(admission.Config{
		Logger: slog.New(slog.DiscardHandler),
		Limits: admission.Limits{Requests: requests, Streams: streams, Connections: connections},
	})
}

// server has connections that have names, and knows which were closed to make room.
type server struct {
	t *testing.T
	*admission.Admission
	closed []string
}

// conn is a connection of a server.
type conn struct {
	*admission.Connection
	server *server
	name   string
}

func (c *conn) Close() error {
	c.server.closed = append(c.server.closed, c.name)
	return nil
}

func (s *server) connect(name string) *conn {
	s.t.Helper()
	c := &conn{server: s, name: name}
	var err error
	if c.Connection, err = s.Connect(c); err != nil {
		s.t.Fatalf("%s: %v", name, err)
	}
	return c
}

// call begins a call and returns what ends it.
func (c *conn) call(principal string) (end func()) {
	c.server.t.Helper()
	ticket, err := c.Admit(principal)
	if err != nil {
		c.server.t.Fatalf("a call on %s: %v", c.name, err)
	}
	return ticket.Leave
}

func wantRefusal(t *testing.T, err error, reason string) {
	t.Helper()
	if e, ok := errors.AsType[*instance.Error](err); !ok || e.Reason != reason {
		t.Errorf("the error is %v, want one with reason %s", err, reason)
	}
}

func (s *server) wantClosed(names ...string) {
	s.t.Helper()
	if !slices.Equal(s.closed, names) {
		s.t.Errorf("closed are %q, want %q", s.closed, names)
	}
	s.closed = nil
}

func TestACallerMayHaveAsManyCallsAsItLeavesFree(t *testing.T) {
	a := newAdmission(100, 0, 200)
	fill := func(principal string) (tickets []admission.Ticket) {
		for {
			c, err := a.Connect(nil)
			if err != nil {
				t.Fatal(err)
			}
			ticket, err := c.Admit(principal)
			if err != nil {
				wantRefusal(t, err, instance.ReasonTooManyRequests)
				return tickets
			}
			tickets = append(tickets, ticket)
		}
	}
	greedy, modest := fill("greedy"), fill("modest")
	if len(greedy) != 50 || len(modest) != 25 {
		t.Errorf("the first caller has %d places and the second %d of 100", len(greedy), len(modest))
	}
	for _, ticket := range slices.Concat(greedy, modest) {
		ticket.Leave()
	}
	if n := a.InFlight(admission.Unary); n != 0 {
		t.Errorf("%d places are still taken", n)
	}
}

func TestAConnectionIsACallerToo(t *testing.T) {
	a := newAdmission(100, 0, 1)
	c, err := a.Connect(nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 50 {
		if _, err := c.Admit(fmt.Sprint(n)); err != nil {
			t.Fatal(err)
		}
	}
	_, err = c.Admit("one more")
	wantRefusal(t, err, instance.ReasonTooManyRequests)
}

func TestALongLivedCallGivesItsUnaryPlaceBack(t *testing.T) {
	a := newAdmission(4, 2, 1)
	c, err := a.Connect(nil)
	if err != nil {
		t.Fatal(err)
	}
	first, err := c.Admit("alice")
	if err := errors.Join(err, first.Promote()); err != nil {
		t.Fatal(err)
	}
	second, err := c.Admit("alice")
	if err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, second.Promote(), instance.ReasonTooManyStreams)
	if unary, longLived := a.InFlight(admission.Unary), a.InFlight(admission.LongLived); unary != 1 || longLived != 1 {
		t.Errorf("%d unary and %d long-lived calls are in flight", unary, longLived)
	}
	first.Leave()
	second.Leave()
	if err := second.Promote(); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that has ended is promoted: %v", err)
	}
	if unary, longLived := a.InFlight(admission.Unary), a.InFlight(admission.LongLived); unary+longLived != 0 {
		t.Errorf("%d unary and %d long-lived calls are in flight at the end", unary, longLived)
	}
}

func TestTheConnectionThatWasIdleForLongestGivesWay(t *testing.T) {
	s := &server{t: t, Admission: newAdmission(100, 0, 3)}
	idle, busy, early := s.connect("idle"), s.connect("busy"), s.connect("early")
	early.call("early")()
	end := busy.call("busy")
	idle.call("idle")()
	s.connect("silent") // it is more than a tenth itself
	s.wantClosed("early")
	s.connect("next")
	s.wantClosed("silent")
	end()
	s.connect("a third")
	s.wantClosed("next")
}

func TestConnectionsWithoutACallGiveWayFirst(t *testing.T) {
	s := &server{t: t, Admission: newAdmission(100, 0, 20)}
	for n := range 16 {
		s.connect(fmt.Sprint("caller ", n)).call(fmt.Sprint(n))()
	}
	for n := range 100 {
		s.connect(fmt.Sprint("silent ", n))
	}
	want := make([]string, 96)
	for n := range want {
		want[n] = fmt.Sprint("silent ", n)
	}
	s.wantClosed(want...)
}

func TestATenthOfTheConnectionsMayBeWithoutACall(t *testing.T) {
	s := &server{t: t, Admission: newAdmission(100, 0, 20)}
	for n := range 18 {
		s.connect(fmt.Sprint("caller ", n)).call(fmt.Sprint(n))()
	}
	for n := range 3 {
		s.connect(fmt.Sprint("silent ", n))
	}
	s.wantClosed("caller 0")
}

func TestAConnectionIsRefusedOnlyWhenAllHaveCalls(t *testing.T) {
	s := &server{t: t, Admission: newAdmission(100, 0, 4)}
	for n := range 4 {
		s.connect("").call(fmt.Sprint(n))
	}
	if _, err := s.Connect(&conn{server: s}); err == nil {
		t.Error("one is admitted beyond the limit")
	}
	s.wantClosed()
}

func TestAPrincipalBeyondItsShareOfConnectionsGivesUpItsOwn(t *testing.T) {
	s := &server{t: t, Admission: newAdmission(100, 0, 20)}
	s.connect("other").call("other")()
	for n := range 30 {
		s.connect(fmt.Sprint(n)).call("greedy")()
	}
	// Of the 19 that the other leaves free the greedy one may have 10.
	want := make([]string, 20)
	for n := range want {
		want[n] = fmt.Sprint(n)
	}
	s.wantClosed(want...)
}

func TestAPrincipalWithCallsOnAllItsConnectionsGetsNoMore(t *testing.T) {
	s := &server{t: t, Admission: newAdmission(100, 0, 20)}
	var ends []func()
	for range 10 {
		ends = append(ends, s.connect("busy").call("greedy"))
	}
	more := s.connect("more")
	_, err := more.Admit("greedy")
	wantRefusal(t, err, instance.ReasonTooManyConnections)
	if n := s.InFlight(admission.Unary); n != 10 {
		t.Errorf("%d calls are in flight after one was refused, want 10", n)
	}
	s.wantClosed()
	ends[3]()
	more.call("greedy")
	s.wantClosed("busy")
	more.call("another principal on the same connection")
}

// TestTheShareOfAPrincipalMayShrink has others come when one principal has all that it may:
// it replaces its connections one by one, and gets no more of them.
func TestTheShareOfAPrincipalMayShrink(t *testing.T) {
	s := &server{t: t, Admission: newAdmission(100, 0, 20)}
	for range 10 {
		s.connect("old").call("greedy")()
	}
	for n := range 8 {
		s.connect("other").call(fmt.Sprint(n))
	}
	s.connect("new").call("greedy")()
	s.wantClosed("old")
}

func TestCallersWhoCannotBeToldApartMayHaveAllConnections(t *testing.T) {
	s := &server{t: t, Admission: newAdmission(100, 0, 20)}
	for range 20 {
		s.connect("").call("")
	}
	s.wantClosed()
}

func TestACallOnAConnectionThatGaveWayIsRefused(t *testing.T) {
	s := &server{t: t, Admission: newAdmission(100, 0, 1)}
	first := s.connect("first")
	second := s.connect("second")
	_, err := first.Admit("alice")
	wantRefusal(t, err, instance.ReasonTooManyConnections)
	first.Disconnect()
	second.call("alice")()
}

func TestDrainingRefusesCallsAndWaitsForThoseInFlight(t *testing.T) {
	s := &server{t: t, Admission: newAdmission(100, 0, 2)}
	c := s.connect("c")
	end := c.call("alice")
	drained := s.Drain()
	_, err := c.Admit("alice")
	wantRefusal(t, err, instance.ReasonDraining)
	select {
	case <-drained:
		t.Error("it is drained with a call in flight")
	default:
	}
	end()
	<-drained
	<-s.Drain() // again
	c.Disconnect()
}

// TestTheAccountOfConnectionsIsKept has connections come, call and go at random, and compares
// with a plain model what is left of them.
func TestTheAccountOfConnectionsIsKept(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		limit := 1 + random.IntN(12)
		s := &server{t: t, Admission: newAdmission(1000, 0, limit)}
		open := make(map[string]*conn)
		calls := make(map[string][]func())
		for step := range 300 {
			name := fmt.Sprint(step)
			switch victim, found := anyOf(open, random); {
			case random.IntN(3) == 0:
				c := &conn{server: s, name: name}
				connection, err := s.Connect(c)
				if err != nil {
					for other := range open {
						if len(calls[other]) == 0 {
							t.Fatalf("seed %d: refused with %s idle", seed, other)
						}
					}
					continue
				}
				c.Connection, open[name] = connection, c
			case found && random.IntN(4) == 0:
				open[victim].Disconnect()
				delete(open, victim)
			case found && len(calls[victim]) > 0 && random.IntN(2) == 0:
				calls[victim][0]()
				calls[victim] = calls[victim][1:]
			case found:
				if ticket, err := open[victim].Admit([]string{"", "a", "b", "c"}[random.IntN(4)]); err == nil {
					calls[victim] = append(calls[victim], ticket.Leave)
				}
			}
			for _, gone := range s.closed {
				if len(calls[gone]) > 0 {
					t.Fatalf("seed %d: %s was closed with a call in flight", seed, gone)
				}
				delete(open, gone)
			}
			s.closed = nil
			if len(open) > limit {
				t.Fatalf("seed %d: %d connections of %d", seed, len(open), limit)
			}
		}
		for name, c := range open {
			c.Disconnect()
			c.Disconnect()
			delete(open, name)
		}
		for _, ends := range calls {
			for _, end := range ends {
				end()
			}
		}
		for n := range limit { // all places are free again
			s.connect(fmt.Sprint(n)).call("")
		}
		s.wantClosed()
	}
}

func anyOf(open map[string]*conn, random *rand.Rand) (string, bool) {
	names := make([]string, 0, len(open))
	for name := range open {
		names = append(names, name)
	}
	if len(names) == 0 {
		return "", false
	}
	slices.Sort(names)
	return names[random.IntN(len(names))], true
}

// BenchmarkAdmission is what a call costs to be admitted and to leave again.
func BenchmarkAdmission(b *testing.B) {
	a := newAdmission(admission.DefaultMaxRequests, admission.DefaultMaxStreams, admission.DefaultMaxConnections)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		conn, err := a.Connect(nil)
		if err != nil {
			b.Error(err)
		}
		for pb.Next() {
			t, err := conn.Admit("alice")
			if err != nil {
				b.Error(err)
				return
			}
			t.Leave()
		}
	})
}
