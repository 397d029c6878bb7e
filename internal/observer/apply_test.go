package observer

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// newTerm returns an observer that never serves, and a term of its journal.
func newTerm(t *testing.T) (*Observer, *journal.Term) {
	t.Helper()
	j, err := journal.Open(t.Context(), journal.Config{DataDir: t.TempDir(), MinFreeDisk: -1, Address: "test", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	term, err := j.Campaign(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return New(Config{Journal: j}), term
}

func imageOf(state instance.State) *instance.Instance {
	return &instance.Instance{ID: trackedX, State: state, Type: "t3.micro", LaunchTime: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
}

// A command to which a failed update attributed a step can still be the cause of what is
// recorded.
func TestAFailedUpdateLeavesACommandACandidate(t *testing.T) {
	o, term := newTerm(t)
	if _, err := o.update(t.Context(), term, func(u *updateTx) error {
		u.reduce(trackedX, imageOf(instance.StateStopped), time.Time{}, instance.SourceReconcile, nil)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	command := o.tracker.send([]instance.ID{trackedX}, instance.Cause{Principal: "starter", Verb: instance.VerbStart}, journal.Position{})
	started := func(u *updateTx) {
		u.reduce(trackedX, imageOf(instance.StatePending), time.Time{}, instance.SourceReconcile, o.tracker.possibleCauses(trackedX, time.Time{}, time.Now()))
	}
	failed := errors.New("failed on purpose")
	if _, err := o.update(t.Context(), term, func(u *updateTx) error { started(u); return failed }); !errors.Is(err, failed) {
		t.Fatalf("the update ended with %v", err)
	}
	if _, err := o.update(t.Context(), term, func(u *updateTx) error { started(u); return nil }); err != nil {
		t.Fatal(err)
	}
	known, _ := o.journal.Get(trackedX)
	if known.Cause.Principal != "starter" {
		t.Errorf("the cause of the start is %+v", known.Cause)
	}
	if left := o.tracker.possibleCauses(trackedX, time.Time{}, time.Now()); len(left) != 0 {
		t.Errorf("it is a candidate for more: %+v", left)
	}
	command.finish()
}

// A change that could not be recorded is recorded before a later notice, and before the answer
// to a later command.
func TestUnrecordedChangesAreRecordedFirst(t *testing.T) {
	for name, later := range map[string]func(*Observer, *journal.Term, time.Time) error{
		"before a notice": func(o *Observer, term *journal.Term, at time.Time) error {
			n := instance.Notice{ID: trackedX, State: instance.StateStopping, Instance: imageOf(instance.StateStopping), OccurredAt: at, Source: instance.SourceSimulator}
			_, err := o.update(t.Context(), term, func(u *updateTx) error { u.applyNotices(nil, []instance.Notice{n}); return nil })
			return err
		},
		"before an answer": func(o *Observer, term *journal.Term, at time.Time) error {
			change := instance.StateChange{ID: trackedX, Previous: instance.StateRunning, Current: instance.StateStopping, At: at}
			command := o.tracker.send([]instance.ID{trackedX}, instance.Cause{Verb: instance.VerbStop}, journal.Position{})
			defer command.finish()
			result := &Result{Changes: []instance.StateChange{change}}
			return o.recordAnswers(t.Context(), term, command, command.markAnswered(result.Changes), result, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			o, term := newTerm(t)
			if _, err := o.update(t.Context(), term, func(u *updateTx) error {
				u.reduce(trackedX, imageOf(instance.StateStopped), time.Now().Add(-time.Minute), instance.SourceReconcile, nil)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			began := o.journal.Head()
			command := o.tracker.send([]instance.ID{trackedX}, instance.Cause{Principal: "starter", Verb: instance.VerbStart}, journal.Position{})
			command.markAnswered([]instance.StateChange{{ID: trackedX, Previous: instance.StateStopped, Current: instance.StatePending, At: time.Now()}})
			command.markUnrecorded()
			command.finish()
			if err := later(o, term, time.Now().Add(time.Second)); err != nil {
				t.Fatal(err)
			}
			page, err := o.journal.History(t.Context(), "", nil, began, 10)
			if err != nil || len(page.Entries) == 0 {
				t.Fatalf("%d changes, %v", len(page.Entries), err)
			}
			if c := page.Entries[0].Change; c.After.State != instance.StatePending || c.Cause.Principal != "starter" || c.Inferred {
				t.Errorf("first comes %s -> %s by %q, inferred %v", c.Before.State, c.After.State, c.Cause.Principal, c.Inferred)
			}
		})
	}
}

func TestUnresolvedCommandsAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTracker()
		lose := func(c *inflightCommand) {
			c.markUnknown(map[instance.ID]bool{trackedX: true})
			c.finish()
		}
		left := func() int {
			if tr.tracks[trackedX] == nil {
				return 0
			}
			return len(tr.tracks[trackedX].unresolved)
		}

		lose(tr.start(trackedX))
		asked := time.Now().Add(time.Second)
		time.Sleep(2 * time.Second)
		lose(tr.start(trackedX))
		if left() != 2 {
			t.Fatalf("%d commands are remembered, want 2", left())
		}
		if tr.dropResolved(trackedX, asked); left() != 1 {
			t.Errorf("%d commands are remembered after a description before the second, want that one", left())
		}
		if tr.dropResolved(trackedX, time.Now()); len(tr.tracks) != 0 {
			t.Errorf("%d instances are remembered after the only one was described", len(tr.tracks))
		}

		before := tr.start(trackedX)
		time.Sleep(time.Second)
		lose(tr.start(trackedX))
		if tr.dropUnresolved(); left() != 0 {
			t.Errorf("%d commands are remembered of before the backend was set to what is known", left())
		}
		if lose(before); len(tr.tracks) != 0 {
			t.Error("one that began before that is remembered when it ends")
		}
	})
}

// Of two callers who wanted the same, the recorded cause is told of the change, whichever of
// them the backend told of it.
func TestTheRecordedCauseIsToldOfTheChange(t *testing.T) {
	o, term := newTerm(t)
	if _, err := o.update(t.Context(), term, func(u *updateTx) error {
		u.reduce(trackedX, imageOf(instance.StateStopped), time.Now().Add(-time.Minute), instance.SourceReconcile, nil)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	named := o.tracker.send([]instance.ID{trackedX}, instance.Cause{Principal: "named", Verb: instance.VerbStart}, o.journal.Head())
	other := o.tracker.send([]instance.ID{trackedX}, instance.Cause{Principal: "other", Verb: instance.VerbStart}, o.journal.Head())
	now := time.Now()
	n := instance.Notice{ID: trackedX, State: instance.StatePending, Instance: imageOf(instance.StatePending), OccurredAt: now, Source: instance.SourceSimulator}
	if _, err := o.update(t.Context(), term, func(u *updateTx) error { u.applyNotices(nil, []instance.Notice{n}); return nil }); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		command *inflightCommand
		answer  instance.State // as which the backend says that it found the instance
		told    instance.State
	}{
		{other, instance.StateStopped, instance.StatePending},
		{named, instance.StatePending, instance.StateStopped},
	} {
		result := &Result{Changes: []instance.StateChange{{ID: trackedX, Previous: tc.answer, Current: instance.StatePending, At: now}}}
		if err := o.recordAnswers(t.Context(), term, tc.command, tc.command.markAnswered(result.Changes), result, nil); err != nil {
			t.Fatal(err)
		}
		tc.command.finish()
		if got := result.Changes[0]; got.Previous != tc.told || got.Current != instance.StatePending {
			t.Errorf("%s is told %v -> %v, want %v -> pending", tc.command.cause.Principal, got.Previous, got.Current, tc.told)
		}
	}
}

// A change that was described while the command was in flight is recorded once, although its
// answer, from a request that was repeated, dates it later.
func TestAnAnswerThatComesAfterItsStepWasRecordedAddsNothing(t *testing.T) {
	for _, state := range []instance.State{instance.StatePending, instance.StateRunning} {
		t.Run(state.String(), func(t *testing.T) {
			o, term := newTerm(t)
			update := func(write func(*updateTx)) {
				t.Helper()
				if _, err := o.update(t.Context(), term, func(u *updateTx) error { write(u); return nil }); err != nil {
					t.Fatal(err)
				}
			}
			update(func(u *updateTx) {
				u.reduce(trackedX, imageOf(instance.StateStopped), time.Now().Add(-time.Minute), instance.SourceReconcile, nil)
			})
			command := o.tracker.send([]instance.ID{trackedX}, instance.Cause{Principal: "starter", Verb: instance.VerbStart}, o.journal.Head())
			update(func(u *updateTx) {
				u.reduce(trackedX, imageOf(state), time.Time{}, instance.SourceReconcile, o.tracker.possibleCauses(trackedX, time.Time{}, time.Now()))
			})
			described := o.journal.Head()
			result := &Result{Changes: []instance.StateChange{{ID: trackedX, Previous: instance.StateStopped, Current: instance.StatePending, At: time.Now()}}}
			if err := o.recordAnswers(t.Context(), term, command, command.markAnswered(result.Changes), result, nil); err != nil {
				t.Fatal(err)
			}
			command.finish()
			if got := result.Changes[0]; got.Previous != instance.StateStopped || got.Current != instance.StatePending {
				t.Errorf("the caller is told %v -> %v, want stopped -> pending", got.Previous, got.Current)
			}
			page, err := o.journal.History(t.Context(), "", []instance.ID{trackedX}, described, 10)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range page.Entries {
				t.Errorf("%v -> %v is recorded after the answer", e.Change.Before.State, e.Change.After.State)
			}
		})
	}
}

// A command whose outcome the backend does not know is answered with the steps that are
// attributed to it.
func TestAnOutcomeThatIsRecordedIsNotUnknown(t *testing.T) {
	unknown := &instance.Error{Kind: instance.KindUnavailable, Message: "no response", OutcomeUnknown: true}
	for name, result := range map[string]instance.Result{
		"of a whole call":        {},
		"of a per-instance call": {Failures: []instance.Failure{{ID: trackedX, Err: unknown}, {ID: trackedY, Err: unknown}}},
	} {
		t.Run(name, func(t *testing.T) {
			var failed error
			if result.Failures == nil {
				failed = unknown
			}
			c := newTracker().start(trackedX, trackedY)
			at := time.Now()
			c.on[0].attribute(&recordedStep{instance.StateStopped, instance.StatePending, at})
			got, err := c.withRecordedSteps(result, failed)
			want := instance.StateChange{ID: trackedX, Previous: instance.StateStopped, Current: instance.StatePending, At: at}
			if len(got.Changes) != 1 || got.Changes[0] != want || !errors.Is(err, failed) || failed == nil && (len(got.Failures) != 1 || got.Failures[0].ID != trackedY) {
				t.Errorf("of one of two instances: %+v, %v", got, err)
			}
			c.on[1].attribute(&recordedStep{instance.StateStopped, instance.StatePending, at})
			if got, err = c.withRecordedSteps(result, failed); len(got.Changes) != 2 || len(got.Failures) != 0 || err != nil {
				t.Errorf("of both: %+v, %v", got, err)
			}
		})
	}
}

// A command that found an instance in a state is not the cause of that state.
func TestAnAnsweredCommandCausesNothingElse(t *testing.T) {
	tr := newTracker()
	c := tr.start(trackedX)
	candidates := tr.possibleCauses(trackedX, time.Time{}, time.Now())
	c.markAnswered(found(instance.StatePending, time.Now()))
	if len(candidates) != 1 || candidates[0].attribute(&recordedStep{}) {
		t.Error("a command is made the cause of a step after it said that it changed nothing")
	}
}

// A failed update gives a command back its earlier step, unless a later update has attributed
// another one to it meanwhile.
func TestAFailedUpdateRestoresTheStepOfACommand(t *testing.T) {
	o, term := newTerm(t)
	c := o.tracker.track([]instance.ID{trackedX}, instance.Cause{Verb: instance.VerbStart}, journal.Position{})
	on := c.markAnswered([]instance.StateChange{{ID: trackedX, Previous: instance.StateStopped, Current: instance.StatePending, At: time.Now()}})[0]
	attribute := func(u *updateTx, to instance.State) {
		u.attribute(causeCandidate{commandOnInstance: on}, recordedStep{to: to})
	}
	if _, err := o.update(t.Context(), term, func(u *updateTx) error { attribute(u, instance.StatePending); return nil }); err != nil {
		t.Fatal(err)
	}
	failed := errors.New("failed on purpose")
	if _, err := o.update(t.Context(), term, func(u *updateTx) error {
		attribute(u, instance.StateRunning)
		attribute(u, instance.StateStopping)
		return failed
	}); !errors.Is(err, failed) {
		t.Fatalf("the update ended with %v", err)
	}
	if step := on.step.Load(); step == nil || step.to != instance.StatePending {
		t.Errorf("the command has the step %+v after the failed update, want the one to pending", step)
	}
	var early, late updateTx
	attribute(&early, instance.StateRunning)
	attribute(&late, instance.StateStopped)
	if early.undo(); on.step.Load().to != instance.StateStopped {
		t.Errorf("the command has the step to %v, want that of the later update", on.step.Load().to)
	}
	c.finish()
}
