package dispatch

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// TestCreditsEqualThoseOfAScan compares the credits that are kept with
// what a scan over all tenants gives, through random events.
func TestCreditsEqualThoseOfAScan(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 3))
		now := time.Unix(1000, 0)
		a := newAction(New(nil), instance.VerbStart, Buckets{
			Requests:  NewBucket("r", Limit{Capacity: 5, Refill: 2}),
			Instances: NewBucket("i", Limit{Capacity: 100, Refill: 2}),
		})
		a.instances.level = 0
		scan := map[*tenant]float64{}
		var tenants []*tenant
		for n := range 10 {
			tenants = append(tenants, a.tenant(fmt.Sprint(n)))
		}
		for range 200 {
			now = now.Add(time.Duration(rng.IntN(3000)) * time.Millisecond)
			a.allocate(now)
			divide(tenants, scan, a.instances.level)
			for _, c := range tenants {
				if math.Abs(scan[c]-a.credit(c)) > 1e-4 {
					t.Fatalf("seed %d: credit of %s is %v, want %v", seed, c.principal, a.credit(c), scan[c])
				}
			}
			w := tenants[rng.IntN(len(tenants))]
			wanted, needed := float64(1+rng.IntN(20)), 0.0
			for _, c := range tenants {
				needed += max(0, min(float64(c.waitingIDs)-scan[c], wanted))
			}
			if until := a.filling.sumCapped(a.fillLevel+wanted) - float64(a.filling.len())*a.fillLevel; math.Abs(until-needed) > 1e-3 {
				t.Fatalf("seed %d: %v tokens are needed for %v, want %v", seed, until, wanted, needed)
			}
			switch n := rng.IntN(10); {
			case n < 5:
				a.setWaitingIDs(w, w.waitingIDs+1+rng.IntN(30))
			case n < 7:
				a.setWaitingIDs(w, rng.IntN(w.waitingIDs+1))
			case n < 9 && w.waitingIDs > 0 && a.credit(w) >= 1:
				a.setCredit(w, w.waitingIDs, a.credit(w)-1)
				a.setWaitingIDs(w, w.waitingIDs-1)
				a.instances.level--
				scan[w]--
			case n == 9:
				a.instances.level -= float64(rng.IntN(5))
			}
		}
	}
}

// divide divides the unallocated tokens by a scan.
func divide(tenants []*tenant, credit map[*tenant]float64, level float64) {
	free := level
	for _, t := range tenants {
		credit[t] = min(credit[t], float64(t.waitingIDs))
		free -= credit[t]
	}
	if free < -maxRoundingError {
		clear(credit)
		free = max(0, level)
	}
	for free > 1e-9 {
		var short []*tenant
		smallest := free
		for _, t := range tenants {
			if missing := float64(t.waitingIDs) - credit[t]; missing > 1e-9 {
				short, smallest = append(short, t), min(smallest, missing)
			}
		}
		if len(short) == 0 {
			return
		}
		part := min(smallest, free/float64(len(short)))
		for _, t := range short {
			credit[t] += part
			free -= part
		}
	}
}
