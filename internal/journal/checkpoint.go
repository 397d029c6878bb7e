package journal

import (
	"context"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	storagev1 "github.com/instanced/instanced/gen/instanced/storage/v1"
)

// checkpointInterval and maxCheckpointBytes bound how far a checkpoint lags, in time and in
// bytes of the log: what a start after a crash has to replay. An instance that changes several
// times in between is written once.
const (
	checkpointInterval = time.Minute
	maxCheckpointBytes = 8 << 20
)

// checkpointer writes what is known of the instances beside the log, so that a start need not
// replay all of it, and so that history can be trimmed.
type checkpointer struct {
	term *Term
	// due asks the maintenance of the term to write a checkpoint if one is due.
	due chan struct{}
	// saved is the checkpoint in etcd. It is replaced under the term's maintenance lock.
	saved atomic.Pointer[checkpoint]
}

// checkpoint is how far the instance keys reach.
type checkpoint struct {
	// logPoint is the last batch that they reflect, and bytes the size of the log up to and
	// including it.
	logPoint
	bytes uint64
	// at is when it was written, zero if that was before this term.
	at time.Time
}

func newCheckpointer(t *Term) *checkpointer {
	c := &checkpointer{term: t, due: make(chan struct{}, 1)}
	c.saved.Store(&checkpoint{})
	return c
}

// load finds the checkpoint that an earlier term wrote.
func (c *checkpointer) load(ctx context.Context) error {
	s := c.term.journal.store
	saved, err := s.checkpointed(ctx)
	if err != nil || saved.seq == 0 {
		return err
	}
	h, err := s.header(ctx, saved.seq)
	if err != nil {
		return err
	}
	c.saved.Store(&checkpoint{logPoint: saved, bytes: h.Preceding})
	return nil
}

// lag returns how many bytes of the log, which has that size, are not in the checkpoint.
func (c *checkpointer) lag(size uint64) uint64 { return size - c.saved.Load().bytes }

// writeIfDue writes a checkpoint if the last one lags too far for a start, or for trimming
// history, which does not go beyond it.
func (c *checkpointer) writeIfDue(ctx context.Context, now time.Time) error {
	if err := c.term.maintenance.lock(ctx); err != nil {
		return err
	}
	defer c.term.maintenance.unlock()
	j := c.term.journal
	if now.Sub(c.saved.Load().at) < min(checkpointInterval, j.config.Retention/10) &&
		c.lag(j.view.tip().bytes) < min(maxCheckpointBytes, uint64(j.config.MaxBytes)/10) {
		return nil
	}
	return c.writeLocked(ctx)
}

// write writes a checkpoint.
func (c *checkpointer) write(ctx context.Context) error {
	if err := c.term.maintenance.lock(ctx); err != nil {
		return err
	}
	defer c.term.maintenance.unlock()
	return c.writeLocked(ctx)
}

// writeLocked writes the instances that changed since the last checkpoint, and then how far
// they reach. A start may read instances that are newer than that, which does no harm: each
// says which change it reflects. The caller holds the term's maintenance lock.
func (c *checkpointer) writeLocked(ctx context.Context) (err error) {
	t, j := c.term, c.term.journal
	if full := j.disk.checkFloor(); full != nil {
		return full
	}
	at, end := time.Now(), j.view.tip().bytes
	records, head, ids := j.view.collectUnsaved()
	saved := c.saved.Load()
	if head.seq <= saved.seq {
		return nil
	}
	defer func() {
		if err != nil {
			j.view.restoreUnsaved(records)
			return
		}
		j.metrics.checkpointDuration.Observe(time.Since(at).Seconds())
	}()
	ops := make([]clientv3.Op, 0, min(len(records)+1, j.store.maxOps))
	encoded := make([]byte, 0, min(maxRequestBytes, 1024*len(records))) // of all that ops put
	for id, record := range records {
		begun := len(encoded)
		key := j.store.keys.instances + string(id)
		if record != nil {
			encoded = j.store.seal(appendRecord(j.store.reserveSeal(encoded), record), begun, key)
		}
		if len(encoded) > maxRequestBytes && begun > 0 || len(ops) == j.store.maxOps-1 {
			if err := t.change(ctx, head, append(ops, j.store.putCheckpoint(saved.seq, nil))...); err != nil {
				return err
			}
			ops, encoded = ops[:0], append(encoded[:0], encoded[begun:]...)
			begun = 0
		}
		if value := encoded[begun:]; len(value) == 0 {
			ops = append(ops, clientv3.OpDelete(key))
		} else {
			ops = append(ops, putBytes(key, value))
		}
	}
	ops = append(ops, j.store.putCheckpoint(head.seq, &ids))
	if err := t.change(ctx, head, ops...); err != nil {
		return err
	}
	c.saved.Store(&checkpoint{head, end, at})
	signal(t.unblocked)
	return nil
}

// grow has a checkpoint written if the log has become much longer since the last one, and
// room made if there is little.
func (t *Term) grow(bytes uint64) {
	if t.checkpointer.lag(bytes) >= maxCheckpointBytes {
		signal(t.checkpointer.due)
	}
	if crowded, _ := t.crowded(); crowded {
		signal(t.roomNeeded)
	}
}

// putCheckpoint says how far the instance keys reach, and the sum of their ids, nil as long
// as they are being written.
func (s *store) putCheckpoint(seq uint64, ids *idSum) clientv3.Op {
	m := &storagev1.Checkpoint{Seq: seq}
	if ids != nil && s.seals() { // an older version would leave it as it is when it writes others
		m.IdsSum = (*uint64)(ids)
	}
	return s.put(s.keys.checkpoint, m)
}

// checkpointed returns the last batch that the checkpoint in etcd reflects.
func (s *store) checkpointed(ctx context.Context) (logPoint, error) {
	c, err := s.control(ctx, 0)
	if err != nil || c.checkpoint == 0 {
		return logPoint{}, err
	}
	seq := c.checkpoint
	c, err = s.control(ctx, seq)
	return logPoint{seq, c.known}, err
}
