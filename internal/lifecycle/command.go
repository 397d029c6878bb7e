package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

const (
	// recordTimeout bounds how long a caller waits until what it did is recorded. The
	// answer of a command is recorded all the same when the caller leaves.
	recordTimeout = 30 * time.Second
	// recordMargin is what is left of the caller's deadline to say that the answer could
	// not be recorded in time.
	recordMargin = 200 * time.Millisecond
)

// Command carries a verb out and returns once what it changed is recorded.
//
// A dry run returns an error always: of [instance.KindDryRun] if the caller may.
func (s *Service) Command(ctx context.Context, caller Caller, req CommandRequest) (CommandResponse, error) {
	cmd, err := checkCommand(caller, req)
	if err != nil {
		return CommandResponse{}, err
	}
	term, err := s.owner()
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
		return s.onceByToken(ctx, term, cmd, cause)
	}
	return s.execute(ctx, term, cmd, cause, nil)
}

// execute calls the backend and records its answer; with a token, the answer is kept
// under it together with the changes.
func (s *Service) execute(ctx context.Context, term *journal.Term, cmd instance.Command, cause instance.Cause, token *journal.Token) (CommandResponse, error) {
	if err := term.Writable(); err != nil {
		return CommandResponse{}, err
	}
	before := s.journal.Head()
	if err := cmp.Or(s.learn(ctx, cmd.Principal, cmd.IDs), ctx.Err()); err != nil {
		if ctx.Err() != nil {
			err = notSent(ctx, cmd.Verb, err)
		}
		return CommandResponse{}, err
	}
	response, refused, err := s.carryOut(ctx, term, cmd, cause, before, token)
	s.catchUp(ctx, s.unexplained(cmd.Verb, refused, before))
	return response, err
}

// carryOut calls the backend and records its answer. Refused are the instances that
// refused for a state that the journal did not know of before.
func (s *Service) carryOut(ctx context.Context, term *journal.Term, cmd instance.Command, cause instance.Cause, before journal.Position, token *journal.Token) (_ CommandResponse, refused []instance.ID, err error) {
	command := s.tracker.begin(cmd.IDs, cause, before)
	defer command.end()
	cmd.Sent, cmd.Rejected = command.sent, command.rejected
	result, err := command.outcomes(s.callBackend(ctx, cmd, command))
	s.looker.request(command.markUnknown(unknownOutcomes(ctx, cmd, result, err))...)
	on := command.answer(result.Changes)
	defer func() {
		refused = s.unexplained(cmd.Verb, refusedIn(result.Failures, err), before)
		s.awaitRefusal(ctx, term, command, refused)
	}()
	if err != nil && len(result.Changes) == 0 {
		return CommandResponse{}, nil, err
	}
	response := CommandResponse{
		Changes:  result.Changes,
		Failures: result.Failures,
		Cursor:   s.journal.Cursor(before),
	}
	end, recordErr := s.record(ctx, term, command, answer{response: &response, on: on, refusal: err, token: token})
	switch {
	case recordErr != nil:
		s.looker.request(command.markUnrecorded()...)
		return CommandResponse{}, nil, notRecorded(cmd, recordErr)
	case err != nil:
		return CommandResponse{}, nil, withChanges(err, response.Changes)
	}
	response.EndCursor = s.journal.Cursor(end)
	return response, nil, nil
}

// callBackend calls the backend. While the command is queued there, the call ends [recordMargin]
// before the caller's deadline, so that the caller can still be told that nothing was done.
func (s *Service) callBackend(ctx context.Context, cmd instance.Command, command *inflightCommand) (instance.Result, error) {
	queueing := ctx
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		queueing, cancel = context.WithCancel(ctx)
		defer cancel()
		left := time.Until(deadline)
		timer := time.AfterFunc(left-min(recordMargin, left/4), func() {
			if !command.wasSent() {
				cancel()
			}
		})
		defer timer.Stop()
	}
	result, err := s.backend.Execute(queueing, cmd)
	if err != nil && errors.Is(err, queueing.Err()) && !command.wasSent() {
		err = notSent(ctx, cmd.Verb, err)
	}
	return result, err
}

// notSent returns what a caller is told whose command ended with its context before a request
// was sent, where it would otherwise be told that the outcome is unknown.
func notSent(ctx context.Context, verb instance.Verb, err error) error {
	if isCertain(err) || errors.Is(ctx.Err(), context.Canceled) {
		return err
	}
	return &instance.Error{
		Kind:       instance.KindExhausted,
		Reason:     instance.ReasonNotSentInTime,
		Message:    fmt.Sprintf("%s could not be sent before its deadline; nothing was changed by this call", verb),
		RetryAfter: time.Second,
		Cause:      err,
	}
}

// unknownOutcomes returns the instances of a call of which nobody knows what became.
func unknownOutcomes(ctx context.Context, cmd instance.Command, result instance.Result, err error) map[instance.ID]bool {
	var ids map[instance.ID]bool
	if err != nil && (ctx.Err() != nil || asError(err).OutcomeUnknown) {
		ids = make(map[instance.ID]bool, len(cmd.IDs))
		for _, id := range cmd.IDs {
			ids[id] = true
		}
		for _, change := range result.Changes {
			delete(ids, change.ID)
		}
	}
	for _, f := range result.Failures {
		if f.Err.OutcomeUnknown {
			if ids == nil {
				ids = make(map[instance.ID]bool)
			}
			ids[f.ID] = true
		}
	}
	return ids
}

// answer is what the backend answered to a command, ready to be recorded.
type answer struct {
	response *CommandResponse
	// on are the changes of the response as they are tracked.
	on []*commandOnInstance
	// refusal is the error that came beside changes.
	refusal error
	token   *journal.Token
}

// record writes what an answer changed, what was heard of the instances before, and the
// answer itself when there is a token.
func (s *Service) record(ctx context.Context, term *journal.Term, command *inflightCommand, a answer) (journal.Position, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime(ctx))
	defer cancel()
	heard := command.awaitTurn(ctx, a.response.Changes)
	if len(heard) == 0 && a.token == nil && !slices.ContainsFunc(a.on, s.outstanding) {
		return s.journal.Head(), nil
	}
	var weights []weight
	var response CommandResponse
	position, err := s.update(ctx, term, func(r *recording) error {
		weights = weights[:0]
		told := make([]instance.StateChange, len(a.on))
		for _, n := range heard {
			weights = append(weights, s.recordNotice(r, n))
		}
		for i, on := range a.on {
			s.recordUnrecorded(r, on.id, on.change.At, command)
			s.recordAnswer(r, *on.change, on.candidate())
			known, _ := r.Get(on.id)
			told[i] = on.told(known)
		}
		response = a.complete(told)
		s.recordToken(r.Tx, a, response)
		return nil
	})
	if err == nil {
		*a.response = response
	}
	for i, n := range heard {
		if err != nil {
			s.looker.requestFor(n)
		} else {
			s.recorded(n, weights[i])
		}
	}
	return position, err
}

// recordTime is how long recording may take on behalf of a caller: so long that it can still
// be told that it took too long.
func recordTime(ctx context.Context) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return min(recordTimeout, max(recordMargin, time.Until(deadline)-recordMargin))
	}
	return recordTimeout
}

// outstanding reports whether the journal does not say yet what a line of an answer says, or
// says more.
func (s *Service) outstanding(on *commandOnInstance) bool {
	change := on.change
	if change.Current != change.Previous || on.step.Load() != nil {
		return true
	}
	known, found := s.journal.Get(change.ID)
	if !found && change.After == nil {
		s.looker.request(change.ID)
		return false
	}
	return !found || known.Instance.State != change.Current
}

// recordAnswer records one line of an answer: first what leads to the state in which
// the call found the instance, if that was not known, then what the call changed.
func (s *Service) recordAnswer(r *recording, change instance.StateChange, by causeCandidate) {
	known, found := r.Get(change.ID)
	seen := sighting{occurredAt: change.At, source: instance.SourceAnswer}
	switch {
	case !found && change.After == nil:
		s.looker.request(change.ID)
		return
	case !found:
		seen.image = foundAs(change.After, change)
		reduce(r, seen)
		known, _ = r.Get(change.ID)
	case known.Position.Seq > by.command.before.Seq && overtook(known, change):
		return // the answer took so long that what it says was recorded before it
	case known.Instance.State != change.Previous:
		seen.image = foundAs(known.Instance, change)
		seen.candidates = s.tracker.possibleCauses(change.ID, known.ChangedAt, change.At)
		reduce(r, seen)
	}
	if change.Current != change.Previous {
		by.target = change.Current
		seen.image, seen.candidates = leftAs(known.Instance, change), []causeCandidate{by}
		reduce(r, seen)
	}
}

// overtook reports whether what is known came after a change, or is that change itself, as
// a notice told. EventBridge gives whole seconds: within one, only the state can tell.
func overtook(known journal.Record, change instance.StateChange) bool {
	if !change.At.After(known.ChangedAt) {
		return true
	}
	state := known.Instance.State
	return known.Source == instance.SourceEventBridge && !change.At.Truncate(time.Second).After(known.ChangedAt) &&
		(state == change.Current || state != change.Previous && instance.Completes(change.Current, state))
}

// complete returns what the caller is told: told of the instances that the backend answered
// for, and what was recalled of those that an earlier attempt reached.
func (a answer) complete(told []instance.StateChange) CommandResponse {
	response := *a.response
	response.Changes = told
	if a.token == nil || a.token.Answer == nil {
		return response
	}
	recalled := a.token.Answer
	response.Cursor = recalled.Cursor
	place := make(map[instance.ID]int, len(a.token.IDs))
	for i, id := range a.token.IDs {
		place[id] = i
	}
	response.Changes = slices.Concat(recalled.Changes, told)
	slices.SortFunc(response.Changes, func(x, y instance.StateChange) int { return place[x.ID] - place[y.ID] })
	response.Failures = slices.Concat(recalled.Failures, response.Failures)
	slices.SortFunc(response.Failures, func(x, y instance.Failure) int { return place[x.ID] - place[y.ID] })
	return response
}

// recordToken keeps what the caller is told under its token. A refusal is not kept, and
// frees the token, unless an earlier attempt under it has reached some of the instances or
// this one may have reached others: a retry is then decided by instance.
func (s *Service) recordToken(tx *journal.Tx, a answer, response CommandResponse) {
	switch {
	case a.token == nil:
	case a.refusal == nil:
		token := *a.token
		token.Answer = &journal.Answer{
			Changes:   response.Changes,
			Failures:  response.Failures,
			Cursor:    response.Cursor,
			EndCursor: s.journal.Cursor(tx.Position()),
		}
		tx.PutToken(token)
	case a.token.Answer == nil && !asError(a.refusal).OutcomeUnknown:
		tx.DeleteToken(a.token.Key)
	}
}

// notRecorded says that a change happened and could not be recorded.
func notRecorded(cmd instance.Command, cause error) error {
	return &instance.Error{
		Kind:   instance.KindUnavailable,
		Reason: instance.ReasonNotRecorded,
		Message: fmt.Sprintf("%s was carried out, but could not be recorded in time; it will be recorded as soon as the journal can be written. "+
			"Use DescribeInstances with the owner before trying again", cmd.Verb),
		OutcomeUnknown: true,
		Cause:          cause,
	}
}

// withChanges adds to an error what was changed in spite of it, beside what it names already.
func withChanges(err error, changes []instance.StateChange) error {
	e := *asError(err)
	var ids []string
	for _, c := range changes {
		if c.Current != c.Previous {
			ids = append(ids, string(c.ID))
		}
	}
	if len(ids) == 0 {
		return &e
	}
	const key = "changed_instance_ids"
	if named := e.Metadata[key]; named != "" {
		ids = append(ids, named)
	}
	metadata := maps.Clone(e.Metadata)
	if metadata == nil {
		metadata = make(map[string]string)
	}
	metadata[key] = strings.Join(ids, ",")
	e.Metadata = metadata
	return &e
}

// learn makes sure that the journal knows those of the instances that exist: what it
// does not know is looked up once at the backend. Only the owner can do so.
func (s *Service) learn(ctx context.Context, principal string, ids []instance.ID) error {
	var unknown []instance.ID
	for _, id := range ids {
		if _, found := s.journal.Get(id); !found {
			unknown = append(unknown, id)
		}
	}
	if len(unknown) == 0 || s.term.Load() == nil {
		return nil
	}
	return s.looker.lookUp(ctx, principal, unknown)
}

// NotFound is the error of EC2 for instances that do not exist; nil for none.
func NotFound(ids []instance.ID) error {
	if len(ids) == 0 {
		return nil
	}
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = string(id)
	}
	text := fmt.Sprintf("The instance ID '%s' does not exist", names[0])
	if len(ids) > 1 {
		text = fmt.Sprintf("The instance IDs '%s' do not exist", strings.Join(names, ", "))
	}
	return &instance.Error{Kind: instance.KindNotFound, Code: instance.CodeNotFound, Message: text, InstanceIDs: slices.Clone(ids)}
}
