package observer

import (
	"testing"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// A caller is told of a start exactly if the history names its command as the cause, and no
// start and no stop is made up to fit an answer.
func TestACallerIsToldOfAStartIfTheHistoryNamesItsCommand(t *testing.T) {
	sent := time.Now()
	second := sent.Truncate(time.Second)
	// The notice says that the instance was started from outside, as far as its time tells.
	heard := func(o *Observer, term *journal.Term, at time.Time) error {
		n := instance.Notice{ID: trackedX, State: instance.StatePending, OccurredAt: at, Source: instance.SourceEventBridge}
		_, err := o.update(t.Context(), term, func(u *updateTx) error { u.applyNotices(nil, []instance.Notice{n}); return nil })
		return err
	}
	described := func(o *Observer, term *journal.Term, at time.Time) error {
		_, err := o.update(t.Context(), term, func(u *updateTx) error {
			u.reduce(trackedX, imageOf(instance.StatePending), at, instance.SourceReconcile, nil)
			return nil
		})
		return err
	}
	for name, tc := range map[string]struct {
		record  func(*Observer, *journal.Term, time.Time) error
		at      time.Time
		first   bool // whether it is recorded before the command begins
		deduced bool
		told    bool
	}{
		"described as from outside after it was sent":            {record: described, at: sent.Add(time.Second)},
		"described as from outside, and deduced":                 {record: described, at: sent.Add(-100 * time.Millisecond), deduced: true},
		"described as from outside before it began, and deduced": {record: described, at: sent.Add(-100 * time.Millisecond), first: true, deduced: true},
		"heard of from before it began, and deduced":             {record: heard, at: second.Add(-2 * time.Second), first: true, deduced: true},
		"heard of, dated by a clock that is slow":                {record: heard, at: sent.Add(-time.Second).Truncate(time.Second), told: true},
		"heard of, dated by a clock that is slow, and deduced":   {record: heard, at: sent.Add(-time.Second).Truncate(time.Second), deduced: true, told: true},
	} {
		t.Run(name, func(t *testing.T) {
			o, term := newTerm(t)
			if _, err := o.update(t.Context(), term, func(u *updateTx) error {
				u.reduce(trackedX, imageOf(instance.StateStopped), sent.Add(-time.Minute), instance.SourceReconcile, nil)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			began := o.journal.Head()
			record := func() {
				t.Helper()
				if err := tc.record(o, term, tc.at); err != nil {
					t.Fatal(err)
				}
			}
			if tc.first {
				record()
			}
			command := o.tracker.send([]instance.ID{trackedX}, instance.Cause{Principal: "starter", Verb: instance.VerbStart}, o.journal.Head())
			command.on[0].at, command.on[0].sentAt = sent, sent
			result := &Result{Changes: []instance.StateChange{{ID: trackedX, Previous: instance.StateStopped, Current: instance.StatePending, At: sent, Deduced: tc.deduced}}}
			if !tc.first {
				record()
			}
			if err := o.recordAnswers(t.Context(), term, command, command.markAnswered(result.Changes), result, nil); err != nil {
				t.Fatal(err)
			}
			command.finish()
			page, err := o.journal.History(t.Context(), "", []instance.ID{trackedX}, began, 10)
			if err != nil {
				t.Fatal(err)
			}
			var named bool
			for _, e := range page.Entries {
				named = named || e.Change.Cause.Principal == "starter"
			}
			if len(page.Entries) != 1 {
				t.Errorf("the history has %d changes, want the start alone", len(page.Entries))
			}
			if told := result.Changes[0].Previous == instance.StateStopped; told != named || told != tc.told {
				t.Errorf("the caller is told %v -> %v; the history names it: %v, want %v of both", result.Changes[0].Previous, result.Changes[0].Current, named, tc.told)
			}
		})
	}
}

// A start whose answer was lost is recorded even if the instance was first seen, or came to be
// stopped, just before: that it is stopped does not mean that it was started and fell back.
func TestADeducedStartIsRecordedSoonAfterTheInstanceStopped(t *testing.T) {
	for name, states := range map[string][]instance.State{
		"first seen":   {instance.StateStopped},
		"just stopped": {instance.StateStopping, instance.StateStopped},
	} {
		t.Run(name, func(t *testing.T) {
			o, term := newTerm(t)
			sent := time.Now()
			for _, state := range states {
				if _, err := o.update(t.Context(), term, func(u *updateTx) error {
					u.reduce(trackedX, imageOf(state), sent.Add(-time.Second), instance.SourceReconcile, nil)
					return nil
				}); err != nil {
					t.Fatal(err)
				}
			}
			command := o.tracker.send([]instance.ID{trackedX}, instance.Cause{Principal: "starter", Verb: instance.VerbStart}, o.journal.Head())
			command.on[0].at, command.on[0].sentAt = sent, sent
			result := &Result{Changes: []instance.StateChange{{ID: trackedX, Previous: instance.StateStopped, Current: instance.StatePending, At: sent, Deduced: true}}}
			if err := o.recordAnswers(t.Context(), term, command, command.markAnswered(result.Changes), result, nil); err != nil {
				t.Fatal(err)
			}
			command.finish()
			if known, _ := o.journal.Get(trackedX); known.Instance.State != instance.StatePending || known.Cause.Principal != "starter" {
				t.Errorf("it is recorded as %v, caused by %q", known.Instance.State, known.Cause.Principal)
			}
			if told := result.Changes[0]; told.Previous != instance.StateStopped {
				t.Errorf("the caller is told %v -> %v", told.Previous, told.Current)
			}
		})
	}
}
