package series_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/instanced/instanced/internal/series"
)

func TestOnlyTheFirstValuesKeepTheirName(t *testing.T) {
	b := series.NewBound(3)
	for n := range 100_000 {
		value, want := fmt.Sprint(n), series.Other
		if n < 3 {
			want = value
		}
		if got := b.Value(value); got != want {
			t.Fatalf("value %d is %q, want %q", n, got, want)
		}
	}
	if got := b.Value("2"); got != "2" {
		t.Errorf("a value that was kept is %q later", got)
	}
	if got := series.NewBound(0).Value("x"); got != series.Other {
		t.Errorf("without room a value is %q", got)
	}
}

func TestConcurrentValuesStayWithinTheBound(t *testing.T) {
	const room = 10
	b := series.NewBound(room)
	var kept sync.Map
	var working sync.WaitGroup
	for caller := range 8 {
		working.Go(func() {
			for n := range 1000 {
				kept.Store(b.Value(fmt.Sprint(n%(caller+20))), true)
			}
		})
	}
	working.Wait()
	count := 0
	kept.Range(func(any, any) bool { count++; return true })
	if count != room+1 {
		t.Errorf("there are %d values, want %d and the rest", count, room)
	}
}

func TestEachSeriesIsFoundAgainWithoutAllocating(t *testing.T) {
	type labels struct{ method, code string }
	made := 0
	table := series.NewTable(func(labels) *atomic.Int64 { made++; return new(atomic.Int64) })
	for range 10 {
		table.Get(labels{"a", "OK"}).Add(1)
		table.Get(labels{"b", "OK"}).Add(1)
	}
	if got := table.Get(labels{"a", "OK"}).Load(); got != 10 || made != 2 {
		t.Errorf("a series counted %d of 10, and %d of 2 were made", got, made)
	}
	b := series.NewBound(1)
	b.Value("a")
	if allocs := testing.AllocsPerRun(100, func() {
		table.Get(labels{"b", "OK"}).Add(1)
		b.Value("a")
		b.Value("hostile")
	}); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}
