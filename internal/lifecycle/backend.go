package lifecycle

import (
	"context"
	"iter"

	"github.com/instanced/instanced/internal/instance"
)

// Backend is what carries commands out: EC2 or the simulator. It tells what it
// sees and decides nothing about what is recorded; merging, repairing and
// inferring is the observer's work. All methods are safe for concurrent use.
type Backend interface {
	// Restore is called before anything else, and again whenever this process becomes
	// the owner after another one was, with what the journal knows of every instance.
	// The instances must not be modified.
	Restore(known []*instance.Instance) error

	// Execute carries a command out. An error refuses it; a Result beside an error
	// lists what was changed all the same, as after a lack of capacity. Errors are
	// of type [instance.Error] or those of ctx. An error with OutcomeUnknown, or one
	// of ctx, leaves open what happened to the instances that the command's Sent was called
	// for; the others are as they were.
	Execute(ctx context.Context, cmd instance.Command) (instance.Result, error)

	// Describe returns a page of instances as they are now. One that cannot be read does
	// not fail its page, and it is an error when pages do not end.
	Describe(ctx context.Context, query instance.DescribeQuery) (instance.DescribePage, error)

	// Notices yields what is heard of instances until ctx is done. An error is
	// yielded beside an empty notice and does not end the sequence. A notice that is
	// not acknowledged may be yielded again.
	Notices(ctx context.Context) iter.Seq2[instance.Notice, error]
}

// limited is a [Backend] that may carry out only so much in a time.
type limited interface {
	// Buckets returns how its token buckets stand, in a fixed order.
	Buckets() []instance.TokenBucket
}
