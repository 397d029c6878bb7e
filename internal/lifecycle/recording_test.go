package lifecycle

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

// aTerm returns a service that is never run, and a term of its journal.
func aTerm(t *testing.T) (*Service, *journal.Term) {
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

// A command that was taken for the cause of what is not recorded after all, because the
// update failed, may still be that of what is.
func TestACommandIsNotUsedUpByWhatIsNotRecorded(t *testing.T) {
	s, term := aTerm(t)
	if _, err := s.update(t.Context(), term, func(r *recording) error {
		reduce(r, sighting{image: imageOf(instance.StateStopped)})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	fl := s.tracker.send([]instance.ID{trackedX}, instance.Cause{Principal: "starter", Verb: instance.VerbStart}, journal.Position{})
	started := func(r *recording) {
		reduce(r, sighting{image: imageOf(instance.StatePending), candidates: s.tracker.possibleCauses(trackedX, time.Time{}, time.Now())})
	}
	failed := errors.New("it is not to be")
	if _, err := s.update(t.Context(), term, func(r *recording) error { started(r); return failed }); !errors.Is(err, failed) {
		t.Fatalf("the update ended with %v", err)
	}
	if _, err := s.update(t.Context(), term, func(r *recording) error { started(r); return nil }); err != nil {
		t.Fatal(err)
	}
	known, _ := s.journal.Get(trackedX)
	if known.Cause.Principal != "starter" {
		t.Errorf("the cause of the start is %+v", known.Cause)
	}
	if left := s.tracker.possibleCauses(trackedX, time.Time{}, time.Now()); len(left) != 0 {
		t.Errorf("it is suspected of more: %+v", left)
	}
	fl.end()
}

// What a command had done when nothing could be recorded comes before what is heard of
// later, and before what a later command did.
func TestWhatIsOwedIsRecordedFirst(t *testing.T) {
	for name, later := range map[string]func(*Service, *journal.Term, time.Time) error{
		"before a notice": func(s *Service, term *journal.Term, at time.Time) error {
			n := instance.Notice{ID: trackedX, State: instance.StateStopping, Instance: imageOf(instance.StateStopping), OccurredAt: at, Source: instance.SourceSimulator}
			_, err := s.update(t.Context(), term, func(r *recording) error { s.recordNotice(r, n); return nil })
			return err
		},
		"before an answer": func(s *Service, term *journal.Term, at time.Time) error {
			change := instance.StateChange{ID: trackedX, Previous: instance.StateRunning, Current: instance.StateStopping, At: at}
			command := s.tracker.send([]instance.ID{trackedX}, instance.Cause{Verb: instance.VerbStop}, journal.Position{})
			defer command.end()
			response := &CommandResponse{Changes: []instance.StateChange{change}}
			_, err := s.record(t.Context(), term, command, answer{response: response, on: command.answer(response.Changes)})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, term := aTerm(t)
			if _, err := s.update(t.Context(), term, func(r *recording) error {
				reduce(r, sighting{image: imageOf(instance.StateStopped), occurredAt: time.Now().Add(-time.Minute)})
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			began := s.journal.Head()
			fl := s.tracker.send([]instance.ID{trackedX}, instance.Cause{Principal: "starter", Verb: instance.VerbStart}, journal.Position{})
			fl.answer([]instance.StateChange{{ID: trackedX, Previous: instance.StateStopped, Current: instance.StatePending, At: time.Now()}})
			fl.markUnrecorded()
			fl.end()
			if err := later(s, term, time.Now().Add(time.Second)); err != nil {
				t.Fatal(err)
			}
			page, err := s.journal.History(t.Context(), "", nil, began, 10)
			if err != nil || len(page.Entries) == 0 {
				t.Fatalf("%d changes, %v", len(page.Entries), err)
			}
			if c := page.Entries[0].Change; c.After.State != instance.StatePending || c.Cause.Principal != "starter" || c.Inferred {
				t.Errorf("first comes %s -> %s by %q, inferred %v", c.Before.State, c.After.State, c.Cause.Principal, c.Inferred)
			}
		})
	}
}

func TestUnresolvedCommandsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTracker()
		lose := func(c *inflightCommand) {
			c.markUnknown(map[instance.ID]bool{trackedX: true})
			c.end()
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
		if tr.resolve(trackedX, asked); left() != 1 {
			t.Errorf("%d commands are remembered after a look before the second, want that one", left())
		}
		if tr.resolve(trackedX, time.Now()); len(tr.tracks) != 0 {
			t.Errorf("%d instances are remembered after a look at the only one", len(tr.tracks))
		}

		before := tr.start(trackedX)
		time.Sleep(time.Second)
		lose(tr.start(trackedX))
		if tr.forget(); left() != 0 {
			t.Errorf("%d commands are remembered of before the backend was set to what is known", left())
		}
		if lose(before); len(tr.tracks) != 0 {
			t.Error("one that began before that is remembered when it ends")
		}
	})
}

// Of two callers who wanted the same, the one that the journal names as the cause is told of
// the change, whatever the backend told which of them.
func TestWhoeverIsNamedAsTheCauseIsToldOfTheChange(t *testing.T) {
	s, term := aTerm(t)
	if _, err := s.update(t.Context(), term, func(r *recording) error {
		reduce(r, sighting{image: imageOf(instance.StateStopped), occurredAt: time.Now().Add(-time.Minute)})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	named := s.tracker.send([]instance.ID{trackedX}, instance.Cause{Principal: "named", Verb: instance.VerbStart}, s.journal.Head())
	other := s.tracker.send([]instance.ID{trackedX}, instance.Cause{Principal: "other", Verb: instance.VerbStart}, s.journal.Head())
	now := time.Now()
	n := instance.Notice{ID: trackedX, State: instance.StatePending, Instance: imageOf(instance.StatePending), OccurredAt: now, Source: instance.SourceSimulator}
	if _, err := s.update(t.Context(), term, func(r *recording) error { s.recordNotice(r, n); return nil }); err != nil {
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
		response := &CommandResponse{Changes: []instance.StateChange{{ID: trackedX, Previous: tc.answer, Current: instance.StatePending, At: now}}}
		if _, err := s.record(t.Context(), term, tc.command, answer{response: response, on: tc.command.answer(response.Changes)}); err != nil {
			t.Fatal(err)
		}
		tc.command.end()
		if got := response.Changes[0]; got.Previous != tc.told || got.Current != instance.StatePending {
			t.Errorf("%s is told %v -> %v, want %v -> pending", tc.command.cause.Principal, got.Previous, got.Current, tc.told)
		}
	}
}

// A command whose outcome the backend does not know is answered with what the journal names
// it as the cause of.
func TestAnOutcomeThatTheJournalKnowsIsNotUnknown(t *testing.T) {
	unknown := &instance.Error{Kind: instance.KindUnavailable, Message: "nobody answers", OutcomeUnknown: true}
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
			c.on[0].claim(&recordedStep{instance.StateStopped, instance.StatePending, at})
			got, err := c.outcomes(result, failed)
			want := instance.StateChange{ID: trackedX, Previous: instance.StateStopped, Current: instance.StatePending, At: at}
			if len(got.Changes) != 1 || got.Changes[0] != want || !errors.Is(err, failed) || failed == nil && (len(got.Failures) != 1 || got.Failures[0].ID != trackedY) {
				t.Errorf("of one of two instances: %+v, %v", got, err)
			}
			c.on[1].claim(&recordedStep{instance.StateStopped, instance.StatePending, at})
			if got, err = c.outcomes(result, failed); len(got.Changes) != 2 || len(got.Failures) != 0 || err != nil {
				t.Errorf("of both: %+v, %v", got, err)
			}
		})
	}
}

// What a command said that it found is not taken for its doing afterwards.
func TestACommandThatIsAnsweredIsNoCauseOfMore(t *testing.T) {
	tr := newTracker()
	c := tr.start(trackedX)
	candidates := tr.possibleCauses(trackedX, time.Time{}, time.Now())
	c.answer(found(instance.StatePending, time.Now()))
	if len(candidates) != 1 || candidates[0].claim(&recordedStep{}) {
		t.Error("a command is made the cause of a step after it said that it changed nothing")
	}
}

// An update that fails gives a command back the step that it had before, unless a later update
// has given it another one meanwhile.
func TestAFailedUpdateGivesACommandItsStepBack(t *testing.T) {
	s, term := aTerm(t)
	c := s.tracker.begin([]instance.ID{trackedX}, instance.Cause{Verb: instance.VerbStart}, journal.Position{})
	on := c.answer([]instance.StateChange{{ID: trackedX, Previous: instance.StateStopped, Current: instance.StatePending, At: time.Now()}})[0]
	claim := func(r *recording, to instance.State) { r.claim(on.candidate(), recordedStep{to: to}) }
	if _, err := s.update(t.Context(), term, func(r *recording) error { claim(r, instance.StatePending); return nil }); err != nil {
		t.Fatal(err)
	}
	failed := errors.New("it is not to be")
	if _, err := s.update(t.Context(), term, func(r *recording) error {
		claim(r, instance.StateRunning)
		claim(r, instance.StateStopping)
		return failed
	}); !errors.Is(err, failed) {
		t.Fatalf("the update ended with %v", err)
	}
	if step := on.step.Load(); step == nil || step.to != instance.StatePending {
		t.Errorf("the command has the step %+v after the failed update, want the one to pending", step)
	}
	var early, late recording
	claim(&early, instance.StateRunning)
	claim(&late, instance.StateStopped)
	if early.undo(); on.step.Load().to != instance.StateStopped {
		t.Errorf("the command has the step to %v, want that of the later update", on.step.Load().to)
	}
	c.end()
}
