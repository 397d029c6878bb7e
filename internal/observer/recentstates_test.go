package observer

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

func TestRecentStatesAreKeptForAWhileAndWithinABound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		was := func(n int, state instance.State) *instance.Instance {
			return &instance.Instance{ID: instance.ID(fmt.Sprintf("i-%017x", n%100)), State: state, LaunchTime: time.Unix(int64(n), 0)}
		}
		r := newRecentStates(time.Minute)
		r.add(was(1, instance.StateRunning))
		time.Sleep(50 * time.Second)
		r.add(was(2, instance.StateRunning))
		if !r.has(was(1, instance.StateRunning)) || r.has(was(1, instance.StateStopped)) || r.has(was(101, instance.StateRunning)) {
			t.Error("the state of the first instance is not known")
		}
		time.Sleep(11 * time.Second)
		if r.has(was(1, instance.StateRunning)) || !r.has(was(2, instance.StateRunning)) {
			t.Error("want that the first is forgotten, and the second is not")
		}
		const changes = 2 * maxRecentStates
		for n := range changes {
			r.add(was(n, instance.StateStopped))
		}
		if size := r.byInstance.Len(); size != maxRecentStates {
			t.Errorf("%d states are remembered, want %d", size, maxRecentStates)
		}
		if !r.has(was(changes-1, instance.StateStopped)) || r.has(was(0, instance.StateStopped)) {
			t.Error("want that the last are remembered, and the first are not")
		}
	})
}
