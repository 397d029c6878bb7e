package journal

import (
	"context"
	"log/slog"
	"time"
)

const (
	// maintenanceInterval is how often a checkpoint is written if it is due, and history trimmed.
	maintenanceInterval = 5 * time.Second
	// tidyInterval is how often client tokens are expired and etcd is compacted.
	tidyInterval = time.Minute
)

// maintain does the work of a term other than writing, until the term is about to end.
func (t *Term) maintain() {
	ctx := t.maintaining
	regularly := time.NewTicker(maintenanceInterval)
	defer regularly.Stop()
	tidy := time.NewTicker(tidyInterval)
	defer tidy.Stop()
	for {
		var task, what string
		var err error
		select {
		case <-ctx.Done():
			return
		case now := <-regularly.C:
			if what, err = "reach its database", t.probe(ctx); err != nil {
				break
			}
			if t.journal.disk.checkFloor() != nil {
				continue // which the disk has told the log
			}
			task, what = taskCheckpoint, "write a checkpoint"
			if err = t.checkpointer.writeIfDue(ctx, now); err == nil {
				task, what, err = taskTrim, "trim its history", t.trim(ctx, now)
			}
		case now := <-tidy.C:
			if t.journal.disk.checkFloor() != nil {
				continue
			}
			task, what = taskExpireTokens, "expire client tokens"
			if _, err = t.expireTokens(ctx, now); err == nil {
				task, what, err = taskCompact, "compact etcd", t.compact(ctx)
			}
		case <-t.checkpointer.due:
			if t.journal.disk.checkFloor() == nil {
				task, what, err = taskCheckpoint, "write a checkpoint", t.checkpointer.writeIfDue(ctx, time.Now())
			}
		case <-t.roomNeeded:
			if t.journal.disk.checkFloor() == nil {
				task, what, err = taskMakeRoom, "make room", t.makeRoom(ctx)
			}
		}
		if err != nil && ctx.Err() == nil {
			t.journal.metrics.maintenanceErrors.WithLabelValues(task).Inc()
			t.journal.log.Warn("the journal could not "+what+"; it will try again", slog.Any("error", err))
		}
	}
}

// probe notes that the embedded etcd answers, which an idle owner would not know otherwise.
func (t *Term) probe(ctx context.Context) error {
	if t.lease != 0 {
		return nil // the renewal of the lease knows
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	_, err := t.journal.store.revision(ctx)
	if err == nil {
		t.journal.noteContact()
	}
	return err
}
