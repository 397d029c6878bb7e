package observer

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// rejectedIDs returns the instances that rejected a command because of their state.
func rejectedIDs(failures []instance.Failure, err error) (ids []instance.ID) {
	if e, ok := errors.AsType[*instance.Error](err); ok && e.Code == instance.CodeIncorrectInstanceState {
		ids = slices.Clone(e.InstanceIDs)
	}
	for _, f := range failures {
		if f.Err.Code == instance.CodeIncorrectInstanceState {
			ids = append(ids, f.ID)
		}
	}
	return ids
}

// unexplained keeps the ids whose rejection the journal cannot account for: the recorded
// state accepts the verb, and no rejecting state was left since the position.
func (o *Observer) unexplained(verb instance.Verb, ids []instance.ID, since journal.Position) []instance.ID {
	return slices.DeleteFunc(ids, func(id instance.ID) bool {
		known, found := o.journal.Get(id)
		return !found || verb.RejectedIn(known.Instance.State) ||
			known.Position.Seq > since.Seq && known.Previous != nil && verb.RejectedIn(known.Previous.State)
	})
}

// recordBeforeRejection returns, after at most [maxHold], when what other commands did to
// instances before they rejected this one is recorded.
func (o *Observer) recordBeforeRejection(ctx context.Context, term *journal.Term, command *inflightCommand, ids []instance.ID) {
	if len(ids) == 0 {
		return
	}
	now := time.Now()
	rejections := make([]instance.StateChange, len(ids))
	for i, id := range ids {
		rejections[i] = instance.StateChange{ID: id, At: now}
	}
	o.recordNotices(ctx, term, command.awaitTurn(ctx, rejections))
}

// refreshRejected describes instances that rejected a command because of a state that is not
// recorded, so that a caller who asks afterwards is not shown one that accepts the command.
// The rejection stands even if that fails.
func (o *Observer) refreshRejected(ctx context.Context, ids []instance.ID) {
	if len(ids) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, maxHold)
	defer cancel()
	_ = o.refresher.refresh(ctx, ids, eventual)
}
