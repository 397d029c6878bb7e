package server

import (
	"log/slog"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"
	"weak"
)

// TestAnIdleProcessReleasesWhatABurstLeft has a lot of garbage that the runtime would not
// collect by itself. It runs alone, since it changes how garbage is collected.
func TestAnIdleProcessReleasesWhatABurstLeft(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	synctest.Test(t, func(t *testing.T) {
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			(&memoryReport{log: slog.New(slog.DiscardHandler)}).run(stop)
		}()
		synctest.Wait()
		burst := burstOf(8 * minLeftoverBytes)
		time.Sleep(2 * releaseInterval)
		synctest.Wait()
		if burst.Value() != nil {
			t.Error("the garbage is still in memory")
		}
		close(stop)
		<-stopped
	})
}

// burstOf makes so many bytes of garbage.
func burstOf(bytes int) weak.Pointer[byte] {
	garbage := make([]byte, bytes)
	for i := range garbage {
		garbage[i] = 1 // so that it is in memory
	}
	return weak.Make(&garbage[0])
}

func TestMemoryIsReleasedOnlyWhenThereIsMuchAndTheProcessIsIdle(t *testing.T) {
	const base = 100 << 20
	for name, c := range map[string]struct {
		cycles, bytes uint64 // as of the second look; the first sees 5 and base
		want          bool
	}{
		"much left and idle":           {5, 2 * base, true},
		"much left and the GC at work": {6, 2 * base, false},
		"little left":                  {5, base + base/4, false},
		"less than ever":               {5, base / 2, false},
	} {
		var l leftover
		if l.due(5, base) {
			t.Fatal("due at the first look")
		}
		if got := l.due(c.cycles, c.bytes); got != c.want {
			t.Errorf("%s: due %t, want %t", name, got, c.want)
		}
	}
	var l leftover
	l.due(5, 2*base)
	l.due(6, base)
	if !l.due(6, 2*base) {
		t.Error("not due when as much is in memory as at the beginning, and less was in between")
	}
}
