package ec2

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// gathering is a batch in the making.
type gathering struct {
	d    *desk
	free func(instance.ID) bool
	// ids are those of the batch; units of several callers may want one.
	ids   map[instance.ID]struct{}
	group []unit
	// charged are the principals in the batch, and for how many instances.
	charged map[*account]int
	// short are the accounts whose next unit has too few tokens, and how few.
	short map[*account]float64
}

// gather takes from a lane what may go out in one call: the caller whose turn it is
// first, then of every principal alike. If tokens are short it takes nothing, and tells
// how long that will be so.
func (d *desk) gather(c candidate, now time.Time, free func(instance.ID) bool) ([]unit, time.Duration) {
	for concentrated := false; ; concentrated = true {
		d.fund(now)
		g := &gathering{
			d:       d,
			free:    free,
			ids:     make(map[instance.ID]struct{}),
			charged: make(map[*account]int),
			short:   make(map[*account]float64),
		}
		g.fill(c.lane, c.turn)
		if len(g.group) > 0 {
			g.depart(c)
			return g.group, 0
		}
		if len(g.short) == 0 {
			return nil, never
		}
		if full := d.instances.until(now, d.instances.capacity); full > 0 {
			return nil, min(full, g.patience(now))
		}
		if concentrated {
			return nil, never
		}
		d.concentrate(c.turn)
	}
}

// patience is how long it takes until the first of those who are short has enough, when
// all of them share what comes.
func (g *gathering) patience(now time.Time) time.Duration {
	least := slices.Min(slices.Collect(maps.Values(g.short)))
	needed := 0.0
	for _, w := range g.d.wanting(func(a *account) float64 { return float64(a.ids) - a.credit }) {
		needed += min(w.missing, least)
	}
	return max(time.Millisecond, g.d.instances.filling(now, needed))
}

// fill takes what fits, in turns that double.
func (g *gathering) fill(l *lane, turn *account) {
	queues := make(map[*account][]*caller)
	var order []*account
	for _, c := range l.waiting {
		if !c.mayGo(g.free) {
			continue
		}
		if queues[c.account] == nil {
			order = append(order, c.account)
		}
		queues[c.account] = append(queues[c.account], c)
	}
	i := slices.Index(order, turn)
	if i < 0 {
		return
	}
	order[0], order[i] = order[i], order[0]
	for quantum := 1; len(order) > 0 && len(g.ids) < g.d.most; quantum *= 2 {
		order = slices.DeleteFunc(order, func(a *account) bool {
			for len(queues[a]) > 0 && g.charged[a] < quantum {
				c := queues[a][0]
				if !g.add(c, quantum-g.charged[a]) {
					return true
				}
				if !c.mayGo(g.free) || len(c.waiting) == 0 {
					queues[a] = queues[a][1:]
				}
			}
			return len(queues[a]) == 0
		})
	}
}

// add takes a whole call, or of another one as many ids as its turn is for. It is false
// when the caller has to wait for tokens or for the next call.
func (g *gathering) add(c *caller, turn int) bool {
	if !c.divisible() {
		return g.addWhole(c)
	}
	var ids, rest []instance.ID
	fresh := 0
	for _, id := range c.waiting {
		switch _, shared := g.ids[id]; {
		case !g.free(id):
			rest = append(rest, id)
		case shared:
			ids = append(ids, id)
		case fresh == turn || len(g.ids) == g.d.most || !g.afford(c, 1):
			rest = append(rest, id)
		default:
			fresh++
			g.pay(c, id)
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return false
	}
	g.d.took(c, len(ids))
	c.waiting = rest
	g.group = append(g.group, c.units(ids)...)
	return true
}

func (g *gathering) addWhole(c *caller) bool {
	var fresh []instance.ID
	for _, id := range c.waiting {
		if _, shared := g.ids[id]; !shared {
			fresh = append(fresh, id)
		}
	}
	// A call for more than EC2 takes travels alone, and gets EC2's answer.
	if len(g.ids) > 0 && len(g.ids)+len(fresh) > g.d.most {
		return false
	}
	if !c.cmd.DryRun && !g.afford(c, len(fresh)) {
		return false
	}
	for _, id := range fresh {
		g.pay(c, id)
	}
	g.group = append(g.group, c.units(c.waiting)...)
	g.d.took(c, len(c.waiting))
	c.waiting = nil
	return true
}

// afford reports whether the account has the tokens for n instances. Where the bucket
// could never hold so many, a full one is enough.
func (g *gathering) afford(c *caller, n int) bool {
	if g.d.instances == nil {
		return true
	}
	short := min(float64(n), g.d.instances.capacity) - c.account.credit
	if short <= hair {
		return true
	}
	g.short[c.account] = short
	return false
}

// pay puts an id into the batch.
func (g *gathering) pay(c *caller, id instance.ID) {
	g.ids[id] = struct{}{}
	if c.cmd.DryRun {
		return
	}
	g.charged[c.account]++
	if g.d.instances != nil {
		c.account.credit = max(0, c.account.credit-1)
		g.d.instances.level--
	}
}

// depart removes what is in the batch from the lane, and charges for the call.
func (g *gathering) depart(c candidate) {
	c.waiting = slices.DeleteFunc(c.waiting, func(w *caller) bool { return len(w.waiting) == 0 })
	g.d.requests.level--
	if len(g.charged) == 0 {
		g.charged[c.turn] = 0
	}
	g.d.served(g.charged, c.due)
	slices.SortStableFunc(g.group, func(x, y unit) int { return cmp.Compare(x.seq, y.seq) })
}
