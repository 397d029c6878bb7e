package journal

import (
	"context"
	"log/slog"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	storagev1 "github.com/instanced/instanced/gen/instanced/storage/v1"
	"github.com/instanced/instanced/internal/instance"
)

const (
	// checkpointEvery is how often the instance keys are brought up to date: what a
	// start after a crash has to replay.
	checkpointEvery = 5 * time.Second
	// tidyEvery is how often client tokens are expired and etcd is compacted.
	tidyEvery = time.Minute
)

// maintain does what a term does beside writing, until it ends.
func (t *Term) maintain() {
	checkpoints := time.NewTicker(checkpointEvery)
	defer checkpoints.Stop()
	tidy := time.NewTicker(tidyEvery)
	defer tidy.Stop()
	for {
		var what string
		var err error
		select {
		case <-t.ctx.Done():
			return
		case now := <-checkpoints.C:
			if t.journal.disk.room() != nil {
				continue // which the disk has told the log
			}
			what = "write a checkpoint"
			if err = t.checkpoint(t.ctx); err == nil {
				what, err = "trim its history", t.trim(t.ctx, now)
			}
		case now := <-tidy.C:
			if t.journal.disk.room() != nil {
				continue
			}
			what = "expire client tokens"
			if err = t.expireTokens(t.ctx, now); err == nil {
				what, err = "compact etcd", t.compact(t.ctx)
			}
		case <-t.room:
			what, err = "make room in etcd", t.makeRoom(t.ctx)
		}
		if err != nil && t.ctx.Err() == nil {
			t.journal.log.Warn("the journal could not "+what+"; it will try again", slog.Any("error", err))
		}
	}
}

// checkpoint writes the instances that changed since the last one, and then how
// far they reach. A start reads some that are newer than that, which does no harm:
// each says which change it has seen.
func (t *Term) checkpoint(ctx context.Context) (err error) {
	if err := t.maintenance.lock(ctx); err != nil {
		return err
	}
	defer t.maintenance.unlock()
	j := t.journal
	if full := j.disk.room(); full != nil {
		return full
	}
	ids, head := j.view.takeUnsaved()
	if head.seq <= t.saved.seq {
		return nil
	}
	defer func() {
		if err != nil {
			j.view.putUnsaved(ids)
		}
	}()
	ops := make([]clientv3.Op, 0, min(len(ids)+1, j.store.maxOps))
	size := 0
	var encoded []byte
	for id := range ids {
		encoded = t.encodeKnown(encoded[:0], id)
		if size+len(encoded) > requestBytes || len(ops) == j.store.maxOps-1 {
			if err := t.change(ctx, head, ops...); err != nil {
				return err
			}
			ops, size = ops[:0], 0
		}
		size += len(encoded)
		if len(encoded) == 0 {
			ops = append(ops, clientv3.OpDelete(j.store.keys.instances+string(id)))
		} else {
			ops = append(ops, clientv3.OpPut(j.store.keys.instances+string(id), string(encoded)))
		}
	}
	ops = append(ops, clientv3.OpPut(j.store.keys.checkpoint, marshal(&storagev1.Checkpoint{Seq: head.seq})))
	if err := t.change(ctx, head, ops...); err != nil {
		return err
	}
	t.saved = head
	return nil
}

// encodeKnown appends what is known of an instance, nothing when it was removed.
func (t *Term) encodeKnown(b []byte, id instance.ID) []byte {
	if record, ok := t.journal.view.get(id); ok {
		return appendInstanceRecord(b, record)
	}
	return b
}

// checkpointed returns the last batch that the checkpoint in etcd reflects.
func (s *store) checkpointed(ctx context.Context) (anchor, error) {
	c, err := s.control(ctx, 0)
	if err != nil || c.checkpoint == 0 {
		return anchor{}, err
	}
	seq := c.checkpoint
	c, err = s.control(ctx, seq)
	return anchor{seq, c.known}, err
}
