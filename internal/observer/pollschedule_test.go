package observer

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

func inState(id string, state instance.State) *instance.Instance {
	return &instance.Instance{ID: instance.ID(id), State: state}
}

func TestAnInstanceInTransitionIsPolledLessAndLessOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPollSchedule(time.Second)
		begun := time.Now()
		p.update(inState("i-a", instance.StatePending))
		var polls []time.Duration
		for range 40 {
			time.Sleep(time.Second)
			if ids := p.due(time.Now()); len(ids) > 0 {
				polls = append(polls, time.Since(begun)/time.Second)
			}
			if len(polls) == 4 {
				break
			}
		}
		if want := []time.Duration{1, 3, 7, 15}; !slices.Equal(polls, want) {
			t.Fatalf("polled after %d s, want %d s", polls, want)
		}
		time.Sleep(8 * time.Second)
		if ids := p.due(time.Now()); len(ids) != 1 {
			t.Errorf("%d instances are due after the longest delay, want 1", len(ids))
		}
		p.update(inState("i-a", instance.StateStopping))
		time.Sleep(time.Second)
		if ids := p.due(time.Now()); len(ids) != 1 {
			t.Errorf("%d instances are due one interval after another change, want 1", len(ids))
		}
		time.Sleep(time.Second)
		if ids := p.due(time.Now()); len(ids) != 0 {
			t.Errorf("the earlier change still has %v polled", ids)
		}
		p.update(inState("i-a", instance.StateStopped))
		time.Sleep(time.Minute)
		if ids := p.due(time.Now()); len(ids) != 0 {
			t.Errorf("an instance at rest is polled: %v", ids)
		}
	})
}

// Finding the polls that are due takes no work for the instances that are not.
func TestAPollCostsNothingForWhatIsNotDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPollSchedule(time.Second)
		p.update(inState("i-due", instance.StatePending))
		time.Sleep(500 * time.Millisecond)
		for n := range 10_000 {
			p.update(inState(fmt.Sprintf("i-%d", n), instance.StatePending))
		}
		time.Sleep(500 * time.Millisecond)
		if ids := p.due(time.Now()); len(ids) != 1 || ids[0] != "i-due" || p.examined != 1 {
			t.Errorf("due are %v after %d polls were examined, want the one that is due", ids, p.examined)
		}
	})
}
