package lifecycle

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

const (
	flightX = instance.ID("i-00000000000000001")
	flightY = instance.ID("i-00000000000000002")
)

func starting() attribution {
	return attribution{target: instance.StatePending, since: time.Now()}
}

func lines(at time.Time, ids ...instance.ID) (changes []instance.StateChange) {
	for _, id := range ids {
		changes = append(changes, instance.StateChange{ID: id, Previous: instance.StateStopped, Current: instance.StatePending, At: at})
	}
	return changes
}

// found is the answer to a command that found an instance in a state, and left it there.
func found(state instance.State, at time.Time) []instance.StateChange {
	return []instance.StateChange{{ID: flightX, Previous: state, Current: state, At: at}}
}

func notice(id instance.ID, at time.Time) instance.Notice {
	return instance.Notice{ID: id, OccurredAt: at, Source: instance.SourceSimulator}
}

func TestAnInstanceIsBusyUntilItsLastCommandEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlights()
		first := f.begin([]instance.ID{flightX, flightY}, starting())
		second := f.begin([]instance.ID{flightX}, starting())
		if !f.busy(flightX) {
			t.Fatal("an instance with two commands in flight is not busy")
		}
		first.end()
		if !f.busy(flightX) || f.busy(flightY) {
			t.Fatalf("after the first of two commands: busy(x) = %v, busy(y) = %v; want true, false", f.busy(flightX), f.busy(flightY))
		}
		second.end()
		<-f.free
		if f.busy(flightX) {
			t.Fatal("an instance without commands is busy")
		}
	})
}

func TestACommandThatChangesNoStateHoldsNothingBack(t *testing.T) {
	f := newFlights()
	f.begin([]instance.ID{flightX}, attribution{since: time.Now()})
	if f.busy(flightX) || len(f.admit([]instance.Notice{notice(flightX, time.Now())})) != 1 {
		t.Error("a reboot holds back what is heard")
	}
}

func TestNoticesAreHeldBackInTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlights()
		begun := time.Now()
		time.Sleep(time.Millisecond)
		fl := f.begin([]instance.ID{flightX}, starting())
		early, late := notice(flightX, time.Now().Add(time.Millisecond)), notice(flightX, time.Now().Add(2*time.Millisecond))
		got := f.admit([]instance.Notice{notice(flightX, begun), late, early, notice(flightY, time.Now())})
		if len(got) != 2 || !got[0].OccurredAt.Equal(begun) || got[1].ID != flightY {
			t.Fatalf("admitted %v; want what happened before the command, and the other instance", got)
		}
		if heard := fl.settle(t.Context(), lines(late.OccurredAt, flightX)); len(heard) != 1 || !heard[0].OccurredAt.Equal(early.OccurredAt) {
			t.Fatalf("before the answer comes %v, want what happened before it", heard)
		}
		fl.end()
		<-f.free
		newer := notice(flightX, late.OccurredAt.Add(1))
		if got := f.admit([]instance.Notice{newer}); len(got) != 2 || !got[0].OccurredAt.Equal(late.OccurredAt) {
			t.Errorf("admitted %v, want what was held back first", got)
		}
	})
}

func TestASlowCommandHoldsNothingBackForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlights()
		f.begin([]instance.ID{flightX}, starting())
		if got := f.admit([]instance.Notice{notice(flightX, time.Now())}); len(got) != 0 || !f.holding() {
			t.Fatalf("admitted %v during the command", got)
		}
		time.Sleep(patience)
		f.expire()
		if got := f.admit(nil); len(got) != 1 || f.holding() || f.busy(flightX) {
			t.Errorf("after a second %v is admitted, want the notice", got)
		}
		if s := f.suspects(flightX, time.Time{}, time.Now()); len(s) != 1 {
			t.Errorf("%d suspects, want the command that is still in flight", len(s))
		}
	})
}

func TestAnswersAreRecordedInTheOrderOfTheirChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlights()
		both := []instance.ID{flightX, flightY}
		flights := make([]*flight, 3)
		for i := range flights {
			flights[i] = f.begin(both, starting())
		}
		time.Sleep(time.Millisecond)
		now := time.Now()
		order := make(chan int, len(flights))
		for i, fl := range slices.Backward(flights) {
			go func() {
				fl.settle(t.Context(), lines(now.Add(time.Duration(i)), both...))
				order <- i
				fl.end()
			}()
			synctest.Wait()
		}
		got := fmt.Sprint(<-order, <-order, <-order)
		if got != "0 1 2" {
			t.Errorf("recorded in the order %s, want 0 1 2", got)
		}
	})
}

func TestWhoFoundTheSameIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlights()
		ids := []instance.ID{flightX}
		begun := time.Now()
		f.begin(ids, starting()).settle(t.Context(), found(instance.StatePending, begun.Add(1)))
		f.begin(ids, starting()).settle(t.Context(), found(instance.StatePending, begun.Add(2)))
		if took := time.Since(begun); took != 0 {
			t.Errorf("one that found an instance pending waited %v for another that did", took)
		}
		f.begin(ids, starting()).settle(t.Context(), found(instance.StateRunning, begun.Add(3)))
		if took := time.Since(begun); took != patience {
			t.Errorf("one that found it running waited %v for those that found it pending, want %v", took, patience)
		}
	})
}

// BenchmarkFlightsOfOneInstance is what a command for an instance costs beside others for
// the same one, all under way at once: the first starts it, the others find it pending.
func BenchmarkFlightsOfOneInstance(b *testing.B) {
	for _, count := range []int{1, 32, 1024} {
		b.Run(fmt.Sprintf("commands=%d", count), func(b *testing.B) {
			for b.Loop() {
				f := newFlights()
				flights := make([]*flight, count)
				for i := range flights {
					flights[i] = f.begin([]instance.ID{flightX}, starting())
				}
				now := time.Now()
				var working sync.WaitGroup
				for i, fl := range flights {
					changes := found(instance.StatePending, now.Add(time.Duration(i)))
					if i == 0 {
						changes = lines(now, flightX)
					}
					working.Go(func() {
						fl.settle(b.Context(), changes)
						fl.end()
					})
				}
				working.Wait()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*count), "ns/command")
		})
	}
}

func TestAnAnswerWaitsNoLongerThanASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlights()
		f.begin([]instance.ID{flightX}, starting()) // never answered
		fl := f.begin([]instance.ID{flightX}, starting())
		begun := time.Now()
		fl.settle(t.Context(), lines(begun.Add(1), flightX))
		if took := time.Since(begun); took != patience {
			t.Errorf("it waited %v, want %v", took, patience)
		}
	})
}
