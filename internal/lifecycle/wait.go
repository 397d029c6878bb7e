package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// Wait returns when each instance has reached one of the wanted states or no longer can, or
// at the timeout. It does not call the backend.
func (s *Service) Wait(ctx context.Context, caller Caller, req WaitRequest) (WaitResponse, error) {
	var c checker
	ids := c.ids("instance_ids", req.InstanceIDs, 1)
	c.states("states", req.States)
	if len(req.States) == 0 {
		c.add("states", "names no state: want at least one")
	}
	timeout := c.duration("timeout", req.Timeout, time.Nanosecond, MaxWait, DefaultWait)
	if req.Until > FirstFailure {
		c.add("until", "is not a condition to end a wait: want WAIT_UNTIL_ALL_SETTLED or WAIT_UNTIL_FIRST_FAILURE")
	}
	if err := cmp.Or(c.err(), s.mayRead(caller)); err != nil {
		return WaitResponse{}, err
	}
	s.metrics.waits.Inc()
	defer s.metrics.waits.Dec()
	waitCtx, cancel := context.WithTimeoutCause(ctx, timeout, errWaitOver)
	defer cancel()
	over := func() bool { return errors.Is(context.Cause(waitCtx), errWaitOver) && ctx.Err() == nil }
	after := s.journal.Head()
	if req.AfterCursor != "" {
		position, err := s.resolve(waitCtx, "after_cursor", req.AfterCursor)
		switch {
		case err != nil && over():
			return timedOut(ids, req.AfterCursor), nil
		case err != nil:
			return WaitResponse{}, err
		}
		after = position
	}
	if err := s.requireKnown(waitCtx, caller.Principal, ids); err != nil && !over() {
		return WaitResponse{}, err
	}
	head := s.journal.Head()
	w := &wait{s: s, wanted: req.States, until: req.Until, afterCommand: req.AfterCursor != "", results: make(map[instance.ID]*WaitResult, len(ids))}
	for _, id := range ids {
		w.results[id] = &WaitResult{ID: id}
	}
	w.open = len(ids)
	w.checkCurrent()
	reader := s.journal.ReadOf(ids, after).For(caller.Principal)
	defer reader.Close()
	if err := w.readUntilSettled(waitCtx, reader, head); err != nil {
		if !over() {
			return WaitResponse{}, err
		}
		w.readUpTo(ctx, reader, s.journal.Head(), head)
		w.settleAll(TimedOut)
		head = reader.Position()
	}
	if reader.Position().Seq > head.Seq {
		head = reader.Position()
	}
	response := WaitResponse{Cursor: s.journal.Cursor(head), Results: make([]WaitResult, len(ids))}
	for i, id := range ids {
		response.Results[i] = *w.results[id]
	}
	return response, nil
}

// timedOut is the response of a process that did not see the cursor in time: what it knows of
// the instances is older.
func timedOut(ids []instance.ID, cursor string) WaitResponse {
	response := WaitResponse{Cursor: cursor, Results: make([]WaitResult, len(ids))}
	for i, id := range ids {
		response.Results[i] = WaitResult{ID: id, Outcome: TimedOut}
	}
	return response
}

// maxCatchUp is how long a wait whose time is over may go on reading what was recorded in time.
const maxCatchUp = time.Second

var errWaitOver = errors.New("the wait is over")

// wait is a wait in progress.
type wait struct {
	s      *Service
	wanted []instance.State
	until  WaitUntil
	// afterCommand is whether the wait is for the effect of a command, whose cursor was given.
	afterCommand bool
	results      map[instance.ID]*WaitResult
	// open counts the instances that are not settled; failed is whether one can no longer
	// reach a wanted state.
	open   int
	failed bool
}

func (w *wait) over() bool {
	return w.open == 0 || (w.failed && w.until == FirstFailure)
}

// checkCurrent settles the instances whose present state decides.
func (w *wait) checkCurrent() {
	for id, r := range w.results {
		known, found := w.s.journal.Get(id)
		if !found {
			continue
		}
		r.Instance = known.Instance
		w.checkState(r, known.Instance)
	}
}

// checkState settles an instance if a state that it is in decides.
func (w *wait) checkState(r *WaitResult, i *instance.Instance) {
	switch {
	case slices.Contains(w.wanted, i.State):
		r.ReachedState = i.State
		w.settle(r, Reached)
	case !slices.ContainsFunc(w.wanted, func(s instance.State) bool { return instance.Reachable(i.State, s) }):
		w.fail(r, i)
	}
}

func (w *wait) settle(r *WaitResult, outcome WaitOutcome) {
	r.Outcome = outcome
	w.open--
	w.failed = w.failed || outcome == Unreachable
}

func (w *wait) fail(r *WaitResult, i *instance.Instance) {
	r.Reason = i.StateReason
	w.settle(r, Unreachable)
}

// settleAll gives all instances that are not settled an outcome.
func (w *wait) settleAll(outcome WaitOutcome) {
	for _, r := range w.results {
		if r.Outcome == Unsettled {
			w.settle(r, outcome)
		}
	}
}

// readUntilSettled settles instances by the changes recorded after the reader's position. It
// reads at least up to head, so that all that was recorded before the call counts.
func (w *wait) readUntilSettled(ctx context.Context, reader *journal.Reader, head journal.Position) error {
	for !w.over() || (w.open > 0 && reader.Position().Seq < head.Seq) {
		if err := w.next(ctx, reader, head); err != nil {
			return err
		}
	}
	return nil
}

// readUpTo settles instances by what was recorded in time, up to a position. It takes at most
// [maxCatchUp], since the caller's time is over.
func (w *wait) readUpTo(ctx context.Context, reader *journal.Reader, end, head journal.Position) {
	ctx, cancel := context.WithTimeout(ctx, maxCatchUp)
	defer cancel()
	for w.open > 0 && reader.Position().Seq < end.Seq {
		if w.next(ctx, reader, head) != nil {
			return // the cursor of the response says how far it came
		}
	}
}

// next settles instances by the next batch.
func (w *wait) next(ctx context.Context, reader *journal.Reader, head journal.Position) error {
	batch, err := reader.Next(ctx)
	if err != nil {
		return err
	}
	before := batch.Position.Seq <= head.Seq
	for i := range batch.Events {
		change := batch.Events[i].Change
		r := w.results[change.ID()]
		if r == nil {
			continue
		}
		if r.Outcome == Unsettled {
			w.checkChange(r, change, before)
		}
		if !before {
			r.Instance = change.Subject()
		}
	}
	return nil
}

// checkChange settles an instance if a recorded change decides. A change from before the call
// only shows that a state was reached, or that a start fell back; otherwise the present state
// decides.
func (w *wait) checkChange(r *WaitResult, c *instance.Change, before bool) {
	switch {
	case c.After == nil && before:
	case c.After == nil && slices.Contains(w.wanted, instance.StateTerminated):
		r.ReachedState = instance.StateTerminated
		w.settle(r, Reached)
	case c.After == nil:
		w.fail(r, c.Before)
	case slices.Contains(w.wanted, c.After.State) || !before:
		w.checkState(r, c.After)
	}
	if r.Outcome == Unsettled && w.afterCommand && w.fellBack(c) {
		w.fail(r, c.After)
	}
}

// fellBack reports whether a change is the end of a start that failed, or that somebody
// stopped, and a start leads to the wanted states.
func (w *wait) fellBack(c *instance.Change) bool {
	return c.Before != nil && c.Before.State == instance.StatePending && c.After != nil &&
		(c.After.State == instance.StateStopped || c.After.State == instance.StateStopping) &&
		!slices.ContainsFunc(w.wanted, func(s instance.State) bool { return s != instance.StatePending && s != instance.StateRunning })
}
