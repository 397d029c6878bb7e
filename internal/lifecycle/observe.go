package lifecycle

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// mostNotices is how many notices are recorded together.
const mostNotices = 512

// hear records what the backend says by itself. Notices are a reason to look: one
// that is newer than what is known and follows from it directly is believed, every
// other one that is news makes the looker ask the backend.
func (s *Service) hear(ctx context.Context, term *journal.Term) {
	notices := make(chan instance.Notice, mostNotices)
	go func() {
		defer close(notices)
		for n, err := range s.backend.Notices(ctx) {
			if err != nil {
				s.log.Warn("notices of the backend cannot be received; instances are polled meanwhile", "error", err)
				continue
			}
			select {
			case notices <- n:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		var again <-chan time.Time
		if s.tracker.holdsNotices() {
			again = time.After(maxHold / 4)
		}
		var batch []instance.Notice
		select {
		case n, ok := <-notices:
			if !ok {
				return
			}
			batch = drain(notices, append(batch, n))
		case <-s.tracker.wake:
			s.looker.retry(s.tracker.takeDescribable())
		case <-again:
			s.tracker.expire()
		}
		s.recordNotices(ctx, term, s.tracker.admit(batch))
	}
}

// drain adds the notices that are there already.
func drain(notices <-chan instance.Notice, batch []instance.Notice) []instance.Notice {
	for len(batch) < mostNotices {
		select {
		case n, ok := <-notices:
			if !ok {
				return batch
			}
			batch = append(batch, n)
		default:
			return batch
		}
	}
	return batch
}

// recordNotices records a batch of notices and acknowledges them.
func (s *Service) recordNotices(ctx context.Context, term *journal.Term, batch []instance.Notice) {
	ready := batch[:0]
	for _, n := range batch {
		if known, found := s.journal.Get(n.ID); found && weigh(known, n) == oldNews {
			n.Ack()
			continue
		}
		ready = append(ready, n)
	}
	if len(ready) == 0 {
		return
	}
	var weights []weight
	_, err := s.update(ctx, term, func(r *recording) error {
		weights = weights[:0]
		for _, n := range ready {
			weights = append(weights, s.recordNotice(r, n))
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		s.log.Warn("notices could not be recorded; their instances are looked at again", "count", len(ready), "error", err)
	}
	for i, n := range ready {
		if err != nil {
			s.looker.requestFor(n)
		} else {
			s.recorded(n, weights[i])
		}
	}
}

// recordNotice records one notice, if it follows directly from what is known.
func (s *Service) recordNotice(r *recording, n instance.Notice) weight {
	s.recordUnrecorded(r, n.ID, n.OccurredAt, nil)
	known, found := r.Get(n.ID)
	w := needsLook
	switch {
	case found:
		w = weigh(known, n)
	case n.Instance != nil:
		w = followsDirectly
	}
	if w == followsDirectly {
		image := n.Instance
		if image == nil {
			image = entered(known.Instance, n.State, n.OccurredAt)
		}
		after := n.OccurredAt.Add(-lateness)
		if known.ChangedAt.After(after) {
			after = known.ChangedAt
		}
		reduce(r, sighting{
			image:      image,
			occurredAt: n.OccurredAt,
			source:     n.Source,
			candidates: s.tracker.possibleCauses(n.ID, after, n.OccurredAt.Add(resolution(n))),
		})
	}
	return w
}

// recorded acknowledges a notice, or asks the backend about it first.
func (s *Service) recorded(n instance.Notice, w weight) {
	if w == needsLook {
		s.looker.requestFor(n)
		return
	}
	if w == followsDirectly && n.Instance == nil {
		s.looker.request(n.ID)
	}
	n.Ack()
}

// weight says what a notice is worth, given what is known.
type weight uint8

const (
	// oldNews was known, or was overtaken by what is known.
	oldNews weight = iota
	// followsDirectly is what comes next.
	followsDirectly
	// needsLook may be either; the backend has to be asked.
	needsLook
)

func weigh(known journal.Record, n instance.Notice) weight {
	sure := n.OccurredAt.After(known.ChangedAt)
	switch {
	// EventBridge gives whole seconds, so that within a second nothing is certain.
	case !sure && (resolution(n) < time.Second || n.OccurredAt.Before(known.ChangedAt.Truncate(time.Second))):
		return oldNews
	case n.Instance != nil && known.Instance.Equal(n.Instance):
		return oldNews
	case !sure:
		return needsLook
	case n.Instance != nil && n.State == known.Instance.State:
		return followsDirectly
	case instance.CanFollow(known.Instance.State, n.State):
		return followsDirectly
	}
	return needsLook
}

// resolution is how exact the time of a notice is.
func resolution(n instance.Notice) time.Duration {
	if n.Source == instance.SourceEventBridge {
		return time.Second
	}
	return time.Nanosecond
}

// poll looks at instances in transition of which nothing was heard, soon after they
// changed and then ever more seldom.
func (s *Service) poll(ctx context.Context) {
	plan := &pollPlan{every: s.cfg.PollInterval}
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() {
		for {
			err := s.follow(ctx, plan)
			if ctx.Err() != nil {
				return
			}
			s.log.Warn("the journal cannot be followed; trying again", "error", err)
			select {
			case <-time.After(retryLook):
			case <-ctx.Done():
				return
			}
		}
	})
	ticker := time.NewTicker(s.cfg.PollInterval / 2)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			if ids := plan.turn(now); len(ids) > 0 {
				s.looker.request(ids...)
			}
		case <-ctx.Done():
			return
		}
	}
}

// follow keeps a plan up to date with the journal, and logs what is recorded, until ctx
// is done, or until it has fallen so far behind that it must begin again.
func (s *Service) follow(ctx context.Context, plan *pollPlan) error {
	start := s.journal.Snapshot()
	plan.reset()
	for _, r := range start.Records {
		plan.note(r.Instance)
	}
	reader := s.journal.Read(start.Position)
	for {
		batch, err := reader.Next(ctx)
		if err != nil {
			return err
		}
		for i := range batch.Events {
			change := batch.Events[i].Change
			plan.note(change.Subject())
			s.past.note(change.Before)
			s.logChange(ctx, change)
		}
	}
}

// logChange writes one line for a change of state.
func (s *Service) logChange(ctx context.Context, c *instance.Change) {
	if c.Type != instance.ChangeState || !s.log.Enabled(ctx, slog.LevelInfo) {
		return
	}
	attrs := []slog.Attr{
		slog.String("instance_id", string(c.After.ID)),
		slog.String("from", c.Before.State.String()),
		slog.String("to", c.After.State.String()),
	}
	if c.Cause.External() {
		attrs = append(attrs, slog.String("cause", "external"))
	} else {
		attrs = append(attrs, slog.String("cause", string(c.Cause.Verb)),
			slog.String("principal", c.Cause.Principal), slog.String("request_id", c.Cause.RequestID))
	}
	if r := c.After.StateReason; r != nil {
		attrs = append(attrs, slog.String("reason", r.Code))
	}
	if c.Inferred {
		attrs = append(attrs, slog.Bool("inferred", true))
	}
	s.log.LogAttrs(ctx, slog.LevelInfo, "state change", attrs...)
}

// pollPlan says when which instance in transition is to be looked at next.
type pollPlan struct {
	every time.Duration
	mu    sync.Mutex
	due   map[instance.ID]pollTurn
}

type pollTurn struct {
	at    time.Time
	delay time.Duration
}

func (p *pollPlan) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.due = make(map[instance.ID]pollTurn)
}

func (p *pollPlan) note(i *instance.Instance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !i.State.Transitional() {
		delete(p.due, i.ID)
		return
	}
	p.due[i.ID] = pollTurn{at: time.Now().Add(p.every), delay: p.every}
}

func (p *pollPlan) turn(now time.Time) (ids []instance.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, t := range p.due {
		if t.at.After(now) {
			continue
		}
		ids = append(ids, id)
		t.delay = min(2*t.delay, 8*p.every)
		t.at = now.Add(t.delay)
		p.due[id] = t
	}
	return ids
}

// reconcileRegularly compares everything with the backend: at once, again when all that an
// earlier owner sent has arrived, and then at the interval, a little varied so that
// processes do not keep step.
func (s *Service) reconcileRegularly(ctx context.Context) {
	arrived := time.Now().Add(s.cfg.CallTimeout)
	for {
		began := time.Now()
		delay := s.cfg.ReconcileInterval + rand.N(s.cfg.ReconcileInterval/10+1) //nolint:gosec // jitter
		if err := s.reconcile(ctx, cautious); err != nil {
			if ctx.Err() != nil {
				return
			}
			s.log.Warn("the journal could not be compared with the backend; trying again", "error", err)
			delay = min(delay, 5*time.Second)
			if s.journal.Stats().Instances > 0 {
				s.becomeReady() // what was known before is better than nothing
			}
		} else {
			s.becomeReady()
		}
		if began.Before(arrived) { // what arrived after it began may be missing, however long it took
			delay = min(delay, time.Until(arrived))
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return
		}
	}
}

// reconcile compares everything with the backend, page by page, and records the
// differences.
func (s *Service) reconcile(ctx context.Context, how trust) error {
	began := time.Now().UTC()
	seen := make(map[instance.ID]struct{})
	var again []instance.ID
	query := instance.DescribeQuery{All: true, PageSize: MaxPageSize}
	for {
		asked := s.fence()
		describing, cancel := context.WithTimeout(ctx, describeTimeout)
		page, err := s.backend.Describe(describing, query)
		cancel()
		if err != nil {
			return unanswered(err)
		}
		s.noteUnreadable(page)
		for id := range page.Unreadable {
			seen[id] = struct{}{}
		}
		descriptions := make([]description, len(page.Instances))
		for i, image := range page.Instances {
			seen[image.ID] = struct{}{}
			descriptions[i] = description{id: image.ID, image: image, trust: how}
		}
		verdicts, err := s.recordDescriptions(ctx, asked, descriptions)
		if err != nil {
			return err
		}
		for i, v := range verdicts {
			if v != believed {
				again = append(again, descriptions[i].id)
			}
		}
		if page.NextPageToken == "" {
			break
		}
		query.PageToken = page.NextPageToken
	}
	s.unreadable.keep(seen)
	for _, r := range s.journal.Snapshot().Records {
		if _, ok := seen[r.Instance.ID]; !ok {
			again = append(again, r.Instance.ID)
		}
	}
	if how == certain {
		if err := s.looker.look(ctx, again, certain); err != nil {
			return err
		}
	} else {
		s.looker.request(again...)
	}
	s.lastReconciled.Store(&began)
	return nil
}

// Refresh looks at instances at the backend now and records what is seen, for callers
// who have just changed them there. The cursor is behind what was recorded. While the
// backend or the journal does not respond it tries again, until ctx or 30 seconds are
// over; the error is then that of the last attempt.
func (s *Service) Refresh(ctx context.Context, ids []instance.ID) (cursor string, err error) {
	return s.retryRecord(ctx, func(ctx context.Context) error {
		return s.looker.look(ctx, ids, cautious)
	})
}

// Reconcile compares everything with the backend now, for callers who have just set it
// to something else: however surprising, what it describes is believed. It retries as
// Refresh does.
func (s *Service) Reconcile(ctx context.Context) (cursor string, err error) {
	return s.retryRecord(ctx, func(ctx context.Context) error {
		return s.reconcile(ctx, certain)
	})
}

// retryRecord calls record, which records what the backend describes, until it succeeds,
// fails for good, or the time that recording may take is over.
func (s *Service) retryRecord(ctx context.Context, record func(context.Context) error) (cursor string, err error) {
	ctx, cancel := context.WithTimeout(ctx, recordTime(ctx))
	defer cancel()
	for {
		if _, notOwner := s.owner(); notOwner != nil {
			return "", notOwner
		}
		failed := record(ctx)
		if failed == nil {
			return s.Cursor(), nil
		}
		if err == nil || ctx.Err() == nil { // else the attempt before says why time ran out
			err = failed
		}
		if !transient(err) {
			return "", err
		}
		select {
		case <-time.After(retryLook):
		case <-ctx.Done():
			return "", err
		}
	}
}

// transient reports whether what failed may succeed by itself when it is tried again.
func transient(err error) bool {
	e, ok := errors.AsType[*instance.Error](err)
	return ok && e.Kind == instance.KindUnavailable
}
