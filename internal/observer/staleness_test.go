package observer

import (
	"testing"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// A start changes the launch time. If it was described before, a later one is that of another
// start, however soon that came: after a launch, or after a start that fell back.
func TestAStartSoonAfterAnotherIsNotStale(t *testing.T) {
	launched := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	now := launched.Add(2 * time.Second)
	image := func(state instance.State, after time.Duration) *instance.Instance {
		i := imageOf(state)
		i.LaunchTime = launched.Add(after)
		return i
	}
	for name, tc := range map[string]struct {
		known  *instance.Instance
		source instance.Source
		image  *instance.Instance
		want   freshness
	}{
		"started a second after it was created":        {image(instance.StateStopped, 0), instance.SourceReconcile, image(instance.StatePending, time.Second), current},
		"and running by now":                           {image(instance.StateStopped, 0), instance.SourceReconcile, image(instance.StateRunning, time.Second), current},
		"as it was before that start":                  {image(instance.StatePending, time.Second), instance.SourceReconcile, image(instance.StateStopped, 0), stale},
		"started by an answer that was sent before it": {image(instance.StatePending, time.Second), instance.SourceAnswer, image(instance.StateRunning, 2*time.Second), current},
		"as it was before a stop":                      {image(instance.StateStopping, time.Second), instance.SourceAnswer, image(instance.StateRunning, time.Second), stale},
	} {
		t.Run(name, func(t *testing.T) {
			o := New(Config{})
			known := journal.Record{Instance: tc.known, Source: tc.source, ChangedAt: now}
			if got := o.freshness(known, true, description{id: trackedX, image: tc.image}, asOf{at: now}, now); got != tc.want {
				t.Errorf("freshness is %v, want %v", got, tc.want)
			}
		})
	}
}
