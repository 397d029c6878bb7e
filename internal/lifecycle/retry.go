package lifecycle

import (
	"context"
	"fmt"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// attempt is what the history says of an instance since an intent was recorded.
type attempt struct {
	// reached is whether there was nothing left to do for the verb at some time, and the
	// instance changed state.
	reached bool
	// state is the last recorded one.
	state instance.State
	// own is the change whose recorded cause is the command; nil if there is none.
	own *instance.StateChange
}

// retryRemaining decides, for each instance of a command of which only the intent is recorded,
// whether the command still has to be carried out, and returns those instances in order.
// Instances that reached a state that the verb leads to since the intent are answered from the
// history: whoever caused it, repeating the command could undo what somebody did since. If the
// history does not go back far enough, the outcome for an instance is unknown; it is neither
// reported as done nor commanded again. Both become the token's answer, nil if there are none.
func (s *Service) retryRemaining(ctx context.Context, cmd instance.Command, cause instance.Cause, token *journal.Token) (remaining []instance.ID, err error) {
	// The outcome of the earlier attempt may not be recorded yet.
	if err := s.observer.RefreshOnce(ctx, token.IDs); err != nil {
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
			answer.Failures = append(answer.Failures, instance.Failure{ID: id, Err: errOutcomeLost(cause, id)})
		default:
			remaining = append(remaining, id)
		}
	}
	if len(unknown) > 0 && !cmd.PerInstance {
		return nil, errOutcomeLost(cause, unknown...)
	}
	if len(remaining) < len(token.IDs) {
		token.Answer = &answer
	}
	return remaining, nil
}

// historySince returns what the history says of the instances of a token since its intent,
// and whether some of that is no longer kept.
func (s *Service) historySince(ctx context.Context, cause instance.Cause, token *journal.Token) (history map[instance.ID]attempt, trimmed bool, err error) {
	history = make(map[instance.ID]attempt)
	for after := token.Intent; ; {
		page, err := s.journal.History(ctx, cause.Principal, token.IDs, after, MaxPageSize)
		if err != nil {
			oldest := s.journal.Oldest()
			if instance.AsError(err).Kind == instance.KindOutOfRange && oldest.Seq > after.Seq {
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
			r.reached = r.reached || cause.Verb.DoneIn(c.Before.State) || cause.Verb.DoneIn(c.After.State)
			if c.After.State == cause.Verb.Target() && sameToken(c.Cause, cause) {
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

// mayHaveLeft reports whether an instance may have reached a state that a verb leads to since
// an intent, and left it again, given that the history in between is not kept: it has changed
// since, and is in another state now. Nothing leads out of a termination.
func (s *Service) mayHaveLeft(verb instance.Verb, id instance.ID, intent journal.Position) bool {
	known, found := s.journal.Get(id)
	return found && verb != instance.VerbTerminate && known.Position.Seq > intent.Seq &&
		!verb.DoneIn(known.Instance.State)
}

// sameToken reports whether a change was caused by an attempt under the client token of a
// command. Each attempt has a request id of its own.
func sameToken(a, b instance.Cause) bool {
	a.RequestID, b.RequestID = "", ""
	return a == b
}

// recordCompleted records an answer that is complete without calling the backend.
func (s *Service) recordCompleted(ctx context.Context, term *journal.Term, token journal.Token) (CommandResponse, error) {
	a := token.Answer
	a.EndCursor = s.Cursor()
	if err := updateToken(ctx, term, func(tx *journal.Tx) { tx.PutToken(token) }); err != nil {
		return CommandResponse{}, withChanges(instance.AsError(err).UnknownOutcome(), a.Changes)
	}
	return responseFrom(a), nil
}

// errOutcomeLost refuses to repeat a command that may have been carried out before the recorded
// history begins.
func errOutcomeLost(cause instance.Cause, ids ...instance.ID) *instance.Error {
	return &instance.Error{
		Kind:   instance.KindPrecondition,
		Reason: instance.ReasonCommandOutcomeUnknown,
		Message: fmt.Sprintf("%s with the client token %q may have been carried out already: the instances have changed since, and that history "+
			"is no longer kept. It is not repeated; to carry it out now, use a new token", cause.Verb, cause.ClientToken),
		InstanceIDs:    ids,
		OutcomeUnknown: true,
	}
}
