package ec2

import (
	"cmp"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// gathering is a batch in the making.
type gathering struct {
	d    *dispatcher
	free func(instance.ID) bool
	// ids are those of the batch; units of several callers may want one.
	ids   map[instance.ID]struct{}
	group []item
	// charged are the principals in the batch, and for how many instances.
	charged map[*tenant]int
	// short are the callers that come next of tenants who have too few tokens.
	short []*request
}

// gather takes from a lane what may go out in one call: the caller whose turn it is
// first, then of every principal alike. If tokens are short it takes nothing, and notes
// who waits for them.
func (d *dispatcher) gather(c candidate, now time.Time, free func(instance.ID) bool) []item {
	for concentrated := false; ; concentrated = true {
		d.allocate(now)
		g := &gathering{
			d:       d,
			free:    free,
			ids:     make(map[instance.ID]struct{}),
			charged: make(map[*tenant]int),
		}
		g.fill(c.batchQueue, c.turn)
		if len(g.group) > 0 {
			g.seal(c)
			return g.group
		}
		if len(g.short) > 0 && d.bucketFull() && !concentrated {
			d.allocateAllTo(c.turn)
			continue
		}
		for _, short := range g.short {
			short.queue.pos = 0
			d.setHead(short.queue, short)
		}
		return nil
	}
}

// fill takes what fits, in turns that double.
func (g *gathering) fill(l *batchQueue, turn *tenant) {
	queues := make(map[*tenant][]*request)
	var order []*tenant
	for _, c := range l.waiting {
		g.d.visits++
		if !c.isWaiting() || !c.mayGo(g.free) {
			continue
		}
		if queues[c.tenant] == nil {
			order = append(order, c.tenant)
		}
		queues[c.tenant] = append(queues[c.tenant], c)
	}
	i := slices.Index(order, turn)
	if i < 0 {
		return
	}
	order[0], order[i] = order[i], order[0]
	for quantum := 1; len(order) > 0 && len(g.ids) < g.d.maxIDs; quantum *= 2 {
		order = slices.DeleteFunc(order, func(a *tenant) bool {
			for len(queues[a]) > 0 && g.charged[a] < quantum {
				c := queues[a][0]
				if !g.add(c, quantum-g.charged[a]) {
					return true
				}
				if !c.isWaiting() || !c.mayGo(g.free) {
					queues[a] = queues[a][1:]
				}
			}
			return len(queues[a]) == 0
		})
	}
}

// add takes a whole call, or of another one as many ids as its turn is for. It is false
// when the caller has to wait for tokens or for the next call.
func (g *gathering) add(c *request, turn int) bool {
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
		case fresh == turn || len(g.ids) == g.d.maxIDs || !g.afford(c, 1):
			rest = append(rest, id)
		default:
			fresh++
			g.charge(c, id)
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return false
	}
	g.d.take(c, rest)
	g.group = append(g.group, c.items(ids)...)
	return true
}

func (g *gathering) addWhole(c *request) bool {
	var fresh []instance.ID
	for _, id := range c.waiting {
		if _, shared := g.ids[id]; !shared {
			fresh = append(fresh, id)
		}
	}
	// A call for more than EC2 takes travels alone, and gets EC2's answer.
	if len(g.ids) > 0 && len(g.ids)+len(fresh) > g.d.maxIDs {
		return false
	}
	if !c.cmd.DryRun && !g.afford(c, len(fresh)) {
		return false
	}
	for _, id := range fresh {
		g.charge(c, id)
	}
	g.group = append(g.group, c.items(c.waiting)...)
	g.d.take(c, nil)
	return true
}

// afford reports whether the tenant has the tokens for n instances. Where the bucket
// could never hold so many, a full one is enough.
func (g *gathering) afford(c *request, n int) bool {
	if g.d.instances == nil {
		return true
	}
	if min(float64(n), g.d.instances.capacity)-g.d.credit(c.tenant) <= epsilon {
		return true
	}
	g.short = append(g.short, c)
	return false
}

// charge puts an id into the batch.
func (g *gathering) charge(c *request, id instance.ID) {
	g.ids[id] = struct{}{}
	if c.cmd.DryRun {
		return
	}
	g.charged[c.tenant]++
	if g.d.instances != nil {
		g.d.setShare(c.tenant, c.tenant.ids, max(0, g.d.credit(c.tenant)-1))
		g.d.instances.level--
	}
}

// seal charges for the call.
func (g *gathering) seal(c candidate) {
	g.d.requests.level--
	if len(g.charged) == 0 {
		g.charged[c.turn] = 0
	}
	g.d.chargeCall(g.charged, c.at)
	slices.SortStableFunc(g.group, func(x, y item) int { return cmp.Compare(x.seq, y.seq) })
}
