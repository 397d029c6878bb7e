package ec2

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// steps returns how many callers, tenants and queues were looked at for starts.
func steps(b *Backend) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.desks[instance.VerbStart].visits
}

// TestAWaitingCallerCostsTheSameWhateverElseWaits has callers come, be refused for their
// deadline, and leave, while instance tokens are short. Only the depth of a tree may grow.
func TestAWaitingCallerCostsTheSameWhateverElseWaits(t *testing.T) {
	const probes = 20
	measure := func(t *testing.T, waiting, principals int) (cost int) {
		synctest.Test(t, func(t *testing.T) {
			b := connect(t, &endpoint{answer: (&fleet{}).answer, latency: always(time.Millisecond)}, func(c *Config) {
				c.Limits.Start = ActionLimits{Requests: &Limit{Capacity: 1000, Refill: 100}, Instances: &Limit{Capacity: 1, Refill: 0.001}}
			})
			if _, err := b.Execute(t.Context(), start(id(0))); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			var all sync.WaitGroup
			for n := range waiting {
				all.Go(func() { _, _ = b.Execute(ctx, by(fmt.Sprint(n%principals), start(id(n)))) })
			}
			synctest.Wait()
			before := steps(b)
			for n := range probes {
				probe := by(fmt.Sprint("probe", n), start(id(waiting+n)))
				soon, stop := context.WithTimeout(t.Context(), time.Second)
				if _, err := b.Execute(soon, probe); err == nil {
					t.Error("a start that has no tokens was made")
				}
				stop()
				leaving, leave := context.WithCancel(t.Context())
				outcome := background(leaving, b, probe)
				leave()
				if o := outcome(); o.err == nil {
					t.Error("a start that has no tokens was made")
				}
			}
			cost = steps(b) - before
			beforeLeaving := steps(b)
			cancel()
			all.Wait()
			cost = max(cost/probes, (steps(b)-beforeLeaving)/waiting)
		})
		return cost
	}
	for name, principals := range map[string]func(waiting int) int{
		"of one principal": func(int) int { return 1 },
		"of one each":      func(waiting int) int { return waiting },
	} {
		t.Run(name, func(t *testing.T) {
			first := 0.0
			for _, waiting := range []int{10, 100, 1_000, 10_000} {
				tenants := principals(waiting)
				cost := float64(measure(t, waiting, tenants)) / (1 + math.Log2(float64(tenants)+1))
				t.Logf("%d waiting: %.1f steps a call for each level of a tree", waiting, cost)
				first = cmp.Or(first, cost)
				if cost > 2*first {
					t.Errorf("a call costs %.1f steps for each level of a tree while %d wait, and %.1f while ten do", cost, waiting, first)
				}
			}
		})
	}
}

// TestNobodyWaitsWhoCouldGoOut has random callers come and leave, and then looks at
// all of them: what can go out has gone out when the last of them came or left.
func TestNobodyWaitsWhoCouldGoOut(t *testing.T) {
	for seed := range uint64(300) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 4))
			b := connect(t, &endpoint{answer: (&fleet{}).answer, latency: always(700 * time.Millisecond)}, func(c *Config) {
				c.Limits.Start = ActionLimits{Requests: &Limit{Capacity: 4, Refill: 1.5}, Instances: &Limit{Capacity: 20, Refill: 3}}
			})
			var all sync.WaitGroup
			var leave []context.CancelFunc
			for range 1 + rng.IntN(60) {
				time.Sleep(time.Duration(rng.IntN(4)*rng.IntN(300_000_000)) + 1)
				if rng.IntN(4) == 0 && len(leave) > 0 {
					leave[rng.IntN(len(leave))]()
					synctest.Wait()
					continue
				}
				cmd := by(fmt.Sprint(rng.IntN(4)), start())
				cmd.PerInstance = rng.IntN(2) == 0
				if rng.IntN(8) == 0 {
					cmd.AdditionalInfo = "other"
				}
				first := rng.IntN(60)
				cmd.IDs = ids(first, first+1+rng.IntN(2)*rng.IntN(25))
				ctx, cancel := context.WithCancel(t.Context())
				leave = append(leave, cancel)
				all.Go(func() { _, _ = b.Execute(ctx, cmd) })
				synctest.Wait()
			}
			b.mu.Lock()
			d, now := b.desks[instance.VerbStart], time.Now()
			list, _ := d.candidates(now, b.isFree)
			for _, c := range list {
				if group := d.gather(c, now, b.isFree); len(group) > 0 {
					t.Errorf("seed %d: %v of %s waited, and could go out", seed, group[0].ids, group[0].tenant.principal)
				}
			}
			b.mu.Unlock()
			for _, cancel := range leave {
				cancel()
			}
			all.Wait()
			b.mu.Lock()
			defer b.mu.Unlock()
			if d.callers != 0 || d.ids != 0 || d.filling.len() != 0 || d.fronts.len() != 0 || d.short.Len() != 0 {
				t.Errorf("seed %d: something is left of callers who have gone: %+v", seed, d)
			}
		})
		if t.Failed() {
			return
		}
	}
}

// TestWhoIsBehindACallerThatLeavesGoesOut has a caller that is affordable wait behind one
// that is not, of the same principal.
func TestWhoIsBehindACallerThatLeavesGoesOut(t *testing.T) {
	inBubble(t, "at once", func(t *testing.T) {
		b := connect(t, &endpoint{answer: (&fleet{}).answer})
		if _, err := b.Execute(t.Context(), start(ids(0, 1000)...)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		large := background(ctx, b, start(ids(1000, 1500)...))
		time.Sleep(10 * time.Second)
		small := timed(t.Context(), b, start(ids(2000, 2010)...))
		time.Sleep(5 * time.Second)
		cancel()
		if o := large(); o.err == nil {
			t.Error("the large one was served")
		}
		if took, err := small(); err != nil || took != 5*time.Second {
			t.Errorf("who was behind waited %v: %v", took, err)
		}
	})
	inBubble(t, "when it has enough", func(t *testing.T) {
		b := connect(t, &endpoint{answer: (&fleet{}).answer})
		if _, err := b.Execute(t.Context(), start(ids(0, 1000)...)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		large := background(ctx, b, start(ids(1000, 1500)...))
		small := timed(t.Context(), b, start(ids(2000, 2010)...))
		cancel()
		_ = large()
		if took, err := small(); err != nil || took != 5*time.Second {
			t.Errorf("who was behind waited %v: %v", took, err)
		}
	})
	inBubble(t, "with the tokens of another principal", func(t *testing.T) {
		b := connect(t, &endpoint{answer: (&fleet{}).answer})
		if _, err := b.Execute(t.Context(), start(ids(0, 1000)...)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		one := background(ctx, b, by("one", start(ids(1000, 1500)...)))
		other := timed(t.Context(), b, by("other", start(ids(2000, 2020)...)))
		time.Sleep(10 * time.Second)
		cancel()
		_ = one()
		if took, err := other(); err != nil || took != 10*time.Second {
			t.Errorf("the other one waited %v: %v", took, err)
		}
	})
}

// TestCreditsAreWhatDividingAgainAndAgainGives compares the shares that are kept with
// those of a scan over all tenants, through random events.
func TestCreditsAreWhatDividingAgainAndAgainGives(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 3))
		now := time.Unix(1000, 0)
		d := newDesk(instance.VerbStart, newBucket("r", Limit{Capacity: 5, Refill: 2}), newBucket("i", Limit{Capacity: 100, Refill: 2}), func(*dispatcher) {})
		d.instances.level = 0
		scan := map[*tenant]float64{}
		var tenants []*tenant
		for n := range 10 {
			tenants = append(tenants, d.tenant(fmt.Sprint(n)))
		}
		for range 200 {
			now = now.Add(time.Duration(rng.IntN(3000)) * time.Millisecond)
			d.allocate(now)
			divide(tenants, scan, d.instances.level)
			for _, c := range tenants {
				if math.Abs(scan[c]-d.credit(c)) > 1e-4 {
					t.Fatalf("seed %d: credit of %s is %v, want %v", seed, c.principal, d.credit(c), scan[c])
				}
			}
			w := tenants[rng.IntN(len(tenants))]
			wanted, needed := float64(1+rng.IntN(20)), 0.0
			for _, c := range tenants {
				needed += max(0, min(float64(c.ids)-scan[c], wanted))
			}
			if until := d.filling.sumMin(d.shared+wanted) - float64(d.filling.len())*d.shared; math.Abs(until-needed) > 1e-3 {
				t.Fatalf("seed %d: %v tokens are needed for %v, want %v", seed, until, wanted, needed)
			}
			switch n := rng.IntN(10); {
			case n < 5:
				d.setWaiting(w, w.ids+1+rng.IntN(30))
			case n < 7:
				d.setWaiting(w, rng.IntN(w.ids+1))
			case n < 9 && w.ids > 0 && d.credit(w) >= 1:
				d.setShare(w, w.ids, d.credit(w)-1)
				d.setWaiting(w, w.ids-1)
				d.instances.level--
				scan[w]--
			case n == 9:
				d.instances.level -= float64(rng.IntN(5))
			}
		}
	}
}

// divide divides what of the level is nobody's by a scan.
func divide(tenants []*tenant, credit map[*tenant]float64, level float64) {
	free := level
	for _, t := range tenants {
		credit[t] = min(credit[t], float64(t.ids))
		free -= credit[t]
	}
	if free < -maxRoundingError {
		clear(credit)
		free = max(0, level)
	}
	for free > 1e-9 {
		var short []*tenant
		least := free
		for _, t := range tenants {
			if missing := float64(t.ids) - credit[t]; missing > 1e-9 {
				short, least = append(short, t), min(least, missing)
			}
		}
		if len(short) == 0 {
			return
		}
		part := min(least, free/float64(len(short)))
		for _, t := range short {
			credit[t] += part
			free -= part
		}
	}
}
