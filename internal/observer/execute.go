package observer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
	"github.com/instanced/instanced/internal/tracing"
)

const (
	// recordTimeout bounds how long a caller waits until the response to its command is
	// recorded. It is recorded even if the caller leaves.
	recordTimeout = 30 * time.Second
	// recordMargin is what is left of the caller's deadline to report that the response
	// could not be recorded in time.
	recordMargin = 200 * time.Millisecond
)

// Result is what a command did.
type Result struct {
	// Changes are those that the caller is told, in the order of the command's ids: whoever
	// the journal names as the cause of a change is told of it, and no other caller.
	Changes []instance.StateChange
	// Failures are the backend's, of a per-instance command.
	Failures []instance.Failure
	// Before is the end of the log when the command began, and End the position behind what
	// was recorded of it.
	Before, End journal.Position
}

// Execute calls the backend and returns once what the command changed is recorded, with its
// cause. Changes beside an error took place although the command was rejected; they are
// recorded too.
//
// alsoRecord, if not nil, is called in the update that records the changes, with the result
// so far and the backend's error, to record more in the same batch. Like every function of an
// update it may run more than once. It is not called for an error without changes.
//
// An error with OutcomeUnknown leaves open what the command changed; the observer goes on
// looking for that, and records it.
func (o *Observer) Execute(ctx context.Context, term *journal.Term, cmd instance.Command, cause instance.Cause, alsoRecord func(*journal.Tx, Result, error)) (Result, error) {
	began, measured := time.Now(), o.metrics.verb(cmd.Verb)
	measured.inFlight.Inc()
	defer measured.inFlight.Dec()
	ctx, span := spans.Start(ctx, "command")
	if span.IsRecording() {
		span.SetAttributes(commandAttributes(cmd, cause)...)
	}
	result, err := o.execute(ctx, term, cmd, cause, alsoRecord)
	tracing.End(span, err)
	o.metrics.commandEnded(span, cmd.Verb, time.Since(began), result, err)
	return result, err
}

func (o *Observer) execute(ctx context.Context, term *journal.Term, cmd instance.Command, cause instance.Cause, alsoRecord func(*journal.Tx, Result, error)) (Result, error) {
	if err := term.Writable(); err != nil {
		return Result{}, err
	}
	before := o.journal.Head()
	if err := cmp.Or(o.EnsureKnown(ctx, cmd.Principal, cmd.IDs), ctx.Err()); err != nil {
		if ctx.Err() != nil {
			err = notSent(ctx, cmd.Verb, err)
		}
		return Result{}, err
	}
	result, rejected, err := o.callAndRecord(ctx, term, cmd, cause, before, alsoRecord)
	o.refreshRejected(ctx, o.unexplained(cmd.Verb, rejected, before))
	return result, err
}

// EnsureKnown makes sure that the journal knows the instances that exist: ids that it does not
// know are looked up once at the backend, if this process is the owner.
// Principals take turns.
func (o *Observer) EnsureKnown(ctx context.Context, principal string, ids []instance.ID) error {
	var unknown []instance.ID
	for _, id := range ids {
		if _, found := o.journal.Get(id); !found {
			unknown = append(unknown, id)
		}
	}
	if len(unknown) == 0 || o.term.Load() == nil {
		return nil
	}
	ctx, span := spans.Start(ctx, "look up")
	err := o.refresher.lookUp(ctx, principal, unknown)
	tracing.End(span, err)
	return err
}

// callAndRecord calls the backend and records its response. It also returns the instances
// whose rejection the journal could not account for.
func (o *Observer) callAndRecord(ctx context.Context, term *journal.Term, cmd instance.Command, cause instance.Cause, before journal.Position, alsoRecord func(*journal.Tx, Result, error)) (result Result, rejected []instance.ID, err error) {
	command := o.tracker.track(cmd.IDs, cause, before)
	command.origin = originOf(ctx)
	defer command.finish()
	cmd.Sent, cmd.Requeued = command.markSent, command.markRequeued
	response, err := command.withRecordedSteps(o.callBackend(ctx, cmd, command))
	o.refresher.request(command.markUnknown(unknownOutcomes(ctx, cmd, response, err))...)
	answers := command.markAnswered(response.Changes)
	defer func() {
		rejected = o.unexplained(cmd.Verb, rejectedIDs(response.Failures, err), before)
		o.recordBeforeRejection(ctx, term, command, rejected)
	}()
	if err != nil && len(response.Changes) == 0 {
		return Result{}, nil, err
	}
	result = Result{Changes: response.Changes, Failures: response.Failures, Before: before}
	var also func(*journal.Tx, Result)
	if alsoRecord != nil {
		also = func(tx *journal.Tx, r Result) { alsoRecord(tx, r, err) }
	}
	if recordErr := o.recordAnswers(ctx, term, command, answers, &result, also); recordErr != nil {
		o.refresher.request(command.markUnrecorded()...)
		return Result{}, nil, notRecorded(cmd, recordErr)
	}
	return result, nil, err
}

// callBackend calls the backend. If not all of the command is sent, the call ends [recordMargin]
// before the caller's deadline, or a quarter of a short deadline before it, in time to report what
// was not done; and so it does when something is queued again after that.
func (o *Observer) callBackend(ctx context.Context, cmd instance.Command, command *inflightCommand) (instance.Result, error) {
	queueing := ctx
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		queueing, cancel = context.WithCancel(ctx)
		defer cancel()
		left := time.Until(deadline)
		timer := time.AfterFunc(left-min(recordMargin, left/4), func() { command.stopQueueing(cancel) })
		defer timer.Stop()
	}
	result, err := o.backend.Execute(queueing, cmd)
	if queueing.Err() == nil {
		o.noteBackend(err)
	}
	if err == nil || !errors.Is(err, queueing.Err()) {
		return result, err
	}
	unsent := command.unsent()
	switch {
	case len(unsent) == len(cmd.IDs) && len(result.Changes)+len(result.Failures) == 0:
		return result, notSent(ctx, cmd.Verb, err)
	case ctx.Err() != nil:
		return result, err
	case !cmd.PerInstance:
		return result, sentTooLate(cmd.Verb, err)
	}
	return withoutAnswers(cmd, result, unsent, err), nil
}

// withoutAnswers adds to the result of a per-instance command whose time is over failures for the
// instances without an outcome: those that were not sent, and those that were and may be changed.
func withoutAnswers(cmd instance.Command, result instance.Result, unsent map[instance.ID]bool, cause error) instance.Result {
	failures := make(map[instance.ID]*instance.Error, len(cmd.IDs))
	for _, id := range cmd.IDs {
		if failures[id] = sentTooLate(cmd.Verb, cause); unsent[id] {
			failures[id] = errNotSent(cmd.Verb, cause)
		}
	}
	for _, f := range result.Failures {
		failures[f.ID] = f.Err
	}
	for _, change := range result.Changes {
		delete(failures, change.ID)
	}
	result.Failures = nil
	for _, id := range cmd.IDs {
		if err := failures[id]; err != nil {
			result.Failures = append(result.Failures, instance.Failure{ID: id, Err: err})
		}
	}
	return result
}

// sentTooLate returns the error of a command that was sent before the backend saw that its time
// in the queue was over.
func sentTooLate(verb instance.Verb, cause error) *instance.Error {
	return &instance.Error{
		Kind:           instance.KindUnavailable,
		Reason:         instance.ReasonAnswerLost,
		Message:        fmt.Sprintf("%s was sent too late to be answered before its deadline; whether it was carried out is unknown", verb),
		OutcomeUnknown: true,
		Cause:          cause,
	}
}

// notSent returns the error of a command whose context ended before a request was sent, and
// whose outcome would otherwise be reported as unknown.
func notSent(ctx context.Context, verb instance.Verb, err error) error {
	if instance.OutcomeKnown(err) || errors.Is(ctx.Err(), context.Canceled) {
		return err
	}
	return errNotSent(verb, err)
}

func errNotSent(verb instance.Verb, cause error) *instance.Error {
	return &instance.Error{
		Kind:       instance.KindExhausted,
		Reason:     instance.ReasonNotSentInTime,
		Message:    fmt.Sprintf("%s could not be sent before its deadline; nothing was changed by it", verb),
		RetryAfter: time.Second,
		Cause:      cause,
	}
}

// unknownOutcomes returns the instances of a command whose outcome is unknown.
func unknownOutcomes(ctx context.Context, cmd instance.Command, response instance.Result, err error) map[instance.ID]bool {
	var ids map[instance.ID]bool
	if err != nil && (ctx.Err() != nil || instance.AsError(err).OutcomeUnknown) {
		ids = make(map[instance.ID]bool, len(cmd.IDs))
		for _, id := range cmd.IDs {
			ids[id] = true
		}
		for _, change := range response.Changes {
			delete(ids, change.ID)
		}
		for _, f := range response.Failures {
			delete(ids, f.ID)
		}
	}
	for _, f := range response.Failures {
		if f.Err.OutcomeUnknown {
			if ids == nil {
				ids = make(map[instance.ID]bool)
			}
			ids[f.ID] = true
		}
	}
	return ids
}

// recordAnswers records the answers to a command, the notices that were held back and came
// before them, and what else is to be recorded. It completes the result.
func (o *Observer) recordAnswers(ctx context.Context, term *journal.Term, command *inflightCommand, answers []*commandOnInstance, result *Result, also func(*journal.Tx, Result)) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime(ctx))
	defer cancel()
	notices := command.awaitTurn(ctx, result.Changes)
	if len(notices) == 0 && also == nil && !slices.ContainsFunc(answers, o.isNews) {
		result.End = o.journal.Head()
		return nil
	}
	var classes []noticeClass
	recorded := *result
	end, err := o.update(ctx, term, func(u *updateTx) error {
		classes = u.applyNotices(classes[:0], notices)
		recorded.Changes = make([]instance.StateChange, len(answers))
		for i, on := range answers {
			u.apply(observation{id: on.id, at: on.change.At, answer: on})
			recorded.Changes[i] = on.reportedChange()
		}
		if also != nil {
			also(u.Tx, recorded)
		}
		return nil
	})
	if err != nil { // classes and recorded may still be written to
		o.refreshThenAck(notices)
		return err
	}
	o.ackOrRefresh(notices, classes)
	recorded.End = end
	*result = recorded
	return nil
}

// recordTime is how long recording may take on behalf of a caller, so that it can still be
// told before its deadline that it took too long.
func recordTime(ctx context.Context) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return min(recordTimeout, max(recordMargin, time.Until(deadline)-recordMargin))
	}
	return recordTimeout
}

// isNews reports whether an answer says something that the journal does not.
func (o *Observer) isNews(on *commandOnInstance) bool {
	if on.changed() || on.step.Load() != nil {
		return true
	}
	known, found := o.journal.Get(on.id)
	if !found && on.change.After == nil {
		o.refresher.request(on.id)
		return false
	}
	return !found || known.Instance.State != on.change.Current
}

// notRecorded says that a command was carried out and could not be recorded.
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
