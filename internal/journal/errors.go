package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// MetadataOldestCursor is where an error of [instance.ReasonCursorExpired] has the oldest
// cursor that can be resumed.
const MetadataOldestCursor = "oldest_cursor"

func errNotOwner(cause error) *instance.Error {
	return &instance.Error{
		Kind:    instance.KindUnavailable,
		Reason:  instance.ReasonNotOwner,
		Message: "this process no longer owns the journal",
		Cause:   cause,
	}
}

func errUnavailable(message string, cause error) *instance.Error {
	return &instance.Error{
		Kind:    instance.KindUnavailable,
		Reason:  instance.ReasonJournalUnavailable,
		Message: message,
		Cause:   cause,
	}
}

func errClosed() *instance.Error { return errUnavailable("the journal is closed", nil) }

func errFull(message string) *instance.Error {
	return &instance.Error{Kind: instance.KindExhausted, Reason: instance.ReasonJournalFull, Message: message}
}

// errTooManyTokens refuses a new token: it says which limit is reached, who holds how much of
// it, and when the oldest token expires.
func errTooManyTokens(principal string, s tokenStanding, more, limits tokenUse, lifetime time.Duration) *instance.Error {
	limit := fmt.Sprintf("of the %d that --max-client-tokens allows, %q holds %d and all callers together hold %d", limits.count, principal, s.own.count, s.total.count)
	if s.own.count+s.total.count+2*more.count <= limits.count+1 {
		limit = fmt.Sprintf("of the %d bytes that the journal keeps for them, %q holds %d and all callers together hold %d", limits.bytes, principal, s.own.bytes, s.total.bytes)
	}
	frees := fmt.Sprintf("Each is free again %v after it was first used", lifetime)
	if !s.oldest.IsZero() {
		frees += ", the oldest at " + s.oldest.Add(lifetime).UTC().Format(time.RFC3339)
	}
	return &instance.Error{
		Kind:   instance.KindExhausted,
		Reason: instance.ReasonTooManyClientTokens,
		Message: fmt.Sprintf("too many client tokens: %s; a caller may hold as many as are left free. %s. "+
			"Nothing was changed; a call without a client token can be carried out", limit, frees),
	}
}

// errDamagedHistory is the error for whoever would read a batch of the log next that is
// damaged. There is no event behind it that may be shown without those in it, but it can be
// resumed from there, or with a snapshot.
func (j *Journal) errDamagedHistory(seq uint64, cause error) error {
	if !errors.Is(cause, ErrDamaged) {
		return cause
	}
	if _, told := j.damaged.LoadOrStore(seq, true); !told {
		j.log.Error("history is damaged; whoever reads it has to go on behind the damage, or with a snapshot",
			slog.Uint64("batch", seq), slog.Any("error", cause))
	}
	behind, _ := j.view.listEpochs().at(seq)
	err := errOutOfRange(instance.ReasonCursorExpired, fmt.Sprintf("what follows the cursor is damaged: batch %d of the log cannot be read", seq))
	err.Metadata = map[string]string{MetadataOldestCursor: j.Cursor(behind)}
	err.Cause = cause
	return err
}

// unknown says that what the error was the answer to may have happened.
func unknown(e *instance.Error) *instance.Error {
	e = e.UnknownOutcome()
	e.Message += "; the change may or may not have been recorded"
	return e
}

// unreachable is the error of a read from etcd. An error of the caller's context
// stays what it is.
func unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if e, ok := errors.AsType[*instance.Error](err); ok {
		return e
	}
	return errUnavailable("the journal cannot be read from etcd", err)
}
