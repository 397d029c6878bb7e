package journal

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// maxTrimKeys is the most keys that one transaction deletes.
const maxTrimKeys = 2000

// trim deletes the history that is older, or longer, than what is kept. Too long a
// history is cut to nine tenths, so that it is not cut all the time.
func (t *Term) trim(ctx context.Context, now time.Time) error {
	if err := t.maintenance.lock(ctx); err != nil {
		return err
	}
	defer t.maintenance.unlock()
	j := t.journal
	maxBytes := uint64(math.MaxUint64)
	if limit := uint64(j.config.MaxBytes); j.view.kept() > limit {
		maxBytes = limit / 10 * 9
	}
	if err := t.trimToLocked(ctx, now.Add(-j.config.Retention), maxBytes); err != nil {
		return err
	}
	if kept := j.view.stats().Batches; kept > j.maxBatches {
		return t.trimBeforeLocked(ctx, min(j.Head().Seq-j.maxBatches/10*9+1, t.checkpointer.saved.Load().seq))
	}
	return nil
}

// trimToLocked deletes the batches that were recorded before a time, or that precede the
// last so many bytes of the log. It keeps what has to be replayed at a start: the
// batch that the checkpoint reaches to, and all after it. The caller holds
// maintenance.
func (t *Term) trimToLocked(ctx context.Context, before time.Time, maxBytes uint64) error {
	j := t.journal
	end := j.view.tip().bytes
	superfluous := func(seq uint64) (bool, error) {
		h, err := j.store.header(ctx, seq)
		return h.RecordedAt.Before(before) || end-h.Preceding > maxBytes, err
	}
	// Both times and sizes only grow along the log, so that what is superfluous is a
	// beginning of it. It ends before cut.
	first := j.view.oldestPosition().Seq + 1
	cut, err := search(first, t.checkpointer.saved.Load().seq, superfluous)
	if err != nil {
		return err
	}
	return t.trimBeforeLocked(ctx, cut)
}

// trimBeforeLocked deletes the batches before one that is kept. The caller holds maintenance.
func (t *Term) trimBeforeLocked(ctx context.Context, cut uint64) error {
	j := t.journal
	for first := j.view.oldestPosition().Seq + 1; first < cut; {
		next := min(first+maxTrimKeys, cut)
		h, err := j.store.header(ctx, next)
		if err != nil {
			return err
		}
		j.view.setOldest(next-1, h)
		if err := t.change(ctx, t.checkpointer.saved.Load().logPoint, clientv3.OpDelete(j.store.keys.logKey(first), clientv3.WithRange(j.store.keys.logKey(next)))); err != nil {
			return err
		}
		first = next
	}
	return nil
}

// search returns the first number from first on, at most last, that is not
// superfluous. The superfluous ones come first.
func search(first, last uint64, superfluous func(uint64) (bool, error)) (uint64, error) {
	if first >= last {
		return first, nil
	}
	// Most of the time there is nothing to delete.
	if yes, err := superfluous(first); err != nil || !yes {
		return first, err
	}
	low, high := first+1, last
	for low < high {
		middle := low + (high-low)/2
		yes, err := superfluous(middle)
		if err != nil {
			return first, err
		}
		if yes {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low, nil
}

// compact lets etcd forget the old revisions of keys: an external one up to what was the
// present when compact was called last, since other users may be reading at a revision of a
// moment ago.
func (t *Term) compact(ctx context.Context) error {
	if err := t.maintenance.lock(ctx); err != nil {
		return err
	}
	defer t.maintenance.unlock()
	revision, err := t.journal.store.revision(ctx)
	if err != nil {
		return err
	}
	before := t.compactable
	t.compactable = revision
	if t.journal.store.embedded {
		before = revision
	}
	if before == 0 {
		return nil
	}
	return t.journal.compact(ctx, before)
}

func (s *store) revision(ctx context.Context) (int64, error) {
	resp, err := s.client.Get(ctx, s.keys.meta, clientv3.WithCountOnly())
	if err != nil {
		return 0, err
	}
	return resp.Header.GetRevision(), nil
}

func (j *Journal) compact(ctx context.Context, revision int64, options ...clientv3.CompactOption) error {
	_, err := j.store.client.Compact(ctx, revision, options...)
	if errors.Is(err, rpctypes.ErrCompacted) {
		return nil
	}
	if denied(err) {
		j.compactionDenied.Do(func() {
			j.log.WarnContext(ctx, "the user of etcd may not compact it: that takes the role root, unless etcd compacts itself "+
				"(etcd --auto-compaction-retention=1h); without either its database grows until its quota is used up", slog.Any("error", err))
		})
		return nil
	}
	if err == nil {
		j.metrics.compactions.Inc()
	}
	return err
}
