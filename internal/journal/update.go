package journal

import (
	"context"
	"errors"
	"sync/atomic"

	"go.opentelemetry.io/otel/trace"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/tracing"
)

// update is a call of [Term.Update].
type update struct {
	fn    func(*Tx) error
	state atomic.Int32
	// done gets one value when position and err are set.
	done     chan struct{}
	position Position
	err      error
	// span is that of the call; nil if it is not recorded.
	span trace.Span
}

// The states of an update: whoever moves it on from queued, the writer or its
// caller, decides whether it is run.
const (
	queued int32 = iota
	taken
	abandoned
)

func newUpdate() any { return &update{done: make(chan struct{}, 1)} }

// Update runs fn, which reads from the Tx and writes to it, and returns when what
// it wrote is on disk and readers can see it. Updates run one after the other,
// and many are written as one batch.
//
// fn must be quick and must not wait: all writes of the process wait for it. It
// may be run more than once; only what the last run wrote counts. When it returns
// an error, nothing of it is recorded, and the error is returned as it is, though
// not before all that fn has seen is on disk.
//
// The position is that of the batch that holds the last of the changes or, when
// fn recorded none, of the last batch that it has seen. More than 1 MiB of changes
// are written as several batches, in order, the tokens with the last; readers, and
// those who come after a crash, may see the first of them without the others.
//
// When ctx ends the wait after fn may have been run, the error says that the
// outcome is unknown; the write goes on. Other errors of type [instance.Error]:
// [instance.ReasonNotOwner], [instance.ReasonJournalUnavailable], [instance.ReasonJournalFull], [instance.ReasonTooManyClientTokens].
func (t *Term) Update(ctx context.Context, fn func(*Tx) error) (Position, error) {
	ctx, span := spans.Start(ctx, "journal.update")
	position, err := t.update(ctx, fn)
	tracing.End(span, err)
	return position, err
}

func (t *Term) update(ctx context.Context, fn func(*Tx) error) (Position, error) {
	if err := ctx.Err(); err != nil {
		return Position{}, err
	}
	w := t.writer
	if stalled := w.stalled.Load(); stalled != nil {
		return Position{}, stalled
	}
	if full := t.journal.disk.checkFloor(); full != nil {
		return Position{}, full
	}
	u := w.updates.Get().(*update)
	u.fn, u.span = fn, tracing.Recorded(ctx)
	u.state.Store(queued)
	if err := w.submit(u); err != nil {
		return Position{}, err
	}
	select {
	case <-u.done:
	case <-ctx.Done():
		select {
		case <-u.done:
		default:
			if u.state.CompareAndSwap(queued, abandoned) {
				return Position{}, ctx.Err()
			}
			return Position{}, unknown(errUnavailable("the journal did not confirm the write in time", ctx.Err()))
		}
	}
	position, err := u.position, u.err
	u.fn, u.err, u.span = nil, nil, nil
	w.updates.Put(u)
	return position, err
}

// submit queues an update.
func (w *writer) submit(u *update) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed != nil {
		return w.closed
	}
	w.queue = append(w.queue, u)
	if len(w.queue) == 1 {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
	return nil
}

// close takes no more updates: those to come get the error. What is queued is
// written, as long as the term lasts.
func (w *writer) close(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed == nil {
		w.closed = err
		close(w.wake)
	}
}

// answer ends the wait of the caller.
func (u *update) answer(p Position, err error) {
	u.position, u.err = p, err
	u.done <- struct{}{}
}

// fail answers an update that a term could not write. Its outcome is unknown when
// a part of it had been written before.
func (u *update) fail(err error, begun bool) {
	if e, ok := errors.AsType[*instance.Error](err); ok && begun && !e.OutcomeUnknown {
		err = unknown(new(*e))
	}
	u.answer(Position{}, err)
}
