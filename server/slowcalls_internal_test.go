package server

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

func TestTheSlowestCallsOfTheLastMinutesAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s slowCalls
		ended := func(method string, took time.Duration, longLived bool) {
			s.note(context.Background(), &call{
				method: method, request: &instancedv1.StartInstancesRequest{}, longLived: longLived, begun: time.Now().Add(-took),
			}, took, errors.New("x"))
		}
		const start = "/instanced.v1.InstanceService/StartInstances"
		for i := range 100 {
			ended(start, time.Duration(i*37%100)*time.Millisecond, false)
		}
		ended("/instanced.v1.InstanceService/WaitInstances", time.Hour, true)
		ended("/grpc.health.v1.Health/Check", time.Hour, false)
		list := s.list()
		if len(list) != maxSlowCalls {
			t.Fatalf("%d calls are kept", len(list))
		}
		for i, c := range list {
			if want := time.Duration(99-i) * time.Millisecond; c.Took != want || c.Method != start[1:] || c.Code != "Unknown" {
				t.Errorf("call %d: %+v, want one of %v", i, c, want)
			}
		}

		time.Sleep(slowCallPeriod)
		ended(start, time.Millisecond, false) // slow, for a period in which nothing else happened
		if list := s.list(); list[0].Took != 99*time.Millisecond || s.current[0].Took != time.Millisecond {
			t.Errorf("in the next period: %v, of which it has %v", list, s.current)
		}
		time.Sleep(slowCallPeriod)
		if list := s.list(); len(list) != 1 || list[0].Took != time.Millisecond {
			t.Errorf("two periods later: %v", list)
		}
		time.Sleep(2 * slowCallPeriod)
		if list := s.list(); len(list) != 0 {
			t.Errorf("after silence: %v", list)
		}
	})
}

// TestAFastCallCostsNothingToLeaveOut holds the lock, which such a call must not take.
func TestAFastCallCostsNothingToLeaveOut(t *testing.T) {
	var s slowCalls
	for range maxSlowCalls {
		s.add(SlowCall{Ended: time.Now(), Took: time.Hour})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	of := &call{method: "/instanced.v1.InstanceService/StartInstances", request: &instancedv1.StartInstancesRequest{}, begun: time.Now()}
	if n := testing.AllocsPerRun(100, func() { s.note(context.Background(), of, time.Millisecond, nil) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestTheWatchesThatLagMostAreFoundInOrder(t *testing.T) {
	w := &watches{head: func() uint64 { return 500 }, label: func(string) string { return "other" }, open: make(map[*delivery]struct{})}
	var all []*delivery
	for i := range 1000 {
		all = append(all, w.begin("p", uint64(i*7%1000)))
	}
	worst, total := w.furthestBehind(3)
	if total != 1000 || len(worst) != 3 || worst[0].Behind != 500 || worst[1].Behind != 499 || worst[2].Behind != 498 || worst[0].Principal != "p" {
		t.Errorf("%d watches, of which lag most: %+v", total, worst)
	}
	for _, d := range all {
		d.end()
	}
	if worst, total := w.furthestBehind(3); total != 0 || len(worst) != 0 {
		t.Errorf("after they ended: %d, %v", total, worst)
	}
}
