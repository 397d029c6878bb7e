package observer

import (
	"context"
	"iter"

	"github.com/instanced/instanced/internal/instance"
)

// Backend carries commands out: EC2 or the simulator. It reports what it sees and decides
// nothing about what is recorded; merging, repairing and inferring is the observer's work.
// All methods are safe for concurrent use.
type Backend interface {
	// Restore is called before anything else, and again whenever this process becomes
	// the owner after another one was, with what the journal knows of every instance.
	// The instances must not be modified.
	Restore(known []*instance.Instance) error

	// Execute carries a command out. An error rejects it; a Result beside an error lists
	// what was changed nevertheless, as after a lack of capacity. Errors are of type
	// [instance.Error] or the error of ctx. An error with OutcomeUnknown, or one of ctx, leaves
	// open what happened to the instances that the command's Sent was called for; the
	// others are unchanged. Beside an error of ctx the Result of a per-instance command has the
	// outcomes that there are.
	Execute(ctx context.Context, cmd instance.Command) (instance.Result, error)

	// Describe returns a page of instances as they are now. One that cannot be read does
	// not fail its page, and it is an error when pages do not end.
	Describe(ctx context.Context, query instance.DescribeQuery) (instance.DescribePage, error)

	// Notices yields notices of instances until ctx is done. An error is yielded beside an
	// empty notice and does not end the sequence. A notice that is not acknowledged may be
	// yielded again.
	Notices(ctx context.Context) iter.Seq2[instance.Notice, error]
}
