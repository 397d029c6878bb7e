package instance_test

import (
	"math/rand/v2"
	"testing"

	"github.com/instanced/instanced/internal/instance"
)

func TestHoldersGetEqualSharesAndLeaveRoomForTheNext(t *testing.T) {
	s := instance.NewShares(60)
	take := func(holder string) (got int) {
		for s.Take(holder, 1) {
			got++
		}
		return got
	}
	for holder, want := range map[string]int{"a": 30} {
		if got := take(holder); got != want {
			t.Errorf("the only holder gets %d places of 60, want %d", got, want)
		}
	}
	if got := take("b"); got != 15 {
		t.Errorf("the next gets %d places, want half of what is left", got)
	}
	s.Give("a", 30)
	s.Give("b", 15)
	for range 60 {
		_, _ = s.Take("a", 1), s.Take("b", 1)
	}
	if s.Held("a") != 20 || s.Held("b") != 20 {
		t.Errorf("two that take in turn get %d and %d places of 60, want 20 each", s.Held("a"), s.Held("b"))
	}
	if !s.Take("c", 1) {
		t.Error("no place is left for the next")
	}
}

// TestPlacesTakenTogetherAreAsManyAsOneAfterAnother compares two ways of taking, from any
// state.
func TestPlacesTakenTogetherAreAsManyAsOneAfterAnother(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		together, single := instance.NewShares(40), instance.NewShares(40)
		for range random.IntN(20) {
			holder := string(rune('a' + random.IntN(4)))
			if together.Take(holder, 1) != single.Take(holder, 1) {
				t.Fatal("the same differs")
			}
		}
		n, got := 1+random.IntN(12), 0
		for got < n && single.Take("a", 1) {
			got++
		}
		if all := together.Take("a", n); all != (got == n) {
			t.Fatalf("%d places together: %v, although %d could be taken one after another", n, all, got)
		}
	}
}
