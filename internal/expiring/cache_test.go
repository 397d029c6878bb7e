package expiring_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/expiring"
)

func TestAnEntryIsKeptForItsTimeAndNoLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := expiring.New[string, int](time.Minute, 0)
		c.Set("a", 1)
		time.Sleep(time.Minute)
		if v, ok := c.Get("a"); !ok || v != 1 {
			t.Errorf("after its time it is %d, %v; want it still there", v, ok)
		}
		c.Set("b", 2)
		time.Sleep(time.Nanosecond)
		if c.Has("a") || !c.Has("b") || c.Size() != 1 {
			t.Errorf("a: %v, b: %v, size %d; want only b", c.Has("a"), c.Has("b"), c.Size())
		}
		time.Sleep(30 * time.Second)
		c.Set("b", 3)
		time.Sleep(time.Minute)
		if v, _ := c.Get("b"); v != 3 {
			t.Errorf("a value that was set again has expired with the first one: got %d, want 3", v)
		}
	})
}

func TestTheOldestEntriesMakeRoom(t *testing.T) {
	c := expiring.New[int, string](0, 10)
	for n := range 20 {
		c.Set(n, "x")
	}
	if c.Has(9) || !c.Has(10) || c.Size() != 10 {
		t.Errorf("of 20 entries 9: %v, 10: %v, size %d; want the last 10", c.Has(9), c.Has(10), c.Size())
	}
	c.Set(10, "renewed")
	c.SetSized(20, "large", 8)
	if !c.Has(10) || !c.Has(19) || c.Has(18) || c.Size() != 10 {
		t.Errorf("10: %v, 19: %v, 18: %v, size %d; want the two youngest beside the large one", c.Has(10), c.Has(19), c.Has(18), c.Size())
	}
	c.SetSized(21, "too large", 11)
	if c.Size() != 0 {
		t.Errorf("what fits nowhere is kept: size %d", c.Size())
	}
}

func TestAKeyMayHaveSeveralValues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := expiring.New[string, int](time.Minute, 3)
		has := func(n int) bool { return c.Any("a", func(v int) bool { return v == n }) }
		c.Add("a", 1)
		time.Sleep(50 * time.Second)
		c.Add("a", 2)
		if !has(1) || !has(2) || has(3) {
			t.Error("want both values")
		}
		time.Sleep(11 * time.Second)
		if has(1) || !has(2) {
			t.Error("want that the first has expired, and the second has not")
		}
		c.Add("a", 3)
		c.Add("b", 4)
		c.Add("a", 5)
		if v, _ := c.Get("a"); v != 5 || has(2) || !has(3) || c.Size() != 3 {
			t.Errorf("latest %d, 2: %v, 3: %v, size %d; want the oldest to make room", v, has(2), has(3), c.Size())
		}
		c.Set("a", 6)
		if has(3) || has(5) || !has(6) || c.Size() != 2 {
			t.Errorf("a value that is set is not the only one: size %d", c.Size())
		}
		c.Delete("a")
		if c.Has("a") || c.Size() != 1 {
			t.Errorf("after Delete: %v, size %d", c.Has("a"), c.Size())
		}
	})
}

func TestARenewedEntryCostsNoMemory(t *testing.T) {
	c := expiring.New[int, int](time.Minute, 0)
	c.Set(1, 1)
	if n := testing.AllocsPerRun(100, func() { c.Set(1, 2) }); n > 0 {
		t.Errorf("setting a key again allocates %.0f times, want 0", n)
	}
}
