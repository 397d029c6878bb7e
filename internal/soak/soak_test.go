package soak_test

import (
	"os"
	"testing"
	"time"
)

// maxViolations is the number of violations after which a soak ends early.
const maxViolations = 10

// TestSoak runs all campaigns in turn, with another seed each time, for as long as
// INSTANCED_SOAK says. What was begun then is finished.
func TestSoak(t *testing.T) {
	text := os.Getenv(soakEnv)
	if text == "" {
		t.Skip("make soak runs it")
	}
	lasts, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("%s: %v", soakEnv, err)
	}
	campaigns := []struct {
		name string
		run  func(round)
	}{
		{"killed", killed},
		{"taken over", takenOver},
		{"rotated", rotated},
		{"parted", parted},
		{"fenced", fenced},
		{"disconnected", disconnected},
		{"full disk", fullDisk},
		{"etcd away", etcdAway},
		{"vanished", vanished},
	}
	total := newSummary()
	began := time.Now()
	seed := firstSeed(t, uint64(began.UnixNano()))
	t.Logf("soaking for %v; the first seed is %d", lasts, seed)
	for time.Since(began) < lasts && total.of("violations") < maxViolations {
		ran := false
		for _, c := range campaigns {
			if time.Since(began) >= lasts {
				break
			}
			t.Run(c.name, func(t *testing.T) {
				ran = true
				newRound(t, seed, true, total).run(c.run)
				total.count("rounds of "+c.name, 1)
			})
			seed++
		}
		if !ran {
			t.Fatal("no campaign is selected")
		}
		t.Logf("after %v:\n%s", time.Since(began).Round(time.Second), total)
	}
	if !t.Failed() {
		t.Logf("no violation of any promise in %v", time.Since(began).Round(time.Second))
	}
}
