package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal/codec"
	"github.com/instanced/instanced/internal/tracing"
)

const (
	// attemptTimeout is how long one attempt to write a batch may take, and how long
	// it takes at most to notice that etcd does not answer.
	attemptTimeout = 2 * time.Second
	// minRetryPause and maxRetryPause bound the pause between two attempts.
	minRetryPause, maxRetryPause = 20 * time.Millisecond, time.Second
	// diskPause is how often a full disk is looked at again.
	diskPause = 200 * time.Millisecond
)

// commitAll writes the batches that are handed over, one at a time, and answers
// those who wait for them. When one cannot be written, the term is over, and
// nothing after it is written either.
func (w *writer) commitAll() {
	lost := false
	for b := range w.ready {
		w.heart.Beat()
		var err error
		switch {
		case lost:
			err = w.term.Err()
		case b.writes():
			span := b.startSpan()
			err = w.commit(b)
			tracing.End(span, err)
			lost = err != nil
		}
		b.answer(err)
		w.heart.Rest()
	}
}

// commit writes a batch in one transaction and publishes it. It goes on until the
// outcome is known: a write that may or may not have happened is repeated as it
// is, and the log's key tells whether it had. An error ends the term.
func (w *writer) commit(b *batch) error {
	j := w.term.journal
	tip := j.view.tip()
	if err := w.term.Err(); err != nil {
		return err // the view may be that of a log which this term never owned
	}
	if err := w.awaitRoom(tip.bytes); err != nil {
		return err
	}
	began := time.Now()
	if r := b.record; r != nil {
		r.RecordedAt = codec.Time(max(began.UnixNano(), codec.Nanoseconds(tip.recordedAt)))
		s := j.store
		b.value = codec.AppendHeader(codec.AppendCompressed(s.reserveSeal(b.value[:0]), b.encoded), r.Position.Epoch, r.RecordedAt, tip.bytes)
		b.key = s.keys.logKey(r.Position.Seq)
		b.value = s.seal(b.value, 0, b.key)
		r.Bytes = len(b.encoded)
	}
	revision, err := w.transact(w.request(b, tip))
	if err != nil {
		return err
	}
	now := time.Now()
	j.metrics.commitDuration.Observe(now.Sub(began).Seconds())
	defer func() { w.term.grow(j.view.tip().bytes) }()
	if b.record == nil {
		return nil
	}
	j.metrics.committed(b.record, now)
	if !j.view.publish(published{b.record, revision, tip.bytes + uint64(len(b.value))}) {
		_ = w.term.end(errNotOwner(errLost))
		return unknown(w.term.ended())
	}
	return nil
}

// awaitRoom stalls the writer while the database is at its limit, or when the log is so far
// ahead of the checkpoint that trimming could not make room. At the end of the term no room is
// made any more, and little is left to write.
func (w *writer) awaitRoom(bytes uint64) error {
	t := w.term
	for t.maintaining.Err() == nil {
		w.heart.Beat()
		var why *instance.Error
		if t.checkpointer.lag(bytes) > t.journal.budget.maxCheckpointLag() {
			signal(t.checkpointer.due)
			why = errUnavailable("nothing can be recorded because no checkpoint of the journal can be written", nil)
		} else if _, full := t.crowded(); full {
			signal(t.roomNeeded)
			why = errFull("the journal's database has reached its limit; room is being made")
		} else {
			return nil
		}
		select {
		case <-t.unblocked:
		case <-time.After(attemptTimeout):
			w.stalled.Store(why)
		case <-t.maintaining.Done():
		case <-t.journal.drained:
			return t.Err()
		}
	}
	return t.Err()
}

// signal asks for what a channel with room for one stands for.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// request is a transaction of the writer.
type request struct {
	compare []clientv3.Cmp
	puts    []clientv3.Op
	// logKey and value are the batch of the log, empty for client tokens alone.
	logKey string
	value  []byte
}

// request makes the transaction that writes the batch, whose value it shares. It is
// carried out only by the owner, only once, and only behind the very record that this
// process believes to be the last, which an etcd that was restored from an older copy
// does not have.
func (w *writer) request(b *batch, tip tip) request {
	s := w.term.journal.store
	r := request{
		compare: []clientv3.Cmp{
			w.term.owns(),
			clientv3.Compare(clientv3.ModRevision(s.keys.head), "=", tip.revision),
		},
		puts: b.tokenOps(make([]clientv3.Op, 0, 2+len(b.tokens))),
	}
	if b.record == nil {
		return r
	}
	r.logKey, r.value = b.key, b.value
	r.puts = append(r.puts, putBytes(r.logKey, r.value), s.putHead(b.record.Position.Seq))
	return r
}

// transact carries a request out and returns the revision at which it was.
func (w *writer) transact(r request) (revision int64, err error) {
	defer w.stalled.Store(nil)
	pause, warned := minRetryPause, false
	for attempt := 0; ; {
		w.heart.Beat()
		if full := w.term.journal.disk.checkFloor(); full != nil {
			// etcd would end the process. The disk tells the log itself.
			w.stalled.Store(full)
			select {
			case <-time.After(diskPause):
				continue
			case <-w.term.journal.drained:
				return 0, w.giveUp(full, attempt)
			case <-w.term.ctx.Done():
				if attempt == 0 {
					return 0, w.term.Err()
				}
				return 0, unknown(w.term.ended())
			}
		}
		attempt++
		revision, err = w.attempt(r)
		switch {
		case err == nil:
			w.term.journal.noteContact()
			if warned {
				w.term.journal.log.Info("etcd takes writes again", slog.Int("attempts", attempt))
			}
			return revision, nil
		case errors.Is(err, errFenced):
			w.term.journal.metrics.writeErrors.WithLabelValues(writeFenced).Inc()
			err := w.term.end(errNotOwner(errLost))
			if attempt > 1 && r.logKey == "" {
				// An earlier attempt may have written the client tokens.
				return 0, unknown(w.term.ended())
			}
			return 0, err
		case refused(err):
			w.term.journal.metrics.writeErrors.WithLabelValues(writeRefused).Inc()
			return 0, w.term.end(&instance.Error{
				Kind: instance.KindInternal, Message: "etcd refuses a write of the journal", Cause: err,
			})
		case w.term.ctx.Err() != nil:
			return 0, unknown(w.term.ended())
		}
		reason := w.stall(err, !warned)
		warned = true
		select {
		case <-time.After(pause):
		case <-w.term.journal.drained:
			return 0, w.giveUp(reason, attempt)
		case <-w.term.ctx.Done():
			return 0, unknown(w.term.ended())
		}
		pause = min(2*pause, maxRetryPause)
	}
}

// giveUp ends the term of a journal that is about to be closed, since a write is held up. It
// returns the reason as the error of that write, which was attempted so many times.
func (w *writer) giveUp(reason *instance.Error, attempts int) error {
	w.term.journal.log.Warn("the journal closes without changes that it could not write; whoever asked for them is told",
		slog.Any("error", reason))
	_ = w.term.end(errClosed())
	if attempts > 0 {
		return unknown(reason)
	}
	return reason
}

// stall notes why etcd does not take writes, so that updates fail at once, and returns it.
func (w *writer) stall(err error, first bool) *instance.Error {
	label, reason := writeUnavailable, errUnavailable("nothing can be recorded because etcd does not respond", err)
	if denied(err) {
		reason = errUnavailable("nothing can be recorded because etcd does not permit it", err)
	}
	if noSpace(err) {
		label, reason = writeNoSpace, errFull("etcd has used up its quota; history is being trimmed to make room")
		signal(w.term.roomNeeded)
	}
	w.term.journal.metrics.writeErrors.WithLabelValues(label).Inc()
	w.stalled.Store(reason)
	if first {
		w.term.journal.log.Warn("etcd does not take a write; trying again until it does", slog.Any("error", err))
	}
	return reason
}

// errLost is why a term ends whose comparisons fail.
var errLost = errors.New("another process took the log over, or the log has gone back")

// errFenced means that the comparisons of a request failed, and that it was not
// carried out by an earlier attempt either.
var errFenced = errors.New("the comparisons of the transaction failed")

// attempt sends a request once.
func (w *writer) attempt(r request) (revision int64, err error) {
	ctx, cancel := context.WithTimeout(w.term.ctx, attemptTimeout)
	defer cancel()
	txn := w.term.journal.store.client.Txn(ctx).If(r.compare...).Then(r.puts...)
	if r.logKey != "" {
		txn = txn.Else(clientv3.OpGet(r.logKey))
	}
	resp, err := txn.Commit()
	if err != nil {
		return 0, err
	}
	if resp.Succeeded {
		return resp.Header.GetRevision(), nil
	}
	if r.logKey != "" {
		// The record has the epoch, so no other process writes the same bytes.
		if kv := only(resp, 0); kv != nil && bytes.Equal(kv.Value, r.value) {
			return kv.ModRevision, nil
		}
	}
	return 0, errFenced
}

// logPoint is a batch of the log. Writes beside the log compare it, since they are only valid
// for a log that has it.
type logPoint struct {
	seq      uint64
	revision int64
}

// change carries operations out beside the writer's, if this process still is the
// owner and the log has the logPoint; otherwise it ends the term.
func (t *Term) change(ctx context.Context, a logPoint, ops ...clientv3.Op) error {
	s := t.journal.store
	compare := []clientv3.Cmp{t.owns()}
	if a.seq > 0 {
		compare = append(compare, clientv3.Compare(clientv3.ModRevision(s.keys.logKey(a.seq)), "=", a.revision))
	}
	resp, err := s.client.Txn(ctx).If(compare...).Then(ops...).Commit()
	if err != nil {
		return fmt.Errorf("etcd does not take a write: %w", err)
	}
	if !resp.Succeeded {
		return t.end(errNotOwner(errLost))
	}
	return nil
}
