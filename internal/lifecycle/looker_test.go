package lifecycle

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// What it takes to find the instances that are to be looked at does not depend on those
// that are to be looked at later, or that commands are about.
func TestALookCostsNothingForWhatIsNotDue(t *testing.T) {
	for _, others := range []int{0, 100, 10_000} {
		t.Run(fmt.Sprint(others), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := New(Config{})
				busy := make([]instance.ID, others)
				for i := range others {
					_ = s.looker.want([]instance.ID{instance.ID(fmt.Sprintf("i-later%d", i))}, look{notBefore: time.Now().Add(time.Hour)})
					busy[i] = instance.ID(fmt.Sprintf("i-busy%d", i))
				}
				command := s.tracker.start(busy...)
				s.looker.request(busy...)
				if due, _ := s.looker.due(); len(due) != 0 {
					t.Fatalf("%d instances are due that commands are about", len(due))
				}
				before := s.looker.examined
				s.looker.request("i-x", "i-y")
				if due, _ := s.looker.due(); len(due) != 2 {
					t.Fatalf("%d instances are due, want 2", len(due))
				}
				if examined := s.looker.examined - before; examined != 2 {
					t.Errorf("%d wishes were examined for 2 looks", examined)
				}
				command.end()
				s.looker.retry(s.tracker.takeDescribable())
				found := 0
				for due, _ := s.looker.due(); len(due) > 0; due, _ = s.looker.due() {
					found += len(due)
				}
				if found != others {
					t.Errorf("%d instances are due once their command has ended, want %d", found, others)
				}
			})
		})
	}
}

// Whoever waits for a look does not wait for all that nobody waits for.
func TestALookThatIsWaitedForComesFirst(t *testing.T) {
	s := New(Config{})
	for i := range 10 * mostLooked {
		s.looker.request(instance.ID(fmt.Sprintf("i-%d", i)))
	}
	s.looker.begin()
	if err := s.looker.want([]instance.ID{"i-5", "i-waited"}, look{waiters: []waiter{{told: make(chan error, 2)}}}); err != nil {
		t.Fatal(err)
	}
	due, _ := s.looker.due()
	if len(due) != mostLooked || due["i-waited"] == nil || due["i-5"] == nil {
		t.Errorf("what is waited for is not among the first %d", len(due))
	}
}
