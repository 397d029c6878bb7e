package lifecycle

import (
	"cmp"
	"context"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// Match is how a change relates to a filter.
type Match uint8

// The relations.
const (
	MatchNone Match = iota
	MatchEntered
	MatchStayed
	MatchLeft
)

// matchOf returns how a change relates to a filter: an event is delivered if the instance
// matches before or after it.
func matchOf(f *instance.Filter, c *instance.Change) Match {
	before, after := f.Match(c.Before), f.Match(c.After)
	switch {
	case before && after:
		return MatchStayed
	case after:
		return MatchEntered
	case before:
		return MatchLeft
	}
	return MatchNone
}

// Watch is a subscription: a position in the journal and a filter. It is used by one
// goroutine and needs no closing.
type Watch struct {
	s          *Service
	principal  string
	filter     *instance.Filter
	interval   time.Duration
	onUnusable UnusableCursorPolicy

	reader *journal.Reader
	// snapshot is due before the reader is asked again.
	snapshot *Snapshot
}

// Watch returns a subscription that will deliver every change acknowledged from now on. It
// waits for a cursor that this process has not seen yet.
func (s *Service) Watch(ctx context.Context, caller Caller, req WatchRequest) (*Watch, error) {
	var c checker
	w := &Watch{
		s:          s,
		principal:  caller.Principal,
		filter:     c.filter("filter", req.Filter),
		interval:   c.duration("progress_interval", req.ProgressInterval, MinProgressInterval, MaxProgressInterval, DefaultProgress),
		onUnusable: req.OnUnusable,
	}
	if req.FromNow && req.AfterCursor != "" {
		c.add("from_now", "excludes after_cursor: set only one of them")
	}
	if req.OnUnusable > SnapshotOnUnusable {
		c.add("on_unusable_cursor", "is not a policy: want UNUSABLE_CURSOR_POLICY_FAIL or UNUSABLE_CURSOR_POLICY_SNAPSHOT")
	}
	if err := cmp.Or(c.err(), s.mayRead(caller)); err != nil {
		return nil, err
	}
	switch {
	case req.FromNow:
		w.reader = s.journal.Read(s.journal.Head()).For(w.principal)
	case req.AfterCursor == "":
		w.restart("")
	default:
		position, err := s.resolve(ctx, "after_cursor", req.AfterCursor)
		if err == nil {
			w.reader = s.journal.Read(position).For(w.principal)
		} else if !w.restartIfUnusable(err) {
			return nil, err
		}
	}
	return w, nil
}

// restart takes a snapshot and goes on behind it.
func (w *Watch) restart(reason string) {
	all := w.s.journal.Snapshot()
	w.snapshot = &Snapshot{Reason: reason, Records: all.Records}
	w.reader = w.s.journal.Read(all.Position).For(w.principal)
}

// restartIfUnusable restarts if the subscriber wants that for an unusable cursor, and the
// error says that the cursor is one.
func (w *Watch) restartIfUnusable(err error) bool {
	if w.onUnusable != SnapshotOnUnusable {
		return false
	}
	switch e := instance.AsError(err); e.Reason {
	case instance.ReasonCursorExpired, instance.ReasonCursorOfOtherLog, instance.ReasonCursorRolledBack, instance.ReasonCursorAhead:
		w.restart(e.Reason)
		return true
	}
	return false
}

// Next waits for the next item and returns it. Afterwards [Watch.Cursor] is behind it. An error
// of ctx leaves the watch unchanged.
func (w *Watch) Next(ctx context.Context) (WatchItem, error) {
	if w.snapshot == nil {
		batch, err := w.reader.Next(ctx)
		if err == nil {
			return WatchItem{Batch: batch}, nil
		}
		if !w.restartIfUnusable(err) {
			return WatchItem{}, err
		}
	}
	item := WatchItem{Snapshot: w.snapshot}
	w.snapshot = nil
	return item, nil
}

// Again returns the batch that [Watch.Next] returned last, for callers that do not keep it in
// memory meanwhile.
func (w *Watch) Again(ctx context.Context) (*Batch, error) { return w.reader.Again(ctx) }

// Cursor returns the position up to which everything was returned by [Watch.Next]. It is
// empty while a snapshot is still to come.
func (w *Watch) Cursor() string {
	if w.snapshot != nil {
		return ""
	}
	return w.s.journal.Cursor(w.reader.Position())
}

// Revision returns the revision up to which everything was returned by [Watch.Next], or that of
// the snapshot that is still to come.
func (w *Watch) Revision() uint64 { return w.reader.Position().Seq }

// LogID names the log that the cursors and revisions of this watch belong to.
func (w *Watch) LogID() string { return w.s.journal.LogID() }

// ProgressInterval is the longest time between two progress messages.
func (w *Watch) ProgressInterval() time.Duration { return w.interval }

// MatchesAll reports whether the watch has no filter.
func (w *Watch) MatchesAll() bool { return w.filter.Empty() }

// Match returns how a change relates to the filter of the watch.
func (w *Watch) Match(c *instance.Change) Match { return matchOf(w.filter, c) }

// Matches reports whether a record belongs to the snapshot of the watch.
func (w *Watch) Matches(r *Record) bool { return w.filter.Match(r.Instance) }
