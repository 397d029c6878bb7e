package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/instanced/instanced/internal/instance"
)

// The reasons of the journal's errors, which are all of type [instance.Error].
const (
	// ReasonNotOwner: this process may not write; another one may. KindUnavailable.
	ReasonNotOwner = instance.ReasonNotOwner
	// ReasonUnavailable: the journal is closed or etcd does not answer. KindUnavailable.
	ReasonUnavailable = "JOURNAL_UNAVAILABLE"
	// ReasonFull: there is no room to write. KindExhausted.
	ReasonFull = "JOURNAL_FULL"
	// ReasonTooManyTokens: the client tokens of a principal take up its share. KindExhausted.
	ReasonTooManyTokens = "TOO_MANY_CLIENT_TOKENS"
	// ReasonCursorUnreadable: not a cursor, or not whole. KindInvalid.
	ReasonCursorUnreadable = "CURSOR_UNREADABLE"
	// ReasonCursorOfOtherLog: a cursor of another log. KindOutOfRange, as the rest.
	ReasonCursorOfOtherLog = "CURSOR_OF_OTHER_LOG"
	// ReasonCursorRolledBack: what the cursor points to is no longer part of the
	// log, which was restored from an older copy.
	ReasonCursorRolledBack = "CURSOR_ROLLED_BACK"
	// ReasonCursorAhead: the log does not reach as far as the cursor.
	ReasonCursorAhead = "CURSOR_AHEAD"
	// ReasonCursorExpired: what follows the cursor is no longer kept, or is damaged.
	// Metadata has the oldest cursor that can be resumed, under MetadataOldestCursor.
	ReasonCursorExpired = "CURSOR_EXPIRED"
)

// MetadataOldestCursor is where an error of [ReasonCursorExpired] has the oldest
// cursor that can be resumed.
const MetadataOldestCursor = "oldest_cursor"

func errNotOwner(cause error) *instance.Error {
	return &instance.Error{
		Kind:    instance.KindUnavailable,
		Reason:  ReasonNotOwner,
		Message: "this process no longer owns the journal",
		Cause:   cause,
	}
}

func errUnavailable(message string, cause error) *instance.Error {
	return &instance.Error{
		Kind:    instance.KindUnavailable,
		Reason:  ReasonUnavailable,
		Message: message,
		Cause:   cause,
	}
}

func errClosed() *instance.Error { return errUnavailable("the journal is closed", nil) }

func errFull(message string) *instance.Error {
	return &instance.Error{Kind: instance.KindExhausted, Reason: ReasonFull, Message: message}
}

func errTooManyTokens(principal string) *instance.Error {
	return &instance.Error{
		Kind:   instance.KindExhausted,
		Reason: ReasonTooManyTokens,
		Message: fmt.Sprintf("%q has as many client tokens in use as it leaves free to others; each is free again when it expires. "+
			"Nothing was changed; a call without a client token can be carried out", principal),
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
	behind, _ := j.view.listGenerations().at(seq)
	err := errOutOfRange(ReasonCursorExpired, fmt.Sprintf("what follows the cursor is damaged: batch %d of the log cannot be read", seq))
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
