package journal

import (
	"context"
	"errors"
)

// Reader reads the log onwards from a position. It is a position and, while it is
// behind the ring, a page of the log: it has no goroutine, and holds nobody up. It
// is for one goroutine at a time, and need not be closed.
type Reader struct {
	journal  *Journal
	position Position
	pager    pager
	// page is what is left of the last page, whose first batch follows the position.
	page []stored
}

// Read returns a reader of what follows a position, which is one that Resolve, a
// snapshot or a batch gave.
func (j *Journal) Read(after Position) *Reader {
	return &Reader{journal: j, position: after, pager: pager{store: j.store}}
}

// Position returns the position of the batch that Next returned last.
func (r *Reader) Position() Position { return r.position }

// Next returns the batch that follows, and waits until there is one. Errors are
// those of ctx, and of type [instance.Error]: [ReasonCursorExpired] when
// retention has passed the position, [ReasonCursorRolledBack] when the log has
// gone back behind it, [ReasonUnavailable] when the journal is closed or the log
// cannot be read.
func (r *Reader) Next(ctx context.Context) (*Batch, error) {
	for {
		b, changed, err := r.journal.view.next(r.position)
		switch {
		case err != nil:
			return nil, err
		case b != nil:
			r.page = nil
		case changed != nil:
			r.page = nil
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		default:
			if b, err = r.fromLog(ctx); err != nil {
				return nil, err
			}
			if b == nil {
				continue
			}
		}
		r.position = b.Position
		return b, nil
	}
}

// fromLog returns the batch that follows from a page of the log, or nil when it
// has to be looked for again.
func (r *Reader) fromLog(ctx context.Context) (*Batch, error) {
	if len(r.page) == 0 || r.page[0].seq != r.position.Seq+1 {
		page, err := r.journal.readPage(ctx, &r.pager, r.position)
		if err != nil || len(page) == 0 {
			return nil, err
		}
		r.page = page
	}
	b, _, err := decodeBatch(r.page[0].seq, r.page[0].value)
	if err != nil {
		return nil, err
	}
	r.page[0].value = nil
	r.page = r.page[1:]
	return b, nil
}

// readPage reads the page of the log that follows a position before the head. It
// is empty when the view was wrong about the log, and was brought up to date.
func (j *Journal) readPage(ctx context.Context, p *pager, after Position) ([]stored, error) {
	ctx, leave, err := j.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	select {
	case j.pageReads <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	page, err := p.next(ctx, after.Seq)
	<-j.pageReads
	if errors.Is(err, errGap) || (err == nil && len(page) == 0) {
		err = j.refresh(ctx) // retention, or a log that has gone back
	}
	if err != nil {
		return nil, unreachable(ctx, err)
	}
	return page, nil
}
