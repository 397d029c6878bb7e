package lifecycle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
	"github.com/instanced/instanced/internal/observer"
	"github.com/instanced/instanced/internal/tracing"
)

// tokenTimeout bounds a command with a client token. It does not end with the call that
// started it, since others may have joined.
const tokenTimeout = 60 * time.Second

// idempotency holds the commands with client tokens that are in flight. mu is a leaf lock.
type idempotency struct {
	mu       sync.Mutex
	inFlight map[string]*tokenCall
	// ctx is that of the term, nil if there is none; running are its commands.
	ctx     context.Context //nolint:containedctx // it is the lifetime of what runs here
	running sync.WaitGroup
}

// tokenCall is one command in flight. Its response may be read once done is closed.
type tokenCall struct {
	fingerprint []byte
	// span is that of the caller who started it.
	span     trace.Span
	done     chan struct{}
	response CommandResponse
	err      error
}

// open lets commands start, until close; they end with ctx.
func (c *idempotency) open(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ctx = ctx
}

// close lets no more commands start, and returns when those that run have ended.
func (c *idempotency) close() {
	c.mu.Lock()
	c.ctx = nil
	c.mu.Unlock()
	c.running.Wait()
}

// do returns the command in flight under a token, or starts one in the trace of the caller.
func (c *idempotency) do(caller context.Context, token journal.Token, run func(context.Context) (CommandResponse, error)) (_ *tokenCall, joined bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if call := c.inFlight[token.Key]; call != nil {
		trace.SpanFromContext(caller).AddLink(tracing.Link(call.span))
		return call, true, nil
	}
	if c.ctx == nil {
		return nil, false, observer.ErrTermEnded()
	}
	call := &tokenCall{fingerprint: token.Fingerprint, span: trace.SpanFromContext(caller), done: make(chan struct{})}
	c.inFlight[token.Key] = call
	ctx, cancel := context.WithTimeout(c.ctx, tokenTimeout)
	if call.span.IsRecording() {
		ctx = trace.ContextWithSpan(ctx, call.span)
	}
	c.running.Go(func() {
		defer cancel()
		defer func() {
			if p := recover(); p != nil {
				call.err = &instance.Error{
					Kind:    instance.KindInternal,
					Message: "a command with a client token failed",
					Cause:   fmt.Errorf("panic: %v\n%s", p, debug.Stack()),
				}
			}
			c.mu.Lock()
			delete(c.inFlight, token.Key)
			c.mu.Unlock()
			close(call.done)
		}()
		call.response, call.err = run(ctx)
		if call.err != nil && ctx.Err() != nil && !instance.OutcomeKnown(call.err) {
			call.err = errInterrupted(call.err) // the deadline is not that of a caller
		}
	})
	return call, false, nil
}

// executeIdempotent carries out a command with a client token once, however often it is
// requested.
func (s *Service) executeIdempotent(ctx context.Context, term *journal.Term, cmd instance.Command, cause instance.Cause) (CommandResponse, error) {
	token := journal.Token{
		Key:         tokenKey(cause),
		Principal:   cause.Principal,
		Fingerprint: fingerprint(cmd),
		IDs:         cmd.IDs,
	}
	call, joined, err := s.idempotency.do(ctx, token, func(ctx context.Context) (CommandResponse, error) {
		return s.executeToken(ctx, term, cmd, cause, token)
	})
	if err != nil {
		return CommandResponse{}, err
	}
	if !bytes.Equal(call.fingerprint, token.Fingerprint) {
		s.metrics.tokens[tokenReused].Inc()
		return CommandResponse{}, errTokenReused(cause)
	}
	if joined {
		s.metrics.tokens[tokenJoined].Inc()
	}
	select {
	case <-call.done:
		return call.response, call.err
	case <-ctx.Done():
		return CommandResponse{}, ctx.Err()
	}
}

// executeToken returns the recorded answer to a command with a client token, if there is one.
// Otherwise it records the intent, carries the command out, and keeps the answer. If only the
// intent of an earlier attempt is recorded, it carries the command out on the instances that
// this attempt did not reach.
func (s *Service) executeToken(ctx context.Context, term *journal.Term, cmd instance.Command, cause instance.Cause, token journal.Token) (CommandResponse, error) {
	recorded, found, err := term.Token(ctx, token.Key)
	if err != nil {
		return CommandResponse{}, err
	}
	switch {
	case found && !bytes.Equal(recorded.Fingerprint, token.Fingerprint):
		s.metrics.tokens[tokenReused].Inc()
		return CommandResponse{}, errTokenReused(cause)
	case found && recorded.Answer != nil:
		s.metrics.tokens[tokenRecorded].Inc()
		return responseFrom(recorded.Answer), nil
	case found && cmd.Verb == instance.VerbReboot:
		s.metrics.tokens[tokenRefused].Inc()
		return CommandResponse{}, errRebootUnknown(cause)
	case found:
		token = recorded
		remaining, err := s.retryRemaining(ctx, cmd, cause, &token)
		if err != nil {
			s.metrics.tokens[tokenRefused].Inc()
		} else {
			s.metrics.tokens[tokenResumed].Inc()
		}
		if e, ok := errors.AsType[*instance.Error](err); ok {
			return CommandResponse{}, e.UnknownOutcome() // of the attempt that recorded the intent
		}
		if err != nil {
			return CommandResponse{}, err
		}
		if len(remaining) == 0 {
			return s.recordCompleted(ctx, term, token)
		}
		cmd.IDs = remaining
	default:
		if err := s.recordIntent(ctx, term, &token); err != nil {
			s.metrics.tokens[tokenRefused].Inc()
			return CommandResponse{}, err
		}
		s.metrics.tokens[tokenNew].Inc()
	}
	response, err := s.execute(ctx, term, cmd, cause, &token)
	e, ok := errors.AsType[*instance.Error](err)
	switch {
	case !ok:
	case token.Answer != nil:
		// The intent stays: a retry must not repeat what was carried out before.
		err = withChanges(e.UnknownOutcome(), token.Answer.Changes)
	case ctx.Err() == nil && !e.OutcomeUnknown:
		if deleteErr := updateToken(ctx, term, func(tx *journal.Tx) { tx.DeleteToken(token.Key) }); deleteErr != nil {
			s.log.Warn("the client token of a rejected command could not be deleted", "error", deleteErr)
		}
	}
	return response, err
}

// recordToken records the answer to a command under its token. That of a rejected command is
// deleted, unless an earlier attempt under it has reached some of the instances, or this one
// may have reached others: a retry is then decided by instance.
func (s *Service) recordToken(tx *journal.Tx, token journal.Token, result observer.Result, err error) {
	if err != nil {
		if token.Answer == nil && !instance.AsError(err).OutcomeUnknown {
			tx.DeleteToken(token.Key)
		}
		return
	}
	response := s.responseOf(result, &token)
	token.Answer = &journal.Answer{
		Changes:   response.Changes,
		Failures:  response.Failures,
		Cursor:    response.Cursor,
		EndCursor: s.journal.Cursor(tx.Position()),
	}
	tx.PutToken(token)
}

// responseFrom returns a recorded answer as a response.
func responseFrom(a *journal.Answer) CommandResponse {
	return CommandResponse{Changes: a.Changes, Failures: a.Failures, Cursor: a.Cursor, EndCursor: a.EndCursor}
}

func updateToken(ctx context.Context, term *journal.Term, write func(*journal.Tx)) error {
	_, err := term.Update(ctx, func(tx *journal.Tx) error { write(tx); return nil })
	return err
}

// recordIntent records that a command with this token is about to be carried out.
func (s *Service) recordIntent(ctx context.Context, term *journal.Term, token *journal.Token) error {
	if err := term.Writable(); err != nil {
		return err
	}
	token.CreatedAt = time.Now().UTC()
	token.Intent = s.journal.Head()
	err := updateToken(ctx, term, func(tx *journal.Tx) { tx.PutToken(*token) })
	if e := instance.AsError(err); err != nil && e.OutcomeUnknown {
		// Whether the intent is recorded makes no difference to the caller.
		known := *e
		known.OutcomeUnknown = false
		known.Message = "the client token could not be recorded in time; nothing was changed"
		return &known
	}
	return err
}

func errInterrupted(cause error) error {
	return &instance.Error{
		Kind:           instance.KindUnavailable,
		Reason:         "INTERRUPTED",
		Message:        "the command was interrupted; whether it was carried out is unknown. Try again with the same client token",
		RetryAfter:     time.Second,
		OutcomeUnknown: true,
		Cause:          cause,
	}
}

// errRebootUnknown refuses to repeat a reboot of which only the intent is recorded: whether it
// took place cannot be seen, and a repetition would be a second reboot.
func errRebootUnknown(cause instance.Cause) error {
	return &instance.Error{
		Kind:   instance.KindPrecondition,
		Reason: instance.ReasonRebootOutcomeUnknown,
		Message: fmt.Sprintf("whether the reboot with the client token %q was carried out is unknown, and it is not repeated; "+
			"to reboot the instances anyway, use a new token", cause.ClientToken),
		OutcomeUnknown: true,
	}
}

func errTokenReused(cause instance.Cause) error {
	return &instance.Error{
		Kind:   instance.KindConflict,
		Reason: instance.ReasonClientTokenReused,
		Message: fmt.Sprintf("the client token %q was used by %s for another %s request within 24 hours: use a new token for a new request",
			cause.ClientToken, cause.Principal, cause.Verb),
	}
}

// tokenKey identifies a token within its scope, principal and verb.
func tokenKey(cause instance.Cause) string {
	return digest(cause.Principal, string(cause.Verb), cause.ClientToken)
}

// fingerprint is equal for equal requests. It is kept in the journal, so a new option is added
// at the end, and only if it is set.
func fingerprint(cmd instance.Command) []byte {
	h := sha256.New()
	fmt.Fprintf(h, "1 %s %q per_instance=%t additional_info=%q hibernate=%t force=%t skip_os_shutdown=%t",
		cmd.Verb, cmd.IDs, cmd.PerInstance, cmd.AdditionalInfo, cmd.Hibernate, cmd.Force, cmd.SkipOSShutdown)
	return h.Sum(nil)
}

// digest identifies a list of texts.
func digest(texts ...string) string {
	h := sha256.New()
	for _, t := range texts {
		fmt.Fprintf(h, "%d:%s", len(t), t)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}
