package server

import (
	"log/slog"
	"testing"
)

func TestARequestThatComesAfterTheEndOfItsCallTakesNoPlace(t *testing.T) {
	a := newAdmission(slog.New(slog.DiscardHandler), 4, 4, 1)
	conn := &connection{admission: a}
	ticket, err := a.admit(anonymous, conn)
	if err != nil {
		t.Fatal(err)
	}
	ticket.leave()
	if err := ticket.last(); err == nil {
		t.Error("it is admitted")
	}
	if none := [kinds]int{}; a.taken != none || conn.calls != none {
		t.Errorf("taken are %v, and of the connection %v", a.taken, conn.calls)
	}
}
