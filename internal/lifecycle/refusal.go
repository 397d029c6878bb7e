package lifecycle

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// refusing are the states in which an instance refuses a verb with
// IncorrectInstanceState.
var refusing = map[instance.Verb][]instance.State{
	instance.VerbStart:  {instance.StateStopping, instance.StateShuttingDown, instance.StateTerminated},
	instance.VerbStop:   {instance.StatePending, instance.StateShuttingDown, instance.StateTerminated},
	instance.VerbReboot: {instance.StatePending, instance.StateStopping, instance.StateStopped, instance.StateShuttingDown},
}

// refusedIn returns the instances that refused a command for the state that they are in.
func refusedIn(failures []instance.Failure, err error) (ids []instance.ID) {
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

// unexplained returns those of the instances that refused a verb of which the journal
// neither says that they are in a state in which they would, nor that they left one since.
func (s *Service) unexplained(verb instance.Verb, ids []instance.ID, since journal.Position) []instance.ID {
	return slices.DeleteFunc(ids, func(id instance.ID) bool {
		known, found := s.journal.Get(id)
		return !found || slices.Contains(refusing[verb], known.Instance.State) ||
			known.Position.Seq > since.Seq && known.Previous != nil && slices.Contains(refusing[verb], known.Previous.State)
	})
}

// awaitRefusal returns, after [maxHold] at most, when what other commands did to instances
// before they refused this one is recorded.
func (s *Service) awaitRefusal(ctx context.Context, term *journal.Term, command *inflightCommand, ids []instance.ID) {
	if len(ids) == 0 {
		return
	}
	now := time.Now()
	refusals := make([]instance.StateChange, len(ids))
	for i, id := range ids {
		refusals[i] = instance.StateChange{ID: id, At: now}
	}
	if heard := command.awaitTurn(ctx, refusals); len(heard) > 0 {
		s.recordNotices(ctx, term, heard)
	}
}

// catchUp looks at instances that refused a command for a state that the journal knows
// nothing of. A refusal stands even if that fails; but whoever asks after it should not
// be shown a state in which the command would have been carried out.
func (s *Service) catchUp(ctx context.Context, ids []instance.ID) {
	if len(ids) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, maxHold)
	defer cancel()
	_ = s.looker.look(ctx, ids, cautious)
}
