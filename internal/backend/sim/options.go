package sim

import (
	"cmp"

	"github.com/instanced/instanced/internal/instance"
)

// ThrottledBatch is the result of a call for which the resource bucket does not have a
// token for each instance. EC2 does not document it.
type ThrottledBatch uint8

// The possible results.
const (
	// ThrottledBatchTakesNothing rejects the call and leaves the bucket unchanged.
	ThrottledBatchTakesNothing ThrottledBatch = iota
	// ThrottledBatchTakesTokens rejects the call and empties the bucket.
	ThrottledBatchTakesTokens
	// ThrottledBatchIsCarriedOutInPart carries out the call for as many instances as there
	// are tokens, in the order of the ids, and also returns the error.
	ThrottledBatchIsCarriedOutInPart
)

// Options choose among possible behaviours where that of EC2 is unknown. The zero value of
// each is the documented default.
//
// When checks are made is an order, too: the form of the request, the health of
// the service, the request bucket, permission (where a dry run ends), existence,
// state, the resource bucket, capacity.
type Options struct {
	// UnlimitedOnHostCode is the error code of starting a T3 on a Dedicated Host
	// with unlimited CPU credits. Default: UnsupportedOperation.
	UnlimitedOnHostCode string
	// RebootCode is the error code of rebooting an instance that is pending,
	// stopping, stopped or shutting-down. Default: IncorrectInstanceState; the other
	// candidate is IncorrectState.
	RebootCode string
	// MaxIDs is how many ids StartInstances, StopInstances and RebootInstances take
	// in one call. Default: 1000, which is documented for TerminateInstances.
	MaxIDs int
	// NoIDsIsMissingParameter answers a call of StartInstances, StopInstances or
	// RebootInstances without ids by MissingParameter. Default: by
	// InvalidParameterCombination, as TerminateInstances does.
	NoIDsIsMissingParameter bool
	// ExistenceFirst looks for the ids before it asks for permission, so that a dry
	// run tells of missing ones. Default: permission first.
	ExistenceFirst bool
	// BestEffortNotices delivers a notice once, acknowledged or not. Default: a
	// notice that was not acknowledged is delivered again to the next consumer.
	BestEffortNotices bool
	// RefuseStopOfPending refuses to stop any pending instance. Default: only one
	// that has never been running since its launch.
	RefuseStopOfPending bool
	// FilteredByID takes a Describe by ids from the bucket of filtered and paginated
	// calls. Default: from the smaller one of the others.
	FilteredByID bool
	// ThrottledBatch is what becomes of a call that the resource bucket refuses.
	// Default: ThrottledBatchTakesNothing.
	ThrottledBatch ThrottledBatch
}

func (o Options) withDefaults() Options {
	o.UnlimitedOnHostCode = cmp.Or(o.UnlimitedOnHostCode, instance.CodeUnsupportedOperation)
	o.RebootCode = cmp.Or(o.RebootCode, instance.CodeIncorrectInstanceState)
	o.MaxIDs = cmp.Or(o.MaxIDs, maxTerminateIDs)
	return o
}
