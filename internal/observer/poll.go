package observer

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// poll has instances in transition described, soon after they changed and then ever less
// often, until ctx is done.
func (o *Observer) poll(ctx context.Context) {
	schedule := newPollSchedule(o.cfg.PollInterval)
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() {
		for {
			err := o.tailJournal(ctx, schedule)
			if ctx.Err() != nil {
				return
			}
			o.log.Warn("the journal cannot be followed; retrying", "error", err)
			select {
			case <-time.After(retryInterval):
			case <-ctx.Done():
				return
			}
		}
	})
	ticker := time.NewTicker(o.cfg.PollInterval / 2)
	defer ticker.Stop()
	defer o.polling.Rest()
	for {
		o.polling.Beat()
		select {
		case now := <-ticker.C:
			if ids := schedule.due(now); len(ids) > 0 {
				o.metrics.polls.Add(float64(len(ids)))
				o.refresher.request(ids...)
			}
		case <-ctx.Done():
			return
		}
	}
}

// tailJournal keeps the poll schedule and the recent states up to date with the journal, and
// logs what is recorded, until ctx is done or it is so far behind that it must start again.
func (o *Observer) tailJournal(ctx context.Context, schedule *pollSchedule) error {
	start := o.journal.Snapshot()
	schedule.reset()
	for _, r := range start.Records {
		schedule.update(r.Instance)
	}
	reader := o.journal.Read(start.Position)
	for {
		batch, err := reader.Next(ctx)
		if err != nil {
			return err
		}
		for i := range batch.Events {
			change := batch.Events[i].Change
			schedule.update(change.Subject())
			o.recentStates.add(change.Before)
			o.logChange(o.traceChange(ctx, change, batch.RecordedAt), batch.Position.Seq, change)
		}
	}
}

// logChange writes one line for a change: at info level for one of state, which is what commands
// are for, and at debug level for the others.
func (o *Observer) logChange(ctx context.Context, revision uint64, c *instance.Change) {
	level, message := slog.LevelInfo, "state change"
	if c.Type != instance.ChangeState {
		level, message = slog.LevelDebug, "change"
	}
	if !o.log.Enabled(ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 12)
	attrs = append(attrs, slog.String("instance_id", string(c.ID())))
	if c.Type == instance.ChangeState {
		attrs = append(attrs, slog.String("from", c.Before.State.String()), slog.String("to", c.After.State.String()))
	} else {
		attrs = append(attrs, slog.String("type", c.Type.String()), slog.String("state", c.Subject().State.String()))
	}
	if c.Cause.External() {
		attrs = append(attrs, slog.String("cause", "external"))
	} else {
		attrs = append(attrs, slog.String("cause", string(c.Cause.Verb)),
			slog.String("principal", c.Cause.Principal), slog.String("request_id", c.Cause.RequestID))
	}
	attrs = append(attrs, slog.String("source", c.Source.String()))
	if r := c.Subject().StateReason; r != nil {
		attrs = append(attrs, slog.String("reason", r.Code))
	}
	if c.Inferred {
		attrs = append(attrs, slog.Bool("inferred", true))
	}
	o.log.LogAttrs(ctx, level, message, append(attrs, slog.Uint64("revision", revision))...)
}
