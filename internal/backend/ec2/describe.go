package ec2

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// maxReadAttempts is how often DescribeInstances is tried.
const maxReadAttempts = 3

// Describe returns a page of managed instances as EC2 describes them. It always filters instead of
// naming ids: then an id that does not exist is no error, and the token bucket is larger. A page of
// a query by ids covers at most 200 of them.
func (b *Backend) Describe(ctx context.Context, query instance.DescribeQuery) (instance.DescribePage, error) {
	if err := ctx.Err(); err != nil {
		return instance.DescribePage{}, err
	}
	if query.All == (len(query.IDs) > 0) {
		return instance.DescribePage{}, errQuery("InvalidParameterCombination", "Either instance ids or all instances must be asked for, not both.")
	}
	if size := query.PageSize; size != 0 && (size < minPage || size > maxPage) {
		return instance.DescribePage{}, errQuery(codeInvalidValue, fmt.Sprintf(
			"Value ( %d ) for parameter maxResults is invalid. Expecting a value from %d to %d.", size, minPage, maxPage))
	}
	from, at, ok := parseToken(query)
	if !ok {
		return instance.DescribePage{}, errQuery("InvalidPaginationToken", "The page token is not of this query.")
	}
	if query.All {
		p, next, err := b.readPage(ctx, nil, query.PageSize, at)
		return instance.DescribePage{Instances: p.list(), Unreadable: p.unreadable, NextPageToken: next.String()}, err
	}
	if openErr := b.client.breaker.allow(); openErr != nil {
		return instance.DescribePage{}, openErr
	}
	ids := query.IDs[from:min(len(query.IDs), from+b.span(query.PageSize))]
	p, next, err := b.readPage(ctx, ids, query.PageSize, at)
	if err != nil {
		return instance.DescribePage{}, err
	}
	answer := instance.DescribePage{Instances: p.list(), Unreadable: p.unreadable}
	switch to := from + len(ids); {
	case next.token != "":
		answer.NextPageToken = pageToken(from, next)
	case to < len(query.IDs):
		answer.NextPageToken = pageToken(to, position{})
	}
	return answer, nil
}

func errQuery(code, message string) error {
	return &instance.Error{Kind: instance.KindInvalid, Code: code, Message: message}
}

// list returns the instances alone.
func (p page) list() []*instance.Instance {
	list := make([]*instance.Instance, len(p.instances))
	for i := range p.instances {
		list[i] = p.instances[i].Instance
	}
	return list
}

// span is how many ids fit into one call.
func (b *Backend) span(size int) int {
	_, values := byTags(b.cfg.Manage)
	n := max(1, maxFilterValues-values)
	if size > 0 {
		n = min(n, size)
	}
	return n
}

// pageToken encodes with which id of a query the next page begins, and EC2's position in it.
func pageToken(from int, at position) string { return strconv.Itoa(from) + ":" + at.String() }

func parseToken(query instance.DescribeQuery) (from int, at position, ok bool) {
	if query.All || query.PageToken == "" {
		at, ok = parsePosition(query.PageToken)
		return 0, at, ok
	}
	digits, token, found := strings.Cut(query.PageToken, ":")
	from, err := strconv.Atoi(digits)
	at, ok = parsePosition(token)
	return from, at, ok && found && err == nil && from >= 0 && from < len(query.IDs)
}

// describeAll describes managed instances. Those that do not exist or cannot be decoded are left
// out.
func (b *Backend) describeAll(ctx context.Context, ids []instance.ID) (map[instance.ID]describedInstance, error) {
	found := make(map[instance.ID]describedInstance, len(ids))
	for part := range slices.Chunk(ids, b.span(0)) {
		for at := (position{}); ; {
			p, next, err := b.readPage(ctx, part, 0, at)
			if err != nil {
				return nil, err
			}
			for _, inst := range p.instances {
				found[inst.ID] = inst
			}
			if at = next; at.token == "" {
				break
			}
		}
	}
	return found, nil
}

// readPage asks EC2 for a page of all managed instances, or of the given ones, once the bucket
// allows it, and retries failures. It also returns the position of the next page; zero after the
// last.
func (b *Backend) readPage(ctx context.Context, ids []instance.ID, size int, at position) (page, position, error) {
	filters, _ := byTags(b.cfg.Manage)
	pages := maxPages
	if len(ids) > 0 {
		filters = append(filters, byIDs(ids))
		pages = maxPagesOfIDs
	}
	if size == 0 {
		size = maxPage
	}
	for tries := 1; ; {
		if err := b.waitForRead(ctx); err != nil {
			return page{}, position{}, err
		}
		p, f := b.client.describe(ctx, filters, size, at.token)
		switch {
		case f == nil:
			b.metrics.unreadable.Add(float64(len(p.unreadable)))
			b.recordPage(p, ids, at)
			if p.next == "" {
				return p, position{}, nil
			}
			next, ok := at.next(p.next, pages)
			if !ok {
				return page{}, position{}, b.client.errEndlessPages()
			}
			return p, next, nil
		case ctx.Err() != nil:
			return page{}, position{}, ctx.Err()
		case f.reaction == throttled:
			b.metrics.actions[actionDescribe].retries[throttled].Inc()
			b.readsMu.Lock()
			b.reads.OnThrottle(time.Now(), 1, 1)
			b.readsMu.Unlock()
		case f.reaction != unknownOutcome || tries == maxReadAttempts:
			return page{}, position{}, f.err
		default:
			if !pause(ctx, jitter(minBackoff<<tries)) {
				return page{}, position{}, ctx.Err()
			}
			b.metrics.actions[actionDescribe].retries[unknownOutcome].Inc()
			tries++
		}
	}
}

// waitForRead waits for a token. If the deadline comes first, it fails at once.
func (b *Backend) waitForRead(ctx context.Context) error {
	b.readsMu.Lock()
	now := time.Now()
	wait := b.reads.Take(now, 1)
	if deadline, ok := ctx.Deadline(); ok && wait > 0 && now.Add(wait).After(deadline) {
		b.reads.Give(1)
		bucket := b.reads.Status(now)
		b.readsMu.Unlock()
		return &instance.Error{
			Kind:   instance.KindExhausted,
			Reason: instance.ReasonRequestLimitExceeded,
			Message: fmt.Sprintf("EC2's rate limits do not allow this DescribeInstances within its deadline: its request bucket holds %.1f of %g and gains %g a second",
				max(0, bucket.Level), bucket.Capacity, bucket.Refill),
			RetryAfter: wait,
		}
	}
	b.readsMu.Unlock()
	if wait > 0 && !pause(ctx, wait) {
		b.readsMu.Lock()
		b.reads.Give(1)
		b.readsMu.Unlock()
		return ctx.Err()
	}
	return nil
}

// recordPage updates lastChanges and the cache of managed instances.
func (b *Backend) recordPage(p page, ids []instance.ID, at position) {
	there := make(map[instance.ID]bool, len(ids))
	note := func(id instance.ID) {
		there[id] = true
		if len(b.cfg.Manage) > 0 {
			b.managed.Set(id, struct{}{})
		}
	}
	for _, inst := range p.instances {
		b.lastChanges.observed(inst.Instance)
		note(inst.ID)
	}
	for id := range p.unreadable {
		note(id)
	}
	if at.token != "" || p.next != "" {
		return
	}
	for _, id := range ids {
		if !there[id] {
			b.lastChanges.forget(id)
			b.managed.Delete(id)
		}
	}
}
