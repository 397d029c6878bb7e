package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// minBudget is the smallest budget, however little history is kept: the checkpoint and the
// client tokens are in the same database.
const minBudget = 64 << 20

// budget is how many bytes the database of the embedded etcd may take. History has a share
// of it, [Config.MaxBytes], and so have client tokens. What is known of instances is not
// limited, and neither is what a term needs in order to claim the log, to expire, to trim
// and to write a checkpoint: there is no quota in etcd, and only what the writer adds waits
// for room.
//
// What counts against the budget is what is in use, measured, with all that etcd keeps of
// the past until it is compacted. From 7/8 of it on, room is made: what has expired goes,
// then the past, then history, until 3/4 is in use. When instances, or tokens that an
// earlier version did not count, take more than 2/3 of it by themselves, the limit is half
// as much again as they take. So there always is room to go on, and some for history.
type budget int64

func (c *Config) budget() budget { return budget(max(2*c.MaxBytes, minBudget)) }

// tokens is the share of client tokens, with their keys.
func (b budget) tokens() int64 { return int64(b / 4) }

// maxCheckpointLag is how much of the log there may be after the checkpoint, since history is
// never trimmed beyond that.
func (b budget) maxCheckpointLag() uint64 { return uint64(b / 4) }

// limit is how much may be in use before the writer waits, given what is in use apart
// from history.
func (b budget) limit(others int64) int64 { return max(int64(b), others/2*3) }

// inUse returns how many bytes of the embedded etcd's database are in use. It is as of the
// last time that etcd committed, at most a tenth of a second ago.
func (j *Journal) inUse() int64 { return j.server.Server.Backend().SizeInUse() }

// crowded reports whether it is time to make room, and full whether nothing may be added
// before there is.
func (t *Term) crowded() (crowded, full bool) {
	if t.journal.server == nil {
		return false, false // it is for etcd to say
	}
	inUse, limit := t.journal.inUse(), t.limit.Load()
	return inUse >= limit/8*7, inUse >= limit
}

// makeRoom makes room in the database, if it is time to. Of an external etcd only the
// operator can: what this process can do beforehand is done.
func (t *Term) makeRoom(ctx context.Context) error {
	if err := t.maintenance.lock(ctx); err != nil {
		return err
	}
	defer t.maintenance.unlock()
	j := t.journal
	if full := j.disk.checkFloor(); full != nil {
		return full
	}
	if !j.store.embedded {
		return t.makeRoomElsewhereLocked(ctx)
	}
	if crowded, _ := t.crowded(); !crowded {
		return nil
	}
	return t.makeRoomLocked(ctx)
}

// makeRoomLocked makes room in the database of the embedded etcd. The caller holds
// maintenance.
func (t *Term) makeRoomLocked(ctx context.Context) error {
	j := t.journal
	begun, before := time.Now(), j.inUse()
	expired, err := t.expireTokens(ctx, begun)
	if err != nil {
		return err
	}
	if err := t.checkpointer.writeLocked(ctx); err != nil {
		return err
	}
	if err := t.compactAll(ctx); err != nil {
		return err
	}
	kept := j.view.kept()
	limit := j.budget.limit(j.inUse() - int64(kept))
	if excess := j.inUse() - limit/4*3; excess > 0 {
		if err := t.trimToLocked(ctx, time.Time{}, kept-min(kept, uint64(excess))); err != nil {
			return err
		}
		if err := t.compactAll(ctx); err != nil {
			return err
		}
	}
	t.limit.Store(limit)
	signal(t.unblocked)
	use := t.tokens.inUse()
	attrs := []any{
		slog.Int64("was_in_use_bytes", before), slog.Int64("in_use_bytes", j.inUse()), slog.Int64("max_bytes", limit),
		slog.Uint64("history_bytes", j.view.kept()), slog.Int("client_tokens", use.count), slog.Int64("client_token_bytes", use.bytes),
		slog.Int("expired_client_tokens", expired), slog.Duration("took", time.Since(begun).Round(time.Millisecond)),
	}
	if limit > int64(j.budget) {
		j.log.WarnContext(ctx, "made room in the journal, whose database is larger than it should be: "+
			"instances and client tokens alone need most of it", attrs...)
		return nil
	}
	j.log.InfoContext(ctx, "made room in the journal", attrs...)
	return nil
}

// makeRoomElsewhereLocked is makeRoomLocked for an external etcd that takes no writes because its
// quota is used up.
func (t *Term) makeRoomElsewhereLocked(ctx context.Context) error {
	j := t.journal
	if _, err := t.expireTokens(ctx, time.Now()); err != nil {
		return err
	}
	if err := t.trimToLocked(ctx, time.Time{}, uint64(j.config.MaxBytes/2)); err != nil {
		return err
	}
	if err := t.compactAll(ctx); err != nil {
		return err
	}
	return errors.New("etcd has used up its quota: its operator has to defragment it and to disarm the alarm")
}

// compactAll lets etcd forget the past at once, and returns when what is in use is known.
func (t *Term) compactAll(ctx context.Context) error {
	j := t.journal
	revision, err := j.store.revision(ctx)
	if err != nil {
		return err
	}
	if err := j.compact(ctx, revision, clientv3.WithCompactPhysical()); err != nil {
		return fmt.Errorf("compact etcd: %w", err)
	}
	if !j.store.embedded {
		return nil
	}
	// Freed pages can be reused some commits later, when no reader needs them any more, and
	// nothing is committed unless something was written.
	const commits = 4
	for range commits {
		if err := t.change(ctx, logPoint{}, j.store.putEpochs(j.view.listEpochs())); err != nil {
			return err
		}
		j.server.Server.Backend().ForceCommit()
	}
	return nil
}

// lift makes the embedded etcd take writes again, if it has stopped: earlier versions of
// this program gave it a quota.
func (j *Journal) lift(ctx context.Context) error {
	alarms, err := j.store.client.AlarmList(ctx)
	if err != nil {
		return err
	}
	for _, alarm := range alarms.Alarms {
		if alarm.GetAlarm() != etcdserverpb.AlarmType_NOSPACE {
			continue
		}
		if _, err := j.store.client.AlarmDisarm(ctx, (*clientv3.AlarmMember)(alarm)); err != nil {
			return fmt.Errorf("disarm the alarm of etcd: %w", err)
		}
		j.log.WarnContext(ctx, "etcd took no writes, since its quota was used up; it takes them again, and room will be made",
			slog.Int64("in_use_bytes", j.inUse()), slog.Int64("max_bytes", int64(j.budget)))
	}
	return nil
}

// shrink makes the file of the database smaller, if most of it is free and it is larger than
// the budget: else it only ever grows, and what is free is used again.
func (j *Journal) shrink(ctx context.Context) error {
	// Through the client it panics, in an etcd that is embedded.
	backend := j.server.Server.Backend()
	size, inUse := backend.Size(), backend.SizeInUse()
	if size <= int64(j.budget) || inUse > size/2 {
		return nil
	}
	// It makes a copy, and removes the old one when that is complete.
	if err := j.disk.checkFloorAnd(inUse); err != nil {
		j.log.WarnContext(ctx, "the database is larger than it has to be, but there is no space for a smaller copy", slog.Any("error", err))
		return nil
	}
	if err := backend.Defrag(); err != nil {
		return fmt.Errorf("defragment etcd: %w", err)
	}
	j.metrics.defragmentations.Inc()
	j.log.InfoContext(ctx, "made the database smaller", slog.Int64("was_bytes", size), slog.Int64("bytes", backend.Size()))
	return nil
}
