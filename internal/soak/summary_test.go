package soak_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// tally counts what was done and found, for whoever started a soak.
type tally struct {
	mu     sync.Mutex
	counts map[string]int
	spans  map[string][]time.Duration
}

func newTally() *tally {
	return &tally{counts: map[string]int{}, spans: map[string][]time.Duration{}}
}

func (t *tally) count(what string, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts[what] += n
}

func (t *tally) of(what string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.counts[what]
}

func (t *tally) took(what string, d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.spans[what] = append(t.spans[what], d)
}

func (t *tally) String() string {
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
