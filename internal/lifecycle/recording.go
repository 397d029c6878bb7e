package lifecycle

import (
	"context"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/journal"
)

// recording is one run of an update of the journal.
type recording struct {
	*journal.Tx
	now time.Time
	// claimed are the commands that it made the causes of steps, in that order.
	claimed []claimedStep
}

// claimedStep is a step that an update gave to a command, and the one that the command had
// before; nil for none.
type claimedStep struct {
	on             *commandOnInstance
	step, previous *recordedStep
}

// update has the journal updated. When nothing of it is recorded, no command counts as the
// cause of what would have been.
func (s *Service) update(ctx context.Context, term *journal.Term, write func(*recording) error) (journal.Position, error) {
	var r recording
	position, err := term.Update(ctx, func(tx *journal.Tx) error {
		r.undo() // it may have been run before, in vain
		r.Tx, r.now = tx, time.Now().UTC()
		err := write(&r)
		if err == nil {
			err = tx.Err()
		}
		if err != nil {
			r.undo()
		}
		return err
	})
	if err != nil && !asError(err).OutcomeUnknown {
		r.undo()
	}
	return position, err
}

// claim makes a command the cause of a step, if it still may be.
func (r *recording) claim(c causeCandidate, step recordedStep) bool {
	previous := c.step.Load()
	if !c.claim(&step) {
		return false
	}
	r.claimed = append(r.claimed, claimedStep{c.commandOnInstance, &step, previous})
	return true
}

// undo gives each command back the step that it had, unless a later update has given it
// another one meanwhile.
func (r *recording) undo() {
	for _, c := range slices.Backward(r.claimed) {
		c.on.step.CompareAndSwap(c.step, c.previous)
	}
	r.claimed = nil
}
