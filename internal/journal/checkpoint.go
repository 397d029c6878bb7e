package journal

import (
	"context"
	"log/slog"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	storagev1 "github.com/instanced/instanced/gen/instanced/storage/v1"
)

const (
	// maintenanceInterval is how often it is looked whether a checkpoint is due, and history to be
	// trimmed.
	maintenanceInterval = 5 * time.Second
	// checkpointInterval and maxCheckpointBytes are how long, and how much of the log, the
	// instance keys may be behind: what a start after a crash has to replay. An instance
	// that changes several times meanwhile is written once.
	checkpointInterval = time.Minute
	maxCheckpointBytes = 8 << 20
	// tidyInterval is how often client tokens are expired and etcd is compacted.
	tidyInterval = time.Minute
)

// maintain does what a term does beside writing, until it is about to end.
func (t *Term) maintain() {
	ctx := t.maintaining
	regularly := time.NewTicker(maintenanceInterval)
	defer regularly.Stop()
	tidy := time.NewTicker(tidyInterval)
	defer tidy.Stop()
	for {
		var what string
		var err error
		select {
		case <-ctx.Done():
			return
		case now := <-regularly.C:
			if t.journal.disk.checkFloor() != nil {
				continue // which the disk has told the log
			}
			what = "write a checkpoint"
			if err = t.checkpointIfDue(ctx, now); err == nil {
				what, err = "trim its history", t.trim(ctx, now)
			}
		case now := <-tidy.C:
			if t.journal.disk.checkFloor() != nil {
				continue
			}
			what = "expire client tokens"
			if _, err = t.expireTokens(ctx, now); err == nil {
				what, err = "compact etcd", t.compact(ctx)
			}
		case <-t.checkpointDue:
			if t.journal.disk.checkFloor() == nil {
				what, err = "write a checkpoint", t.checkpointIfDue(ctx, time.Now())
			}
		case <-t.roomNeeded:
			if t.journal.disk.checkFloor() == nil {
				what, err = "make room", t.makeRoom(ctx)
			}
		}
		if err != nil && ctx.Err() == nil {
			t.journal.log.Warn("the journal could not "+what+"; it will try again", slog.Any("error", err))
		}
	}
}

// checkpointIfDue writes a checkpoint if the last one is too far behind for a start, or for
// history to be trimmed, which does not go beyond it.
func (t *Term) checkpointIfDue(ctx context.Context, now time.Time) error {
	if err := t.maintenance.lock(ctx); err != nil {
		return err
	}
	defer t.maintenance.unlock()
	c, behind := t.journal.config, t.journal.view.tip().bytes-t.savedBytes.Load()
	if now.Sub(t.savedAt) < min(checkpointInterval, c.Retention/10) && behind < min(maxCheckpointBytes, uint64(c.MaxBytes)/10) {
		return nil
	}
	return t.checkpointLocked(ctx)
}

// checkpoint writes the instances that changed since the last one, and then how
// far they reach. A start may read some that are newer than that, which does no harm:
// each says which change it has seen.
func (t *Term) checkpoint(ctx context.Context) error {
	if err := t.maintenance.lock(ctx); err != nil {
		return err
	}
	defer t.maintenance.unlock()
	return t.checkpointLocked(ctx)
}

// checkpointLocked is checkpoint for a caller that holds maintenance.
func (t *Term) checkpointLocked(ctx context.Context) (err error) {
	j := t.journal
	if full := j.disk.checkFloor(); full != nil {
		return full
	}
	at, end := time.Now(), j.view.tip().bytes
	records, head, ids := j.view.collectUnsaved()
	if head.seq <= t.saved.seq {
		return nil
	}
	defer func() {
		if err != nil {
			j.view.restoreUnsaved(records)
		}
	}()
	ops := make([]clientv3.Op, 0, min(len(records)+1, j.store.maxOps))
	encoded := make([]byte, 0, min(maxRequestBytes, 1024*len(records))) // of all that ops put
	for id, record := range records {
		begun := len(encoded)
		key := j.store.keys.instances + string(id)
		if record != nil {
			encoded = j.store.seal(appendRecord(j.store.beginValue(encoded), record), begun, key)
		}
		if len(encoded) > maxRequestBytes && begun > 0 || len(ops) == j.store.maxOps-1 {
			if err := t.change(ctx, head, append(ops, j.store.putCheckpoint(t.saved.seq, nil))...); err != nil {
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
	t.saved, t.savedAt = head, at
	t.savedBytes.Store(end)
	signal(t.unblocked)
	return nil
}

// grow has a checkpoint written if the log has become much longer since the last one, and
// room made if there is little.
func (t *Term) grow(bytes uint64) {
	if bytes-t.savedBytes.Load() >= maxCheckpointBytes {
		signal(t.checkpointDue)
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
