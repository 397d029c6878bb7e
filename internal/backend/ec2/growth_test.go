package ec2

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/instanced/instanced/internal/instance"
)

// What a batch costs for each instance and caller stays within twice: of whole calls and
// others, when instances are missing, and when callers want the same ones at once. The
// endpoint in the test's process is part of it.
func TestWhatABatchCostsIsInProportionToWhatItIsFor(t *testing.T) {
	missing := func(c call) (reply, bool) {
		if c.action != string(instance.VerbStart) || c.ids[0] != id(0) {
			return reply{}, false
		}
		return refusal(400, instance.CodeNotFound, instance.NotFound(c.ids...).Message), true
	}
	for _, tc := range []struct {
		name    string
		refuse  func(call) (reply, bool)
		callers int
		command func([]instance.ID) instance.Command
	}{
		{"a whole call", nil, 1, func(ids []instance.ID) instance.Command { return start(ids...) }},
		{"a per-instance call", nil, 1, func(ids []instance.ID) instance.Command { return each(start(ids...)) }},
		{"a per-instance call for what is missing", missing, 1, func(ids []instance.ID) instance.Command { return each(start(ids...)) }},
		{"sixteen callers at once", nil, 16, func(ids []instance.ID) instance.Command { return start(ids...) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := math.Inf(1)
			for _, n := range []int{10, 100, 1000} {
				f := &fleet{refuse: tc.refuse}
				b := connect(t, &endpoint{answer: f.answer}, func(c *Config) {
					c.Limits.Start = ActionLimits{Requests: &Limit{Capacity: 1e6, Refill: 1e6}, Instances: &Limit{Capacity: 1e6, Refill: 1e6}}
				})
				list := ids(0, n)
				smallest := math.Inf(1)
				for range 3 {
					smallest = min(smallest, allocated(func() {
						var working sync.WaitGroup
						for caller := range tc.callers {
							cmd := tc.command(slices.Clone(list))
							cmd.Principal = fmt.Sprint(caller)
							working.Go(func() {
								if _, err := b.Execute(context.Background(), cmd); err != nil {
									t.Error(err)
								}
							})
						}
						working.Wait()
					}))
				}
				each := smallest / float64(n*tc.callers)
				t.Logf("%d instances: %.0f bytes each", n, each)
				if each > 2*before {
					t.Errorf("%d instances take %.0f bytes each, want at most twice as much as before, %.0f", n, each, before)
				}
				before = each
			}
		})
	}
}

// allocated returns how many bytes the process allocates meanwhile.
func allocated(f func()) float64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return float64(after.TotalAlloc - before.TotalAlloc)
}
