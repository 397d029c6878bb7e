package lifecycle_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/instanced/instanced/internal/lifecycle"
)

// TestALineOfOneHolderIsPassedByTheNext has one holder wait for far more places than there
// are, on connections of its own; another is served before them.
func TestALineOfOneHolderIsPassedByTheNext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const places, calls = 4, 100
		p := lifecycle.NewPlaces(places)
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
	p := lifecycle.NewPlaces(1)
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
