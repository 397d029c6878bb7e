package journal

import (
	"context"
	"errors"
	"weak"

	"github.com/instanced/instanced/internal/instance"
)

// Reader reads the log onwards from a position. It is a position and, while it is
// behind the ring, a page of the log: it has no goroutine, and delays no writer. It
// is for one goroutine at a time, and need not be closed, except for one of [Journal.ReadOf].
type Reader struct {
	journal  *Journal
	position Position
	// caller is who takes turns with others for pages of the log.
	caller string
	// interest is that of one which waits for changes of some instances only.
	waiter *waiter
	// before is the position of the batch before last, the one that Next returned last.
	// It is held by others only, so that a reader which pauses over it holds no memory.
	before Position
	last   weak.Pointer[Batch]
	pager  pager
	// page is what is left of the last page, whose first batch follows the position.
	page []rawBatch
}

// Read returns a reader of what follows a position, which is one that Resolve, a
// snapshot or a batch gave.
func (j *Journal) Read(after Position) *Reader {
	return &Reader{journal: j, position: after, pager: pager{store: j.store}}
}

// For sets on whose behalf the log is read, such as a principal, and returns the reader:
// callers take turns when many have fallen out of the ring. It is called before Next.
func (r *Reader) For(caller string) *Reader {
	r.caller = caller
	return r
}

// ReadOf returns a reader for whom only batches with changes of some instances matter: it
// may get others too, but while it waits at the end of the log it passes over them without
// being woken. Close it in the end.
func (j *Journal) ReadOf(ids []instance.ID, after Position) *Reader {
	r := j.Read(after)
	r.waiter = &waiter{ids: ids}
	j.view.waiters.add(r.waiter)
	return r
}

// Close ends the interest of a reader of [Journal.ReadOf].
func (r *Reader) Close() { r.journal.view.waiters.remove(r.waiter) }

// Position returns the position of the batch that Next returned last, or up to which a
// reader of [Journal.ReadOf] has passed over what followed it.
func (r *Reader) Position() Position { return r.position }

// Next returns the batch that follows, and waits until there is one. It fails
// with the error of ctx, or with one of type [instance.Error]: [instance.ReasonCursorExpired] when
// retention has passed the position, [instance.ReasonCursorRolledBack] when the log has
// gone back behind it, [instance.ReasonJournalUnavailable] when the journal is closed or the log
// cannot be read.
func (r *Reader) Next(ctx context.Context) (*Batch, error) {
	b, err := r.next(ctx)
	if err != nil {
		return nil, err
	}
	r.before, r.position, r.last = r.position, b.Position, weak.Make(b)
	return b, nil
}

// next returns the batch that follows, or that matters.
func (r *Reader) next(ctx context.Context) (*Batch, error) {
	for r.waiter != nil {
		woken := r.journal.view.wait(r.waiter, r.position)
		if woken == nil {
			break
		}
		r.page = nil
		var ended error
		select {
		case <-woken:
		case <-ctx.Done():
			ended = ctx.Err()
		}
		batch, position := r.journal.view.stopWaiting(r.waiter, r.position)
		if batch != nil {
			return batch, nil
		}
		if r.position = position; ended != nil {
			return nil, ended
		}
	}
	return r.after(ctx, r.position)
}

// Again returns the batch that Next returned last to a caller that has let go of it,
// such as one that was delayed for long in the middle of it. A batch that is no longer in
// memory is read again. Again fails as Next does; there is no batch before Next has
// returned one. It is not for readers of [Journal.ReadOf].
func (r *Reader) Again(ctx context.Context) (*Batch, error) {
	if b := r.last.Value(); b != nil {
		return b, nil
	}
	b, err := r.after(ctx, r.before)
	if err != nil {
		return nil, err
	}
	if b.Position != r.position {
		return nil, errRolledBack()
	}
	r.last = weak.Make(b)
	return b, nil
}

// after returns the batch that follows a position, and waits until there is one.
func (r *Reader) after(ctx context.Context, position Position) (*Batch, error) {
	for {
		b, changed, err := r.journal.view.next(position)
		switch {
		case err != nil:
			return nil, err
		case b != nil:
			r.page = nil
			return b, nil
		case changed != nil:
			r.page = nil
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		default:
			if b, err = r.fromLog(ctx, position); b != nil || err != nil {
				return b, err
			}
		}
	}
}

// fromLog returns the batch that follows a position from a page of the log, or nil
// when it has to be looked for again.
func (r *Reader) fromLog(ctx context.Context, position Position) (*Batch, error) {
	if len(r.page) == 0 || r.page[0].seq != position.Seq+1 {
		page, err := r.journal.readPage(ctx, r.caller, &r.pager, position)
		if err != nil || len(page) == 0 {
			return nil, err
		}
		r.page = page
	}
	b, _, err := r.journal.store.batch(r.page[0])
	if err != nil {
		return nil, r.journal.errDamagedHistory(r.page[0].seq, err)
	}
	r.page[0].kv = nil
	r.page = r.page[1:]
	return b, nil
}

// readPage reads the page of the log that follows a position before the head. It
// is empty when the view was wrong about the log, and was brought up to date.
func (j *Journal) readPage(ctx context.Context, caller string, p *pager, after Position) ([]rawBatch, error) {
	ctx, leave, err := j.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	finish, err := j.pageReads.Enter(ctx, caller)
	if err != nil {
		return nil, err
	}
	page, err := p.next(ctx, after.Seq)
	finish()
	if errors.Is(err, errGap) || (err == nil && len(page) == 0) {
		err = j.refresh(ctx) // retention, or a log that has gone back
	}
	if err != nil {
		return nil, unreachable(ctx, err)
	}
	return page, nil
}
