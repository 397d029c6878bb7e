package lifecycle

import (
	"context"
	"fmt"
	"slices"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// wanted are the states in which there is nothing left for a verb to do.
var wanted = map[instance.Verb][]instance.State{
	instance.VerbStart:     {instance.StatePending, instance.StateRunning},
	instance.VerbStop:      {instance.StateStopping, instance.StateStopped},
	instance.VerbTerminate: {instance.StateShuttingDown, instance.StateTerminated},
}

// recalled is what the history says of an instance since an intent was recorded.
type recalled struct {
	// reached is whether the instance was in a wanted state and changed state since.
	reached bool
	// state is the last one known.
	state instance.State
	// own is the change of which the history names the command as the cause; nil for none.
	own *instance.StateChange
}

// recallOutcomes decides for each instance of a command, of which only the intent is known,
// whether it still has to be carried out. Instances that reached a wanted state since the
// intent are answered from the history: whoever brought that about, to repeat the command
// could undo what somebody did since. Those whose outcome nobody can tell any more are
// neither reported as done nor commanded again. Both become the token's answer, nil if there
// are none; rest are the others, in order.
func (s *Service) recallOutcomes(ctx context.Context, cmd instance.Command, cause instance.Cause, token *journal.Token) (rest []instance.ID, err error) {
	// What became of the earlier attempt may not be recorded yet.
	if err := s.looker.look(ctx, token.IDs, cautious); err != nil {
		return nil, err
	}
	history, trimmed, err := s.historySince(ctx, cause, token)
	if err != nil {
		return nil, err
	}
	answer := journal.Answer{Cursor: s.journal.Cursor(token.Intent)}
	var unknown []instance.ID
	for _, id := range token.IDs {
		switch r := history[id]; {
		case r.own != nil:
			answer.Changes = append(answer.Changes, *r.own)
		case r.reached:
			answer.Changes = append(answer.Changes, instance.StateChange{ID: id, Previous: r.state, Current: r.state})
		case trimmed && s.mayHaveLeft(cmd.Verb, id, token.Intent):
			unknown = append(unknown, id)
			answer.Failures = append(answer.Failures, instance.Failure{ID: id, Err: outcomeLost(cause, id)})
		default:
			rest = append(rest, id)
		}
	}
	if len(unknown) > 0 && !cmd.PerInstance {
		return nil, outcomeLost(cause, unknown...)
	}
	if len(rest) < len(token.IDs) {
		token.Answer = &answer
	}
	return rest, nil
}

// historySince returns what the history says since the intent of a token, and whether some
// of it is no longer kept.
func (s *Service) historySince(ctx context.Context, cause instance.Cause, token *journal.Token) (history map[instance.ID]recalled, trimmed bool, err error) {
	history = make(map[instance.ID]recalled)
	for after := token.Intent; ; {
		page, err := s.journal.History(ctx, cause.Principal, token.IDs, after, MaxPageSize)
		if err != nil {
			oldest := s.journal.Oldest()
			if asError(err).Kind == instance.KindOutOfRange && oldest.Seq > after.Seq {
				trimmed, after = true, oldest
				continue
			}
			return nil, false, err
		}
		for _, e := range page.Entries {
			c := e.Change
			if c.Type != instance.ChangeState {
				continue
			}
			r := history[c.ID()]
			r.state = c.After.State
			r.reached = r.reached || slices.Contains(wanted[cause.Verb], c.Before.State) || slices.Contains(wanted[cause.Verb], c.After.State)
			if c.After.State == targets[cause.Verb] && sameToken(c.Cause, cause) {
				r.own = &instance.StateChange{ID: c.ID(), Previous: c.Before.State, Current: c.After.State}
			}
			history[c.ID()] = r
		}
		if page.Done {
			return history, trimmed, nil
		}
		after = page.Next
	}
}

// mayHaveLeft reports whether an instance may have reached a wanted state since an intent
// and left it again, given that the history in between is not kept: it has changed since,
// and is in another state now. Nothing leads out of the states that a termination leads to.
func (s *Service) mayHaveLeft(verb instance.Verb, id instance.ID, intent journal.Position) bool {
	known, found := s.journal.Get(id)
	return found && verb != instance.VerbTerminate && known.Position.Seq > intent.Seq &&
		!slices.Contains(wanted[verb], known.Instance.State)
}

// sameToken reports whether a change was caused under the client token of a command: its
// attempts have request ids of their own.
func sameToken(a, b instance.Cause) bool {
	a.RequestID, b.RequestID = "", ""
	return a == b
}

// keepRecalled keeps an answer that is complete without the backend.
func (s *Service) keepRecalled(ctx context.Context, term *journal.Term, token journal.Token) (CommandResponse, error) {
	a := token.Answer
	a.EndCursor = s.Cursor()
	if _, err := term.Update(ctx, func(tx *journal.Tx) error { tx.PutToken(token); return nil }); err != nil {
		return CommandResponse{}, withChanges(asError(err).UnknownOutcome(), a.Changes)
	}
	return CommandResponse{Changes: a.Changes, Failures: a.Failures, Cursor: a.Cursor, EndCursor: a.EndCursor}, nil
}

// outcomeLost refuses to repeat a command that may have been carried out so long ago that
// the history since is no longer kept.
func outcomeLost(cause instance.Cause, ids ...instance.ID) *instance.Error {
	return &instance.Error{
		Kind:   instance.KindPrecondition,
		Reason: instance.ReasonCommandOutcomeUnknown,
		Message: fmt.Sprintf("%s with the client token %q may have been carried out already: the instances have changed since, and that history "+
			"is no longer kept. It is not repeated; to carry it out now, use a new token", cause.Verb, cause.ClientToken),
		InstanceIDs:    ids,
		OutcomeUnknown: true,
	}
}
