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

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// tokenTimeout bounds a command with a client token. It does not end with the call
// that began it, since others may have joined.
const tokenTimeout = 60 * time.Second

// tokenCalls holds the commands with client tokens that are in flight.
type tokenCalls struct {
	mu       sync.Mutex
	inFlight map[string]*tokenCall
	// ctx is that of the term, nil when there is none; running are its commands.
	ctx     context.Context //nolint:containedctx // it is the lifetime of what runs here
	running sync.WaitGroup
}

// tokenCall is one of them. Its answer may be read once done is closed.
type tokenCall struct {
	fingerprint []byte
	done        chan struct{}
	response    CommandResponse
	err         error
}

// open lets commands begin, until close; they end with ctx.
func (c *tokenCalls) open(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ctx = ctx
}

// close lets no more commands begin, and returns when those that run have ended.
func (c *tokenCalls) close() {
	c.mu.Lock()
	c.ctx = nil
	c.mu.Unlock()
	c.running.Wait()
}

// join returns the call in flight with a key, or begins one.
func (c *tokenCalls) join(token journal.Token, run func(context.Context) (CommandResponse, error)) (call *tokenCall, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if call := c.inFlight[token.Key]; call != nil {
		return call, nil
	}
	if c.ctx == nil {
		return nil, errEnding()
	}
	call = &tokenCall{fingerprint: token.Fingerprint, done: make(chan struct{})}
	c.inFlight[token.Key] = call
	ctx, cancel := context.WithTimeout(c.ctx, tokenTimeout)
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
		if call.err != nil && ctx.Err() != nil && !isCertain(call.err) {
			// It is not the deadline of anybody who waits.
			call.err = &instance.Error{
				Kind:           instance.KindUnavailable,
				Reason:         "INTERRUPTED",
				Message:        "the command was interrupted; whether it was carried out is unknown. Try again with the same client token",
				RetryAfter:     time.Second,
				OutcomeUnknown: true,
				Cause:          call.err,
			}
		}
	})
	return call, nil
}

// onceByToken carries out a command with a client token: once, however often it is
// asked for.
func (s *Service) onceByToken(ctx context.Context, term *journal.Term, cmd instance.Command, cause instance.Cause) (CommandResponse, error) {
	token := journal.Token{
		Key:         tokenKey(cause),
		Principal:   cause.Principal,
		Fingerprint: fingerprint(cmd),
		IDs:         cmd.IDs,
	}
	call, err := s.tokens.join(token, func(ctx context.Context) (CommandResponse, error) {
		return s.executeWithToken(ctx, term, cmd, cause, token)
	})
	if err != nil {
		return CommandResponse{}, err
	}
	if !bytes.Equal(call.fingerprint, token.Fingerprint) {
		return CommandResponse{}, tokenConflict(cause)
	}
	select {
	case <-call.done:
		return call.response, call.err
	case <-ctx.Done():
		return CommandResponse{}, ctx.Err()
	}
}

// executeWithToken answers from the journal if it has an answer, and else writes the intent,
// carries the command out, and keeps the answer. If there is only the intent of an earlier
// attempt, it carries the command out on the instances that this attempt did not reach.
func (s *Service) executeWithToken(ctx context.Context, term *journal.Term, cmd instance.Command, cause instance.Cause, token journal.Token) (CommandResponse, error) {
	kept, found, err := term.Token(ctx, token.Key)
	if err != nil {
		return CommandResponse{}, err
	}
	switch {
	case found && !bytes.Equal(kept.Fingerprint, token.Fingerprint):
		return CommandResponse{}, tokenConflict(cause)
	case found && kept.Answer != nil:
		return CommandResponse{
			Changes:   kept.Answer.Changes,
			Failures:  kept.Answer.Failures,
			Cursor:    kept.Answer.Cursor,
			EndCursor: kept.Answer.EndCursor,
		}, nil
	case found && cmd.Verb == instance.VerbReboot:
		return CommandResponse{}, rebootUnknown(cause)
	case found:
		token = kept
		rest, err := s.recallOutcomes(ctx, cmd, cause, &token)
		if e, ok := errors.AsType[*instance.Error](err); ok {
			return CommandResponse{}, e.UnknownOutcome() // of the attempt that wrote the intent
		}
		if err != nil {
			return CommandResponse{}, err
		}
		if len(rest) == 0 {
			return s.keepRecalled(ctx, term, token)
		}
		cmd.IDs = rest
	default:
		if err := s.writeIntent(ctx, term, &token); err != nil {
			return CommandResponse{}, err
		}
	}
	response, err := s.execute(ctx, term, cmd, cause, &token)
	e, ok := errors.AsType[*instance.Error](err)
	switch {
	case !ok:
	case token.Answer != nil:
		// The intent stays: a retry must not repeat what was carried out before.
		err = withChanges(e.UnknownOutcome(), token.Answer.Changes)
	case ctx.Err() == nil && !e.OutcomeUnknown:
		_, deleteErr := term.Update(ctx, func(tx *journal.Tx) error { tx.DeleteToken(token.Key); return nil })
		if deleteErr != nil {
			s.log.Warn("a client token of a refused command could not be deleted", "error", deleteErr)
		}
	}
	return response, err
}

// writeIntent records that a command with this token is about to be carried out.
func (s *Service) writeIntent(ctx context.Context, term *journal.Term, token *journal.Token) error {
	if err := term.Writable(); err != nil {
		return err
	}
	token.CreatedAt = time.Now().UTC()
	token.Intent = s.journal.Head()
	_, err := term.Update(ctx, func(tx *journal.Tx) error { tx.PutToken(*token); return nil })
	if e := asError(err); err != nil && e.OutcomeUnknown {
		// Whether the intent is there makes no difference to the caller.
		certain := *e
		certain.OutcomeUnknown = false
		certain.Message = "the client token could not be recorded in time; nothing was changed"
		return &certain
	}
	return err
}

// isCertain reports whether an error says of itself what became of the command.
func isCertain(err error) bool {
	e, ok := errors.AsType[*instance.Error](err)
	return ok && !e.OutcomeUnknown
}

// rebootUnknown refuses to repeat a reboot of which only the intent is known: whether it took
// place cannot be seen, and a second one would be another one.
func rebootUnknown(cause instance.Cause) error {
	return &instance.Error{
		Kind:   instance.KindPrecondition,
		Reason: instance.ReasonRebootOutcomeUnknown,
		Message: fmt.Sprintf("whether the reboot with the client token %q was carried out is unknown, and it is not repeated; "+
			"to reboot the instances all the same, use a new token", cause.ClientToken),
		OutcomeUnknown: true,
	}
}

func tokenConflict(cause instance.Cause) error {
	return &instance.Error{
		Kind:   instance.KindConflict,
		Reason: instance.ReasonClientTokenReused,
		Message: fmt.Sprintf("the client token %q was used by %s for another %s request within 24 hours: use a new token for a new request",
			cause.ClientToken, cause.Principal, cause.Verb),
	}
}

// tokenKey names a token within its scope: principal and verb.
func tokenKey(cause instance.Cause) string {
	return digest(cause.Principal, string(cause.Verb), cause.ClientToken)
}

// fingerprint tells whether two requests are the same. It is kept in the journal: a new
// option is added at the end, and only where it is set.
func fingerprint(cmd instance.Command) []byte {
	h := sha256.New()
	fmt.Fprintf(h, "1 %s %q per_instance=%t additional_info=%q hibernate=%t force=%t skip_os_shutdown=%t",
		cmd.Verb, cmd.IDs, cmd.PerInstance, cmd.AdditionalInfo, cmd.Hibernate, cmd.Force, cmd.SkipOSShutdown)
	return h.Sum(nil)
}

// digest is a short name for a list of texts.
func digest(texts ...string) string {
	h := sha256.New()
	for _, t := range texts {
		fmt.Fprintf(h, "%d:%s", len(t), t)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}
