package lifecycle

import (
	"context"
	"time"

	"github.com/instanced/instanced/internal/journal"
)

// recording is one run of an update of the journal.
type recording struct {
	*journal.Tx
	now time.Time
	// claimed are the commands that it made the causes of steps.
	claimed []*commandOnInstance
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
	if !c.claim(&step) {
		return false
	}
	r.claimed = append(r.claimed, c.commandOnInstance)
	return true
}

func (r *recording) undo() {
	for _, on := range r.claimed {
		on.step.Store(nil)
	}
	r.claimed = nil
}
