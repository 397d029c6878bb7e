package ec2

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// account is one principal's share at a desk, while it has callers waiting and for as
// long as what it has used counts.
type account struct {
	principal string
	// callers and ids are how many wait.
	callers, ids int
	// credit is how many tokens of the instance bucket are put aside for it.
	credit float64
	// calls is the virtual time until which it has used its share of the calls.
	calls float64
}

// due is when, in virtual time, the account's next call is.
func (d *desk) due(a *account) float64 { return max(d.clock, a.calls) }

// fund divides the tokens that are there among the principals that wait for them: each
// gets as much as any other, but no more than it asks for. What a principal is given
// stays its own until a call of its has enough, so that one that asks for many
// is not overtaken for ever, and one that asks for few need not wait for it.
func (d *desk) fund(now time.Time) {
	if d.instances == nil {
		return
	}
	d.instances.advance(now)
	free := d.instances.level
	for _, a := range d.accounts {
		a.credit = min(a.credit, float64(a.ids))
		free -= a.credit
	}
	if free < 0 { // EC2 has less than was thought
		for _, a := range d.accounts {
			a.credit = 0
		}
		free = max(0, d.instances.level)
	}
	wanting := d.wanting(func(a *account) float64 { return float64(a.ids) - a.credit })
	for i, w := range wanting {
		part := min(w.missing, free/float64(len(wanting)-i))
		w.credit += part
		free -= part
	}
}

// want is what an account is short of.
type want struct {
	*account
	missing float64
}

// wanting returns the accounts that are short of something, those of little first.
func (d *desk) wanting(short func(*account) float64) []want {
	var list []want
	for _, a := range d.accounts {
		if missing := short(a); missing > hair {
			list = append(list, want{a, missing})
		}
	}
	slices.SortFunc(list, func(x, y want) int {
		return cmp.Or(cmp.Compare(x.missing, y.missing), cmp.Compare(x.principal, y.principal))
	})
	return list
}

// concentrate gives everything to one account: the bucket is full, and nobody has enough.
func (d *desk) concentrate(favourite *account) {
	for _, a := range d.accounts {
		a.credit = 0
	}
	favourite.credit = d.instances.level
}

// served charges the accounts of a batch for one call, which they share.
func (d *desk) served(accounts map[*account]int, now float64) {
	d.clock = max(d.clock, now)
	for a := range accounts {
		a.calls = d.due(a) + 1/float64(len(accounts))
	}
}

// wait estimates when a call of an account would go out that is for so many instances
// more: when tokens and calls have been shared as they are now.
func (d *desk) wait(now time.Time, a *account, ids int, k kind) time.Duration {
	d.fund(now)
	var longest time.Duration
	calls := 0.0
	if d.instances != nil && k.dryRun == 0 {
		wanted := float64(a.ids+ids) - a.credit
		needed, free := 0.0, d.instances.level
		for _, other := range d.accounts {
			free -= other.credit
			if other != a {
				needed += min(float64(other.ids)-other.credit, wanted)
			}
		}
		needed += wanted
		longest = d.instances.filling(now, needed-free)
		calls = math.Floor((needed - hair) / float64(d.most))
	}
	// Before its next call, others have theirs: one for each lane in which they wait.
	before := map[*account]float64{}
	for _, l := range d.lanes {
		if len(l.waiting) > 0 {
			before[l.waiting[0].account]++
		}
	}
	own := before[a]
	if l := d.lanes[k]; l == nil || len(l.waiting) == 0 {
		own++
	}
	own = max(own, 1)
	for other, n := range before {
		if other != a {
			calls += min(n, own)
		}
	}
	calls += own
	d.requests.advance(now)
	return max(longest, d.requests.filling(now, calls+d.reserve(k)-d.requests.level))
}
