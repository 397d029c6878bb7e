package sim

import (
	"context"
	"fmt"
	"slices"

	"github.com/instanced/instanced/internal/instance"
)

// The sizes of a page. Source: EC2 API Reference, DescribeInstances.
const (
	minPage = 5
	maxPage = 1000
)

// Describe returns instances as they are now or, with a fault, as they were. Pages are
// sorted by id, so that no instance is repeated and no existing one is missed if instances
// are created or removed meanwhile.
func (b *Backend) Describe(ctx context.Context, query instance.DescribeQuery) (instance.DescribePage, error) {
	if err := checkQuery(query); err != nil {
		return instance.DescribePage{}, err
	}
	after, err := parsePageToken(query)
	if err != nil {
		return instance.DescribePage{}, err
	}
	if err := b.stall(ctx, verbDescribe, query.IDs); err != nil {
		return instance.DescribePage{}, err
	}
	now, closed := b.lock()
	if closed != nil {
		return instance.DescribePage{}, closed
	}
	defer b.unlock(now)
	o := op{verb: verbDescribe, number: b.nextCallLocked(), now: now}
	asked := slices.Compact(slices.Sorted(slices.Values(query.IDs)))
	bucket := b.buckets.request(verbDescribe, len(asked) > 0 && !b.config.Options.FilteredByID)
	if err := b.admit(o, asked, b.machinesLocked(asked), bucket); err != nil {
		return instance.DescribePage{}, err
	}
	if query.All {
		return b.page(o, query, b.sortedIDsLocked(), after), nil
	}
	return b.page(o, query, asked, after), nil
}

func checkQuery(query instance.DescribeQuery) error {
	if query.All == (len(query.IDs) > 0) {
		return errInvalid("InvalidParameterCombination", "Either instance ids or all instances must be asked for, not both.")
	}
	switch size := query.PageSize; {
	case size != 0 && size < minPage:
		return errInvalid("InvalidParameterValue", fmt.Sprintf(
			"Value ( %d ) for parameter maxResults is invalid. Expecting a value greater than %d.", size, minPage))
	case size > maxPage:
		return errInvalid("InvalidParameterValue", fmt.Sprintf(
			"Value ( %d ) for parameter maxResults is invalid. Expecting a value less than %d.", size, maxPage))
	}
	return nil
}

// page returns the instances after an id. The ids are sorted.
func (b *Backend) page(o op, query instance.DescribeQuery, ids []instance.ID, after instance.ID) instance.DescribePage {
	size := query.PageSize
	if size == 0 {
		size = maxPage
	}
	from, found := slices.BinarySearch(ids, after)
	if found {
		from++
	}
	page := instance.DescribePage{Instances: make([]*instance.Instance, 0, min(size, len(ids)-from))}
	var last instance.ID
	for _, id := range ids[from:] {
		inst := b.view(o, id)
		if inst == nil {
			continue
		}
		if len(page.Instances) == size {
			page.NextPageToken = pageToken(query, last)
			break
		}
		page.Instances = append(page.Instances, inst)
		last = id
	}
	return page
}

// view returns an instance as Describe shows it; nil if it is not visible.
func (b *Backend) view(o op, id instance.ID) *instance.Instance {
	m := b.machines[id]
	if m == nil {
		return nil
	}
	if b.lag == 0 {
		return m.inst
	}
	for _, f := range b.plan {
		if f.Kind == DescribeLag && f.Match.selects(m.inst) && b.falls(f, o.number, id, o.number) {
			b.use(f, o, id)
			return m.asOf(instance.WallClock(o.now).Add(-f.Delay))
		}
	}
	return m.inst
}
