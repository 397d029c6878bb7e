package sim_test

import (
	"testing"
	"time"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

func TestReadsOfCallersHaveBucketsOfTheirOwn(t *testing.T) {
	some := []instance.ID{"i-00000000000000001"}
	for _, test := range []struct {
		name             string
		read             instance.Read
		options          sim.Options
		capacity, refill int
	}{
		{"all", instance.Read{Action: "DescribeInstances"}, sim.Options{}, 50, 10},
		{"ids", instance.Read{Action: "DescribeInstances", IDs: some}, sim.Options{}, 50, 10},
		{"ids that count as a filter", instance.Read{Action: "DescribeInstances", IDs: some}, sim.Options{FilteredByID: true}, 100, 20},
		{"filtered", instance.Read{Action: "DescribeInstances", Filtered: true}, sim.Options{}, 100, 20},
		{"status", instance.Read{Action: "DescribeInstanceStatus"}, sim.Options{}, 50, 10},
		{"tags", instance.Read{Action: "DescribeTags"}, sim.Options{}, 100, 20},
	} {
		bubble(t, test.name, func(t *testing.T) {
			b := open(t, sim.Config{Throttle: true, Options: test.options})
			read := func() error {
				_, err := b.Read(t.Context(), test.read)
				return err
			}
			for range test.capacity {
				if err := read(); err != nil {
					t.Fatal(err)
				}
			}
			e := asError(t, read())
			want := "Request limit exceeded. Account 123456789012 has been throttled on ec2:" + string(test.read.Action) + " because it exceeded its request rate limit."
			if e.Code != instance.CodeRequestLimitExceeded || e.Message != want || e.RetryAfter != time.Second/time.Duration(test.refill) {
				t.Fatalf("refused by %v, retry after %v", e, e.RetryAfter)
			}
			if _, err := b.Describe(t.Context(), instance.DescribeQuery{All: true}); err != nil {
				t.Errorf("the observer is throttled by callers: %v", err)
			}
			if _, err := b.Read(t.Context(), instance.Read{Action: "DescribeInstanceAttribute"}); err != nil {
				t.Errorf("another action is throttled, too: %v", err)
			}
			time.Sleep(e.RetryAfter)
			if err := read(); err != nil {
				t.Errorf("after %v: %v", e.RetryAfter, err)
			}
		})
	}
}
