package lifecycle

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/instanced/instanced/internal/journal"
)

// recording is one run of an update of the journal.
type recording struct {
	*journal.Tx
	now time.Time
	// used are the commands that it made the causes of steps.
	used []*atomic.Bool
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

// use notes that a command is the cause of a step.
func (r *recording) use(c attribution) {
	if c.used != nil && !c.used.Swap(true) {
		r.used = append(r.used, c.used)
	}
}

func (r *recording) undo() {
	for _, used := range r.used {
		used.Store(false)
	}
	r.used = nil
}
