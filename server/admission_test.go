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
	if taken := a.shares[brief].Taken() + a.shares[lasting].Taken(); taken != 0 || conn.calls != [kinds]int{} {
		t.Errorf("taken are %v, and of the connection %v", taken, conn.calls)
	}
}
