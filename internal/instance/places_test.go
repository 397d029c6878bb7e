package instance_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/instanced/instanced/internal/instance"
)

// TestALineOfOneHolderIsPassedByTheNext has one holder wait for far more places than there
// are, on connections of its own; another is served before them.
func TestALineOfOneHolderIsPassedByTheNext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const places, calls = 4, 100
		p := instance.NewPlaces(places)
		end := make(chan struct{})
		var entered atomic.Int64
		for connection := range calls {
			go func() {
				leave, err := p.Enter(t.Context(), "flood", connection)
				if err != nil {
					t.Error(err)
					return
				}
				entered.Add(1)
				<-end
				leave()
				leave() // a second time is none
			}()
			synctest.Wait()
		}
		if n := entered.Load(); n != places/2 {
			t.Errorf("the flood has %d places of %d, want half", n, places)
		}
		leave, err := p.Enter(t.Context(), "alice", -1)
		if err != nil {
			t.Fatal(err)
		}
		leave()
		close(end)
		synctest.Wait()
		if n := entered.Load(); n != calls {
			t.Errorf("%d of the flood were served in the end, want %d", n, calls)
		}
	})
}

func TestWhoeverNoLongerWaitsForAPlaceTakesNone(t *testing.T) {
	t.Parallel()
	p := instance.NewPlaces(1)
	leave, err := p.Enter(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Enter(gone, "b"); !errors.Is(err, context.Canceled) {
		t.Errorf("one that has gone gets %v", err)
	}
	leave()
	if _, err := p.Enter(t.Context(), "c"); err != nil {
		t.Error(err)
	}
}

// TestThoseWhoWaitTakeTurns has one caller wait many times before another comes: of what
// becomes free each gets every other place.
func TestThoseWhoWaitTakeTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := instance.NewPlaces(1)
		leave, err := p.Enter(t.Context(), "first")
		if err != nil {
			t.Fatal(err)
		}
		var order []string
		for _, caller := range []string{"a", "a", "a", "a", "b", "b"} {
			go func() {
				leave, err := p.Enter(t.Context(), caller)
				if err != nil {
					t.Error(err)
					return
				}
				order = append(order, caller)
				leave()
			}()
			synctest.Wait()
		}
		leave()
		synctest.Wait()
		if want := []string{"a", "b", "a", "b", "a", "a"}; !slices.Equal(order, want) {
			t.Errorf("served in the order %v, want %v", order, want)
		}
	})
}
