package ec2

import (
	"context"

	"github.com/instanced/instanced/internal/backend/ec2/dispatch"
)

// bisect finds a unit on whose account EC2 refuses a group without naming it, and refuses
// that. Half of those under suspicion are tried: if EC2 accepts them, they have their
// answer and the bad one is among the others; if not, it is among them, and the others
// are put aside. Who was put aside is returned, to be tried together.
//
// With k bad units among n that makes at most k·log2(n)+k calls after the first: log2(n)
// for each, and one for those put aside.
func (r *batchRun) bisect(ctx context.Context, suspects []*dispatch.Item, f *failure) (aside []*dispatch.Item) {
	certain := true // whether one suspect that is left over must be the bad one
	for len(suspects) > 1 {
		half := suspects[:len(suspects)/2]
		others := suspects[len(suspects)/2:]
		answered := r.answered
		rest, again := r.attempt(ctx, half)
		switch {
		case again == nil:
			certain = certain && r.answered-answered == len(half)
			suspects = others
		case again.reaction == noCapacity:
			// They are good; what they lack is another matter.
			r.searchCapacity(ctx, rest, again)
			certain = false
			suspects = others
		default:
			aside = append(aside, others...)
			suspects, f, certain = rest, again, true
		}
	}
	if len(suspects) == 0 {
		return aside
	}
	if !certain {
		return append(suspects, aside...)
	}
	r.fail(suspects[0], f.errorFor(suspects[0].IDs))
	return aside
}
