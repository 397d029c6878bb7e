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
	return &instance.Instance{ID: flightX, State: state, Type: "t3.micro", LaunchTime: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
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
	fl := s.flights.begin([]instance.ID{flightX}, attribution{cause: instance.Cause{Principal: "starter", Verb: instance.VerbStart}, target: instance.StatePending, since: time.Now()})
	started := func(r *recording) {
		reduce(r, sighting{image: imageOf(instance.StatePending), commands: s.suspects(flightX, time.Time{}, time.Now())})
	}
	failed := errors.New("it is not to be")
	if _, err := s.update(t.Context(), term, func(r *recording) error { started(r); return failed }); !errors.Is(err, failed) {
		t.Fatalf("the update ended with %v", err)
	}
	if _, err := s.update(t.Context(), term, func(r *recording) error { started(r); return nil }); err != nil {
		t.Fatal(err)
	}
	known, _ := s.journal.Get(flightX)
	if known.Cause.Principal != "starter" {
		t.Errorf("the cause of the start is %+v", known.Cause)
	}
	if left := s.suspects(flightX, time.Time{}, time.Now()); len(left) != 0 {
		t.Errorf("it is suspected of more: %+v", left)
	}
	fl.end()
}

// What a command had done when nothing could be recorded comes before what is heard of
// later, and before what a later command did.
func TestWhatIsOwedIsRecordedFirst(t *testing.T) {
	for name, later := range map[string]func(*Service, *journal.Term, time.Time) error{
		"before a notice": func(s *Service, term *journal.Term, at time.Time) error {
			n := instance.Notice{ID: flightX, State: instance.StateStopping, Instance: imageOf(instance.StateStopping), OccurredAt: at, Source: instance.SourceSimulator}
			_, err := s.update(t.Context(), term, func(r *recording) error { s.recordNotice(r, n); return nil })
			return err
		},
		"before an answer": func(s *Service, term *journal.Term, at time.Time) error {
			change := instance.StateChange{ID: flightX, Previous: instance.StateRunning, Current: instance.StateStopping, At: at}
			fl := s.flights.begin([]instance.ID{flightX}, attribution{target: instance.StateStopping, since: at})
			defer fl.end()
			_, err := s.record(t.Context(), term, fl, answer{response: &CommandResponse{Changes: []instance.StateChange{change}}})
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
			fl := s.flights.begin([]instance.ID{flightX}, attribution{cause: instance.Cause{Principal: "starter", Verb: instance.VerbStart}, target: instance.StatePending, since: time.Now()})
			s.owe(fl, answer{response: &CommandResponse{Changes: []instance.StateChange{{ID: flightX, Previous: instance.StateStopped, Current: instance.StatePending, At: time.Now()}}}})
			fl.end()
			if err := later(s, term, time.Now().Add(time.Second)); err != nil {
				t.Fatal(err)
			}
			page, err := s.journal.History(t.Context(), nil, began, 10)
			if err != nil || len(page.Entries) == 0 {
				t.Fatalf("%d changes, %v", len(page.Entries), err)
			}
			if c := page.Entries[0].Change; c.After.State != instance.StatePending || c.Cause.Principal != "starter" || c.Inferred {
				t.Errorf("first comes %s -> %s by %q, inferred %v", c.Before.State, c.After.State, c.Cause.Principal, c.Inferred)
			}
		})
	}
}

func TestDoubtsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		flights := newFlights()
		command := func() attribution { return flights.begin([]instance.ID{flightX}, starting()).at(flightX) }
		left := func(d *doubts) int { return len(d.suspects(flightX, time.Time{}, time.Now())) }

		d := newDoubts()
		d.add(flightX, doubt{command: command()})
		asked := time.Now().Add(time.Second)
		time.Sleep(2 * time.Second)
		d.add(flightX, doubt{command: command()})
		if n := left(d); n != 2 {
			t.Fatalf("%d commands are remembered, want 2", n)
		}
		if d.resolve(flightX, asked); left(d) != 1 {
			t.Errorf("%d commands are remembered after a look before the second, want that one", left(d))
		}
		if d.resolve(flightX, time.Now()); len(d.instances) != 0 {
			t.Errorf("%d instances are remembered after a look at the only one", len(d.instances))
		}

		before := command()
		time.Sleep(time.Second)
		d.add(flightX, doubt{command: command()})
		if d.forget(); left(d) != 0 {
			t.Errorf("%d commands are remembered of before the backend was set to what is known", left(d))
		}
		if d.add(flightX, doubt{command: before}); left(d) != 0 {
			t.Error("one that began before that is remembered when it ends")
		}
	})
}
