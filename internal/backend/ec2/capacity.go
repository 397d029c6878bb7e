package ec2

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/instanced/instanced/internal/backend/ec2/dispatch"
	"github.com/instanced/instanced/internal/instance"
)

// pool is what instances compete for: EC2 has capacity and quotas for each type and Availability
// Zone, and separate ones for Spot Instances, Dedicated Hosts, placement groups and reservations.
type pool struct{ kind, zone, lifecycle, tenancy, host, group, reservation string }

func poolOf(i *types.Instance) pool {
	p := pool{
		kind:        string(i.InstanceType),
		lifecycle:   string(i.InstanceLifecycle),
		reservation: aws.ToString(i.CapacityReservationId),
	}
	if at := i.Placement; at != nil {
		p.zone, p.tenancy = aws.ToString(at.AvailabilityZone), string(at.Tenancy)
		p.host, p.group = aws.ToString(at.HostId), aws.ToString(at.GroupName)
	}
	return p
}

// demand is how many instances of each pool items would start.
type demand map[pool]int

// size is the total number of instances.
func (n demand) size() (sum int) {
	for _, count := range n {
		sum += count
	}
	return sum
}

// covers reports whether n is at least as much as o in every pool.
func (n demand) covers(o demand) bool {
	for p, count := range o {
		if n[p] < count {
			return false
		}
	}
	return true
}

// infeasible is a demand for which there was no capacity, although none of it was started. So there
// is none for any demand that covers it.
type infeasible struct {
	demand
	f *failure
}

// capacitySearch starts as many items as there is capacity for, after EC2 did not have enough
// for all of them. Those that want instances of the same pools are tried together, in about as
// many calls as it takes to find a number by halving.
type capacitySearch struct {
	r *batchRun
	// pools says where each instance is, and idle which of them a start would start.
	pools      map[instance.ID]pool
	idle       map[instance.ID]bool
	infeasible []infeasible

	byPools [][]*dispatch.Item // still to be tried
	queue   []*dispatch.Item   // of the present pools

	// part is what is being tried; none if it was rejected.
	part     []*dispatch.Item
	wanted   demand // of part
	answered int    // what batchRun.answered was before
}

// pushCapacitySearch has a group for which EC2 had not enough capacity searched.
func (r *batchRun) pushCapacitySearch(ctx context.Context, group []*dispatch.Item, f *failure) {
	s := &capacitySearch{r: r, pools: make(map[instance.ID]pool), idle: make(map[instance.ID]bool)}
	if group, ok := s.learnFrom(ctx, group, f); ok {
		s.byPools = s.byPool(group)
		r.metrics.divided[searchedForCapacity].Inc()
		r.push(s)
	}
}

func (s *capacitySearch) next() []*dispatch.Item {
	if len(s.part) > 0 { // it has its outcomes
		if s.r.answered-s.answered == len(s.part) { // else some of it may not have been started
			s.succeeded(s.wanted)
		}
		for _, id := range dispatch.DistinctIDs(s.part) {
			s.idle[id] = false
		}
		s.part = nil
	}
	for {
		s.queue = s.failInfeasible(s.r.b.dispatcher.Present(s.queue))
		if len(s.queue) > 0 {
			n := s.prefix(s.queue)
			s.part, s.queue = s.queue[:n], s.queue[n:]
			s.wanted, s.answered = s.demand(s.part), s.r.answered
			return s.part
		}
		if len(s.byPools) == 0 {
			return nil
		}
		s.queue, s.byPools = s.byPools[0], s.byPools[1:]
	}
}

func (s *capacitySearch) rejected(ctx context.Context, rest []*dispatch.Item, f *failure) {
	s.part = nil
	if f.reaction != noCapacity {
		s.r.isolate(ctx, rest, f, s)
		return
	}
	rest, ok := s.learnFrom(ctx, rest, f)
	if !ok {
		return
	}
	if len(rest) == 1 || len(s.demand(rest)) == 0 {
		// Nothing smaller can be tried.
		for _, it := range rest {
			s.r.fail(it, f.errorFor(it.IDs))
		}
		return
	}
	s.requeue(rest)
}

func (s *capacitySearch) requeue(items []*dispatch.Item) { s.queue = slices.Concat(items, s.queue) }

// learnFrom finds out what a failed call has started. It returns the items that still have no
// outcome. If nothing was started, nothing that needs as much is tried again. It is false if EC2
// cannot be asked; the items have their outcomes then.
func (s *capacitySearch) learnFrom(ctx context.Context, group []*dispatch.Item, f *failure) (rest []*dispatch.Item, ok bool) {
	ids, applied := dispatch.DistinctIDs(group), len(s.r.appliedUnclaimed)
	was := make(map[instance.ID]instance.State, len(ids))
	for _, id := range ids {
		was[id] = s.r.b.lastChanges.state(id)
	}
	seen, ok := s.r.observeOutcome(ctx, group, f)
	if !ok {
		return nil, false
	}
	changed := len(s.r.appliedUnclaimed) > applied
	for _, id := range ids {
		inst, found := seen[id]
		idle := found && inst.State == instance.StateStopped
		// If somebody else changed an instance, this is no longer the demand that was rejected.
		changed = changed || was[id] != instance.StateUnspecified && (was[id] == instance.StateStopped) != idle
		if s.idle[id] = idle; found {
			s.pools[id] = inst.pool
		}
	}
	for _, it := range group {
		// If what is left of it was in the target state, the item has all that it asked for, and
		// another call could only find what others have done since.
		if slices.ContainsFunc(it.IDs, s.r.applied) {
			s.r.applyFound(it, seen)
		}
	}
	if left := s.demand(group); len(left) > 0 && !changed {
		s.infeasible = append(s.infeasible, infeasible{left, f})
	}
	rest, _ = s.r.deliverApplied(group)
	return rest, true
}

// demand is what items would start. An instance that several want counts once.
func (s *capacitySearch) demand(group []*dispatch.Item) demand {
	n := make(demand)
	for _, id := range dispatch.DistinctIDs(group) {
		if s.idle[id] {
			n[s.pools[id]]++
		}
	}
	return n
}

// byPool groups items by the pools that they need, in the order of the first item of each.
func (s *capacitySearch) byPool(group []*dispatch.Item) [][]*dispatch.Item {
	var order []string
	groups := make(map[string][]*dispatch.Item)
	for _, it := range group {
		var names []string
		for p := range s.demand([]*dispatch.Item{it}) {
			names = append(names, fmt.Sprintf("%q", p))
		}
		slices.Sort(names)
		key := strings.Join(names, ",")
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key] = append(groups[key], it)
	}
	list := make([][]*dispatch.Item, len(order))
	for i, key := range order {
		list[i] = groups[key]
	}
	return list
}

// failInfeasible fails the items for which there is known to be no capacity.
func (s *capacitySearch) failInfeasible(queue []*dispatch.Item) (rest []*dispatch.Item) {
	for _, it := range queue {
		wanted := s.demand([]*dispatch.Item{it})
		i := slices.IndexFunc(s.infeasible, func(t infeasible) bool { return wanted.covers(t.demand) })
		if i < 0 {
			rest = append(rest, it)
			continue
		}
		s.r.fail(it, s.infeasible[i].f.errorFor(it.IDs))
	}
	return rest
}

// prefix returns how many items to try together: all of them, or half of the smallest demand for
// which there is known to be no capacity.
func (s *capacitySearch) prefix(queue []*dispatch.Item) int {
	smallest := 0
	total := s.demand(queue)
	for _, t := range s.infeasible {
		if size := t.size(); total.covers(t.demand) && (smallest == 0 || size < smallest) {
			smallest = size
		}
	}
	if smallest == 0 {
		return len(queue)
	}
	n := 1
	for n < len(queue) && s.demand(queue[:n+1]).size() <= max(1, smallest/2) {
		n++
	}
	return n
}

// succeeded notes that a demand was met, so that there is that much less capacity now.
func (s *capacitySearch) succeeded(n demand) {
	var still []infeasible
	for _, t := range s.infeasible {
		less := maps.Clone(t.demand)
		for p, count := range n {
			if less[p] -= count; less[p] <= 0 {
				delete(less, p)
			}
		}
		if len(less) > 0 {
			still = append(still, infeasible{less, t.f})
		}
	}
	s.infeasible = still
}
