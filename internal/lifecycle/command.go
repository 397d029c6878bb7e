package lifecycle

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
	"github.com/instanced/instanced/internal/observer"
	"github.com/instanced/instanced/internal/policy"
)

// MetadataChangedIDs is where an error names the instances that its command changed
// nevertheless, separated by commas.
const MetadataChangedIDs = "changed_instance_ids"

// Command carries a verb out and returns once what it changed is recorded.
//
// A dry run always returns an error: of [instance.KindDryRun] if the caller may.
func (s *Service) Command(ctx context.Context, caller Caller, req CommandRequest) (CommandResponse, error) {
	cmd, err := checkCommand(caller, req)
	if err != nil {
		return CommandResponse{}, err
	}
	if err := s.policy.Check(caller.Authenticated, policy.ActionOf(cmd.Verb)); err != nil {
		return CommandResponse{}, err
	}
	term, err := s.observer.Term()
	if err != nil {
		return CommandResponse{}, err
	}
	cmd.Term = term
	if cmd.DryRun {
		_, err := s.backend.Execute(ctx, cmd)
		if err == nil {
			err = &instance.Error{Kind: instance.KindInternal, Message: "the backend did not answer a dry run with an error"}
		}
		return CommandResponse{}, err
	}
	cause := instance.Cause{Principal: caller.Principal, Verb: cmd.Verb, RequestID: caller.RequestID, ClientToken: req.ClientToken}
	if req.ClientToken != "" {
		return s.executeIdempotent(ctx, term, cmd, cause)
	}
	return s.execute(ctx, term, cmd, cause, nil)
}

// execute has a command carried out and recorded; with a client token, the answer is recorded
// under it together with the changes.
func (s *Service) execute(ctx context.Context, term *journal.Term, cmd instance.Command, cause instance.Cause, token *journal.Token) (CommandResponse, error) {
	var alsoRecord func(*journal.Tx, observer.Result, error)
	if token != nil {
		alsoRecord = func(tx *journal.Tx, result observer.Result, err error) { s.recordToken(tx, *token, result, err) }
	}
	result, err := s.observer.Execute(ctx, term, cmd, cause, alsoRecord)
	if err != nil {
		if len(result.Changes) > 0 {
			err = withChanges(err, result.Changes)
		}
		return CommandResponse{}, err
	}
	response := s.responseOf(result, token)
	response.EndCursor = s.journal.Cursor(result.End)
	return response, nil
}

// responseOf returns what the caller is told of a result, and of the instances that an earlier
// attempt under the same client token reached. The end cursor is not set.
func (s *Service) responseOf(result observer.Result, token *journal.Token) CommandResponse {
	response := CommandResponse{Changes: result.Changes, Failures: result.Failures, Cursor: s.journal.Cursor(result.Before)}
	if token == nil || token.Answer == nil {
		return response
	}
	earlier := token.Answer
	response.Cursor = earlier.Cursor
	place := make(map[instance.ID]int, len(token.IDs))
	for i, id := range token.IDs {
		place[id] = i
	}
	response.Changes = slices.Concat(earlier.Changes, result.Changes)
	slices.SortFunc(response.Changes, func(x, y instance.StateChange) int { return place[x.ID] - place[y.ID] })
	response.Failures = slices.Concat(earlier.Failures, result.Failures)
	slices.SortFunc(response.Failures, func(x, y instance.Failure) int { return place[x.ID] - place[y.ID] })
	return response
}

// withChanges adds the instances that were changed nevertheless to those that an error names.
func withChanges(err error, changes []instance.StateChange) error {
	e := *instance.AsError(err)
	var ids []string
	for _, c := range changes {
		if c.Current != c.Previous {
			ids = append(ids, string(c.ID))
		}
	}
	if len(ids) == 0 {
		return &e
	}
	if named := e.Metadata[MetadataChangedIDs]; named != "" {
		ids = append(ids, named)
	}
	metadata := maps.Clone(e.Metadata)
	if metadata == nil {
		metadata = make(map[string]string)
	}
	metadata[MetadataChangedIDs] = strings.Join(ids, ",")
	e.Metadata = metadata
	return &e
}
