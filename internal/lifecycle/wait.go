package lifecycle

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// Wait returns when each instance has reached one of the wanted states, or no longer
// can, or the time is over. It costs the backend nothing.
func (s *Service) Wait(ctx context.Context, _ Caller, req WaitRequest) (WaitResponse, error) {
	var c checker
	ids := c.ids("instance_ids", req.InstanceIDs, 1)
	c.states("states", req.States)
	if len(req.States) == 0 {
		c.add("states", "names no state: want at least one")
	}
	timeout := c.duration("timeout", req.Timeout, time.Nanosecond, MaxWait, DefaultWait)
	if req.Until > FirstFailure {
		c.add("until", "is not an end of a wait: want WAIT_UNTIL_ALL_SETTLED or WAIT_UNTIL_FIRST_FAILURE")
	}
	if err := c.err(); err != nil {
		return WaitResponse{}, err
	}
	waitCtx, cancel := context.WithTimeoutCause(ctx, timeout, errWaitOver)
	defer cancel()
	over := func() bool { return errors.Is(context.Cause(waitCtx), errWaitOver) && ctx.Err() == nil }
	after := s.journal.Head()
	if req.AfterCursor != "" {
		position, err := s.resolve(waitCtx, "after_cursor", req.AfterCursor)
		if err != nil && !over() {
			return WaitResponse{}, err
		}
		after = position
	}
	if err := s.mustKnow(waitCtx, ids); err != nil && !over() {
		return WaitResponse{}, err
	}
	head := s.journal.Head()
	w := &wait{s: s, wanted: req.States, until: req.Until, since: req.AfterCursor != "", results: make(map[instance.ID]*WaitResult, len(ids))}
	for _, id := range ids {
		w.results[id] = &WaitResult{ID: id}
	}
	w.open = len(ids)
	w.lookAtPresent()
	if err := w.readOn(waitCtx, s.journal.Read(after), head); err != nil {
		if !over() {
			return WaitResponse{}, err
		}
		w.close(TimedOut)
	}
	response := WaitResponse{Cursor: s.Cursor(), Results: make([]WaitResult, len(ids))}
	for i, id := range ids {
		r := w.results[id]
		if known, found := s.journal.Get(id); found {
			r.Instance = known.Instance
		}
		response.Results[i] = *r
	}
	return response, nil
}

var errWaitOver = errors.New("the wait is over")

// wait is a wait under way.
type wait struct {
	s      *Service
	wanted []instance.State
	until  WaitUntil
	// since is whether the wait is for the effect of a command, whose cursor was given.
	since   bool
	results map[instance.ID]*WaitResult
	// open counts the instances that are not settled, failed is whether one cannot
	// reach a wanted state any more.
	open   int
	failed bool
}

func (w *wait) over() bool {
	return w.open == 0 || (w.failed && w.until == FirstFailure)
}

// lookAtPresent settles what the present states decide.
func (w *wait) lookAtPresent() {
	for id, r := range w.results {
		known, found := w.s.journal.Get(id)
		if !found {
			continue
		}
		r.Instance = known.Instance
		w.see(r, known.Instance)
	}
}

// see settles an instance by a state that it is in.
func (w *wait) see(r *WaitResult, i *instance.Instance) {
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

// close gives all that are not settled an outcome.
func (w *wait) close(outcome WaitOutcome) {
	for _, r := range w.results {
		if r.Outcome == Unsettled {
			w.settle(r, outcome)
		}
	}
}

// readOn settles instances by the changes recorded after the reader's position. It does
// not end before head, so that what was recorded before the call counts whole.
func (w *wait) readOn(ctx context.Context, reader *journal.Reader, head journal.Position) error {
	for !w.over() || (w.open > 0 && reader.Position().Seq < head.Seq) {
		batch, err := reader.Next(ctx)
		if err != nil {
			return err
		}
		for i := range batch.Events {
			change := batch.Events[i].Change
			if r := w.results[change.ID()]; r != nil && r.Outcome == Unsettled {
				w.change(r, change, batch.Position.Seq <= head.Seq)
			}
		}
	}
	return nil
}

// change settles an instance by a recorded change. What was recorded before the call only
// tells what was reached, or that a start fell back; what became of the instance is seen
// at present.
func (w *wait) change(r *WaitResult, c *instance.Change, before bool) {
	switch {
	case c.After == nil && before:
	case c.After == nil && slices.Contains(w.wanted, instance.StateTerminated):
		r.Instance, r.ReachedState = c.Before, instance.StateTerminated
		w.settle(r, Reached)
	case c.After == nil:
		r.Instance = c.Before
		w.fail(r, c.Before)
	case slices.Contains(w.wanted, c.After.State) || !before:
		r.Instance = c.After
		w.see(r, c.After)
	}
	if r.Outcome == Unsettled && w.since && w.fellBack(c) {
		w.fail(r, c.After)
	}
}

// fellBack reports whether a change is the end of a start that did not succeed, by
// itself or because somebody stopped it, and what is wanted is what the start was for.
func (w *wait) fellBack(c *instance.Change) bool {
	return c.Before != nil && c.Before.State == instance.StatePending && c.After != nil &&
		(c.After.State == instance.StateStopped || c.After.State == instance.StateStopping) &&
		!slices.ContainsFunc(w.wanted, func(s instance.State) bool { return s != instance.StatePending && s != instance.StateRunning })
}
