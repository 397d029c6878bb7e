package sim_test

import (
	"testing"
	"time"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

const throttledText = "Request limit exceeded. Account 123456789012 has been throttled on ec2:StartInstances because it exceeded its request rate limit."

func TestThrottling(t *testing.T) {
	ids := func(b *sim.Backend, t *testing.T, n int) []instance.ID {
		return create(t, b, sim.Spec{Count: n, State: instance.StateRunning})
	}
	requests := []struct {
		verb             instance.Verb
		capacity, refill int
	}{
		{instance.VerbStart, 5, 2},
		{instance.VerbStop, 50, 5},
		{instance.VerbReboot, 50, 5},
		{instance.VerbTerminate, 100, 5},
	}
	for _, test := range requests {
		bubble(t, string(test.verb)+" has a request bucket", func(t *testing.T) {
			b := open(t, sim.Config{Throttle: true})
			one := ids(b, t, 1)[0]
			for range test.capacity {
				must(t, b, test.verb, one)
			}
			_, err := do(t, b, test.verb, one)
			e := asError(t, err)
			if e.Kind != instance.KindExhausted || e.Code != instance.CodeRequestLimitExceeded {
				t.Fatalf("error is %v", e)
			}
			if want := time.Second / time.Duration(test.refill); e.RetryAfter != want {
				t.Fatalf("retry after %v, want %v", e.RetryAfter, want)
			}
			time.Sleep(e.RetryAfter)
			must(t, b, test.verb, one)
			if _, err := do(t, b, test.verb, one); err == nil {
				t.Fatal("two tokens came in the time of one")
			}
			time.Sleep(10 * time.Minute)
			for range test.capacity {
				must(t, b, test.verb, one)
			}
			if _, err := do(t, b, test.verb, one); err == nil {
				t.Fatal("a full bucket does not discard refills")
			}
		})
	}
	bubble(t, "the text names the account and the action", func(t *testing.T) {
		b := open(t, sim.Config{Throttle: true})
		one := ids(b, t, 1)[0]
		for range 5 {
			must(t, b, instance.VerbStart, one)
		}
		_, err := do(t, b, instance.VerbStart, one)
		refuses(t, err, instance.KindExhausted, instance.CodeRequestLimitExceeded, throttledText)
	})
	resources := []struct {
		verb   instance.Verb
		refill int
	}{{instance.VerbStart, 2}, {instance.VerbStop, 20}, {instance.VerbTerminate, 20}}
	for _, test := range resources {
		bubble(t, string(test.verb)+" takes a resource token for each instance", func(t *testing.T) {
			b := open(t, sim.Config{Throttle: true})
			all := ids(b, t, 1000)
			must(t, b, test.verb, all[:600]...)
			must(t, b, test.verb, all[600:]...)
			_, err := do(t, b, test.verb, all[:4]...)
			if e := asError(t, err); e.Code != instance.CodeRequestLimitExceeded || e.RetryAfter != 4*time.Second/time.Duration(test.refill) {
				t.Fatalf("error is %v, retry after %v", e, e.RetryAfter)
			}
			time.Sleep(4 * time.Second / time.Duration(test.refill))
			must(t, b, test.verb, all[:4]...)
		})
	}
	bubble(t, "reboots take no resource tokens", func(t *testing.T) {
		b := open(t, sim.Config{Throttle: true})
		all := ids(b, t, 1000)
		for range 3 {
			must(t, b, instance.VerbReboot, all...)
		}
	})
	batches := []struct {
		name    string
		choice  sim.ThrottledBatch
		started int
		left    int // tokens, afterwards
	}{
		{"a throttled batch takes nothing", sim.ThrottledBatchTakesNothing, 0, 3},
		{"a throttled batch takes the tokens, where it is said so", sim.ThrottledBatchTakesTokens, 0, 0},
		{"a throttled batch is carried out in part, where it is said so", sim.ThrottledBatchIsCarriedOutInPart, 3, 0},
	}
	for _, test := range batches {
		bubble(t, test.name, func(t *testing.T) {
			b := open(t, sim.Config{Throttle: true, Options: sim.Options{ThrottledBatch: test.choice}})
			all := create(t, b, sim.Spec{Count: 1000})
			must(t, b, instance.VerbStart, all[:997]...)
			result, err := do(t, b, instance.VerbStart, all[990:]...)
			refuses(t, err, instance.KindExhausted, instance.CodeRequestLimitExceeded, throttledText)
			if len(result.Changes) != test.started {
				t.Fatalf("%d instances were answered for, want %d", len(result.Changes), test.started)
			}
			if test.left > 0 {
				must(t, b, instance.VerbStart, all[:test.left]...)
			}
			if _, err := do(t, b, instance.VerbStart, all[0]); err == nil {
				t.Fatal("a token was left")
			}
		})
	}
	describes := []struct {
		name     string
		query    instance.DescribeQuery
		options  sim.Options
		capacity int
	}{
		{"pages have the larger bucket", instance.DescribeQuery{All: true}, sim.Options{}, 100},
		{"ids have the smaller one", instance.DescribeQuery{IDs: []instance.ID{id}}, sim.Options{}, 50},
		{"ids have the larger one, where it is said so", instance.DescribeQuery{IDs: []instance.ID{id}}, sim.Options{FilteredByID: true}, 100},
	}
	for _, test := range describes {
		bubble(t, "of reads, "+test.name, func(t *testing.T) {
			b := open(t, sim.Config{Throttle: true, Options: test.options})
			for range test.capacity {
				if _, err := b.Describe(t.Context(), test.query); err != nil {
					t.Fatal(err)
				}
			}
			_, err := b.Describe(t.Context(), test.query)
			if e := asError(t, err); e.Code != instance.CodeRequestLimitExceeded || e.RetryAfter <= 0 {
				t.Fatalf("error is %v", e)
			}
		})
	}
	bubble(t, "Reset fills the buckets", func(t *testing.T) {
		b := open(t, sim.Config{Throttle: true, Fleet: []sim.Spec{{ID: id}}})
		for range 5 {
			must(t, b, instance.VerbStart, id)
		}
		if err := b.Reset(); err != nil {
			t.Fatal(err)
		}
		must(t, b, instance.VerbStart, id)
	})
}
