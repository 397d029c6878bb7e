package lifecycle

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

func TestWhatInstancesWereIsRememberedForAWhileAndWithinABound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		was := func(n int, state instance.State) *instance.Instance {
			return &instance.Instance{ID: instance.ID(fmt.Sprintf("i-%017x", n%100)), State: state, LaunchTime: time.Unix(int64(n), 0)}
		}
		p := newPast(time.Minute)
		p.note(was(1, instance.StateRunning))
		time.Sleep(50 * time.Second)
		p.note(was(2, instance.StateRunning))
		if !p.has(was(1, instance.StateRunning)) || p.has(was(1, instance.StateStopped)) || p.has(was(101, instance.StateRunning)) {
			t.Error("it is not known what the first instance was")
		}
		time.Sleep(11 * time.Second)
		p.note(nil)
		if p.has(was(1, instance.StateRunning)) || !p.has(was(2, instance.StateRunning)) {
			t.Error("want that the first is forgotten, and the second is not")
		}
		const changes = 2 * maxPast
		for n := range changes {
			p.note(was(n, instance.StateStopped))
		}
		lives := 0
		for _, of := range p.lives {
			lives += len(of)
		}
		if lives > maxPast || len(p.queue) != lives {
			t.Errorf("%d changes are remembered, %d in the queue, want at most %d", lives, len(p.queue), maxPast)
		}
		if !p.has(was(changes-1, instance.StateStopped)) || p.has(was(0, instance.StateStopped)) {
			t.Error("want that the last are remembered, and the first are not")
		}
	})
}
