package soak_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// summary counts what a soak did and found, and is printed at its end.
type summary struct {
	mu     sync.Mutex
	counts map[string]int
	spans  map[string][]time.Duration
}

func newSummary() *summary {
	return &summary{counts: map[string]int{}, spans: map[string][]time.Duration{}}
}

func (t *summary) count(what string, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts[what] += n
}

func (t *summary) of(what string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.counts[what]
}

func (t *summary) took(what string, d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.spans[what] = append(t.spans[what], d)
}

func (t *summary) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b strings.Builder
	for _, what := range slices.Sorted(maps.Keys(t.counts)) {
		fmt.Fprintf(&b, "%10d  %s\n", t.counts[what], what)
	}
	for _, what := range slices.Sorted(maps.Keys(t.spans)) {
		spans := slices.Sorted(slices.Values(t.spans[what]))
		fmt.Fprintf(&b, "%10d  times %s: %v to %v, half of them within %v\n", len(spans), what,
			spans[0].Round(time.Millisecond), spans[len(spans)-1].Round(time.Millisecond), spans[(len(spans)-1)/2].Round(time.Millisecond))
	}
	return b.String()
}
