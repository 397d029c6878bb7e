package observer

import (
	"context"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// updateTx is one run of an update of the journal.
type updateTx struct {
	*journal.Tx
	observer *Observer
	now      time.Time
	// attributed are the steps that it attributed to commands, in order.
	attributed []attributedStep
}

// attributedStep is a step that an update attributed to a command, and the step that was
// attributed to it before; nil if none was.
type attributedStep struct {
	on             *commandOnInstance
	step, previous *recordedStep
}

// update runs an update of the journal. If nothing of it is recorded, no step is attributed
// to a command.
func (o *Observer) update(ctx context.Context, term *journal.Term, write func(*updateTx) error) (journal.Position, error) {
	u := updateTx{observer: o}
	position, err := term.Update(ctx, func(tx *journal.Tx) error {
		u.undo() // of an earlier run
		u.Tx, u.now = tx, time.Now().UTC()
		err := write(&u)
		if err == nil {
			err = tx.Err()
		}
		if err != nil {
			u.undo()
		}
		return err
	})
	if err != nil && !instance.AsError(err).OutcomeUnknown {
		u.undo()
	}
	return position, err
}

// attribute makes a command the cause of a step, if it still can be.
func (u *updateTx) attribute(c causeCandidate, step recordedStep) bool {
	previous := c.step.Load()
	if !c.attribute(&step) {
		return false
	}
	u.attributed = append(u.attributed, attributedStep{c.commandOnInstance, &step, previous})
	c.command.tracker.origins.add(c.id, c.command)
	return true
}

// undo gives each command back the step that it had, unless a later update has attributed
// another one to it meanwhile.
func (u *updateTx) undo() {
	for _, a := range slices.Backward(u.attributed) {
		a.on.step.CompareAndSwap(a.step, a.previous)
	}
	u.attributed = nil
}
