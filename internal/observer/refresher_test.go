package observer

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// Finding the refreshes that are due takes no work for those that are due later, or are
// deferred because of commands.
func TestARefreshCostsNothingForWhatIsNotDue(t *testing.T) {
	for _, others := range []int{0, 100, 10_000} {
		t.Run(fmt.Sprint(others), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := New(Config{})
				busy := make([]instance.ID, others)
				for i := range others {
					o.refresher.enqueue([]instance.ID{instance.ID(fmt.Sprintf("i-later%d", i))}, refresh{queued: true, notBefore: time.Now().Add(time.Hour)})
					busy[i] = instance.ID(fmt.Sprintf("i-busy%d", i))
				}
				command := o.tracker.start(busy...)
				o.refresher.request(busy...)
				if due, _ := o.refresher.nextDue(); len(due) != 0 {
					t.Fatalf("%d instances with commands in flight are due", len(due))
				}
				before := o.refresher.examined
				o.refresher.request("i-x", "i-y")
				if due, _ := o.refresher.nextDue(); len(due) != 2 {
					t.Fatalf("%d instances are due, want 2", len(due))
				}
				if examined := o.refresher.examined - before; examined != 2 {
					t.Errorf("%d refreshes were examined for 2 that are due", examined)
				}
				command.finish()
				o.refresher.retryNow(o.tracker.nextDescribable())
				found := 0
				for due, _ := o.refresher.nextDue(); len(due) > 0; due, _ = o.refresher.nextDue() {
					found += len(due)
				}
				if found != others {
					t.Errorf("%d instances are due once their command has ended, want %d", found, others)
				}
			})
		})
	}
}

// A refresh that somebody waits for comes before all others.
func TestARefreshThatIsWaitedForComesFirst(t *testing.T) {
	o := New(Config{})
	for i := range 10 * maxRefresh {
		o.refresher.request(instance.ID(fmt.Sprintf("i-%d", i)))
	}
	o.refresher.open()
	o.refresher.enqueue([]instance.ID{"i-5", "i-waited"}, refresh{queued: true, waiters: []waiter{{done: make(chan error, 2)}}})
	due, _ := o.refresher.nextDue()
	if len(due) != maxRefresh || due["i-waited"] == nil || due["i-5"] == nil {
		t.Errorf("the refreshes that are waited for are not among the first %d", len(due))
	}
}
