package ec2

import (
	"context"
	"slices"

	"github.com/instanced/instanced/internal/backend/ec2/dispatch"
	"github.com/instanced/instanced/internal/instance"
)

// workList is a stack of the ways in which the parts of a batch are tried. The batch starts as
// one sequence. When EC2 rejects a part without naming an item, a bisection or a
// capacity search for that part goes on top; the ones below wait until it is empty.
type workList []strategy

// strategy divides items into parts, each of which is sent until every item of it has its
// outcome, or is rejected for a reason that names none of them.
type strategy interface {
	// next returns the next part to send; none when nothing is left.
	next() []*dispatch.Item
	// rejected is told that what is left of the last part was rejected for such a reason.
	rejected(ctx context.Context, rest []*dispatch.Item, f *failure)
	// requeue puts items first.
	requeue(items []*dispatch.Item)
}

// run gives every item of the batch its outcome.
func (r *batchRun) run(ctx context.Context) {
	r.metrics.countQueueWait(r.batch.Items)
	r.push(&sequence{r: r, items: r.batch.Items})
	for len(r.work) > 0 {
		top := len(r.work) - 1
		s := r.work[top]
		part := s.next()
		if len(part) == 0 {
			r.work = r.work[:top]
			continue
		}
		if rest, f := r.attempt(ctx, part); f != nil {
			s.rejected(ctx, rest, f)
		}
	}
}

func (r *batchRun) push(s strategy) { r.work = append(r.work, s) }

// isolate has a part that was rejected as a whole tried in smaller parts. Items that are put
// aside meanwhile go back to a strategy.
func (r *batchRun) isolate(ctx context.Context, part []*dispatch.Item, f *failure, back strategy) {
	if f.reaction == noCapacity {
		r.pushCapacitySearch(ctx, part, f)
		return
	}
	r.metrics.divided[bisected].Inc()
	r.push(&bisection{r: r, candidates: part, f: f, certain: true, back: back})
}

// sequence sends items in their order, as many at once as EC2 takes, or each alone.
type sequence struct {
	r     *batchRun
	items []*dispatch.Item
	alone bool
}

func (s *sequence) next() (part []*dispatch.Item) {
	n := s.r.fitting(s.items)
	if s.alone {
		n = min(n, 1)
	}
	part, s.items = s.items[:n], s.items[n:]
	return part
}

func (s *sequence) rejected(ctx context.Context, rest []*dispatch.Item, f *failure) {
	s.r.isolate(ctx, rest, f, s)
}

func (s *sequence) requeue(items []*dispatch.Item) { s.items = slices.Concat(items, s.items) }

// bisection finds an item because of which EC2 rejects others with it, without naming it, and
// fails that item. Half of the candidates are tried: if EC2 accepts them, they have their outcome
// and the bad one is among the others; if not, it is among them, and the others are put aside.
// Those are requeued in the end, to be tried together.
//
// With k bad items among n that makes at most k·log2(n)+k calls after the first: log2(n) for
// each, and one for those put aside.
type bisection struct {
	r          *batchRun
	candidates []*dispatch.Item
	aside      []*dispatch.Item
	f          *failure // of the last call for all candidates
	back       strategy // to which those put aside go
	// certain is whether a single suspect that is left must be the bad one.
	certain bool

	// half is the part of the candidates that is being tried; none if it was rejected.
	half     []*dispatch.Item
	answered int // what batchRun.answered was before
}

func (b *bisection) next() []*dispatch.Item {
	if len(b.half) > 0 { // it has its outcomes
		b.certain = b.certain && b.r.answered-b.answered == len(b.half)
		b.candidates = b.candidates[len(b.half):]
		b.half = nil
	}
	if len(b.candidates) > 1 {
		b.half, b.answered = b.candidates[:len(b.candidates)/2], b.r.answered
		return b.half
	}
	switch {
	case len(b.candidates) == 0:
	case b.certain:
		b.r.fail(b.candidates[0], b.f.errorFor(b.candidates[0].IDs))
	default:
		b.aside = slices.Concat(b.candidates, b.aside)
	}
	b.back.requeue(b.aside)
	b.candidates, b.aside = nil, nil
	return nil
}

func (b *bisection) rejected(ctx context.Context, rest []*dispatch.Item, f *failure) {
	others := b.candidates[len(b.half):]
	b.half = nil
	if f.reaction == noCapacity {
		// They are not at fault; what they lack is capacity.
		b.candidates, b.certain = others, false
		b.r.pushCapacitySearch(ctx, rest, f)
		return
	}
	b.aside = append(b.aside, others...)
	b.candidates, b.f, b.certain = rest, f, true
}

func (b *bisection) requeue(items []*dispatch.Item) { b.aside = slices.Concat(items, b.aside) }

// splitTooLarge queues a group that is too large for EC2 to be sent in parts.
func (r *batchRun) splitTooLarge(group []*dispatch.Item, f *failure) {
	if len(group) == 1 {
		r.fail(group[0], f.errorFor(group[0].IDs))
		return
	}
	if n := max(1, f.asked/2); r.b.dispatcher.LowerMaxIDs(r.batch, n) {
		r.b.log.Info("EC2 takes fewer instances a call than was tried", "action", string(r.batch.Verb), "from_now_on", n)
	}
	r.reportRequeued(group)
	r.metrics.divided[tooLarge].Inc()
	r.push(&sequence{r: r, items: group})
}

// fitting returns how many items go into one call, at least one if there are any.
func (r *batchRun) fitting(group []*dispatch.Item) int {
	maxIDs := r.b.dispatcher.MaxIDs(r.batch)
	ids := make(map[instance.ID]struct{})
	for n, it := range group {
		for _, id := range it.IDs {
			ids[id] = struct{}{}
		}
		if len(ids) > maxIDs {
			return max(1, n)
		}
	}
	return len(group)
}
