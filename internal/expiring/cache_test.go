package expiring_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/expiring"
)

func has(c *expiring.Cache[string, int], key string, value int) bool {
	return c.Any(key, func(v int) bool { return v == value })
}

func TestAnEntryIsKeptForItsTimeAndNoLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := expiring.New[string, int](time.Minute, 0)
		c.Set("a", 1)
		time.Sleep(time.Minute)
		if !has(c, "a", 1) {
			t.Error("it has expired before its time was over")
		}
		c.Set("b", 2)
		time.Sleep(time.Nanosecond)
		if c.Has("a") || !c.Has("b") || c.Len() != 1 {
			t.Errorf("a: %v, b: %v, %d values; want only b", c.Has("a"), c.Has("b"), c.Len())
		}
		time.Sleep(30 * time.Second)
		c.Set("b", 3)
		time.Sleep(time.Minute)
		if !has(c, "b", 3) {
			t.Error("a value that was set again has expired with the first one")
		}
	})
}

func TestTheOldestEntriesMakeRoom(t *testing.T) {
	c := expiring.New[int, string](0, 10)
	for n := range 20 {
		c.Set(n, "x")
	}
	if c.Has(9) || !c.Has(10) || c.Len() != 10 {
		t.Errorf("of 20 entries 9: %v, 10: %v, %d values; want the last 10", c.Has(9), c.Has(10), c.Len())
	}
	c.Set(10, "renewed")
	c.Set(20, "x")
	if !c.Has(10) || c.Has(11) || c.Len() != 10 {
		t.Errorf("10: %v, 11: %v, %d values; want the one that was set again to be among the last", c.Has(10), c.Has(11), c.Len())
	}
}

func TestAKeyMayHaveSeveralValues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := expiring.New[string, int](time.Minute, 3)
		has := func(n int) bool { return has(c, "a", n) }
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
		if !has(5) || has(2) || !has(3) || c.Len() != 3 {
			t.Errorf("5: %v, 2: %v, 3: %v, %d values; want the oldest to make room", has(5), has(2), has(3), c.Len())
		}
		c.Set("a", 6)
		if has(3) || has(5) || !has(6) || c.Len() != 2 {
			t.Errorf("a value that is set is not the only one: %d values", c.Len())
		}
		c.Delete("a")
		if c.Has("a") || c.Len() != 1 {
			t.Errorf("after Delete: %v, %d values", c.Has("a"), c.Len())
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
