package lifecycle_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

const (
	third  = "i-00000000000000003"
	fourth = "i-00000000000000004"
)

// interrupted has the journal's owner crash while commands under client tokens wait at the
// backend, and returns the next owner and the commands that its backend gets.
func interrupted(t *testing.T, o options, requests ...lifecycle.CommandRequest) (*fixture, *gate) {
	t.Helper()
	g := newGate()
	before := start(t, options{wrap: g.wrap, sim: o.sim})
	for _, req := range requests {
		go before.Command(t.Context(), caller, req) //nolint:errcheck // it is overtaken by the crash
		<-g.enter
	}
	next := newGate()
	close(next.pass)
	o.wrap = next.wrap
	after := before.crash(t, o)
	close(g.pass)
	return after, next
}

// fromOutside does something to an instance that is no command of anybody's, and returns when
// it is recorded.
func (f *fixture) fromOutside(t *testing.T, c sim.Change, reached instance.State) {
	t.Helper()
	before := f.Cursor()
	if err := f.sim.Change(t.Context(), []sim.Change{c}); err != nil {
		t.Fatal(err)
	}
	f.wait(t, before, reached, string(c.IDs[0]))
}

func (f *fixture) startedAndStopped(t *testing.T, id instance.ID) {
	t.Helper()
	f.fromOutside(t, sim.Change{IDs: []instance.ID{id}, Action: sim.ActionStart}, instance.StateRunning)
	f.fromOutside(t, sim.Change{IDs: []instance.ID{id}, Action: sim.ActionStop}, instance.StateStopped)
}

// A retry is carried out on the instances that the earlier attempt cannot have reached, and
// only on them, in either failure mode.
func TestARetryIsDecidedForEachInstance(t *testing.T) {
	for _, mode := range []lifecycle.FailureMode{lifecycle.WholeCall, lifecycle.PerInstance} {
		req := lifecycle.CommandRequest{Verb: instance.VerbStart, InstanceIDs: []string{first, second, third, fourth}, ClientToken: "t", FailureMode: mode}
		f, g := interrupted(t, options{sim: sim.Config{Fleet: []sim.Spec{
			{ID: first}, {ID: second}, {ID: third, State: instance.StateRunning}, {ID: fourth, State: instance.StateRunning},
		}}}, req)
		f.startedAndStopped(t, second)
		f.fromOutside(t, sim.Change{IDs: []instance.ID{third}, Action: sim.ActionStop}, instance.StateStopped)
		var answer lifecycle.CommandResponse
		for n := range 2 {
			r, err := f.Command(t.Context(), caller, req)
			if err != nil || len(r.Changes) != 4 || len(r.Failures) != 0 {
				t.Fatalf("retry %d got %+v, %v", n, r, err)
			}
			for i, want := range []instance.StateChange{
				{ID: first, Previous: instance.StateStopped, Current: instance.StatePending},  // nothing happened to it
				{ID: second, Previous: instance.StateStopped, Current: instance.StateStopped}, // somebody stopped it since
				{ID: third, Previous: instance.StateStopped, Current: instance.StateStopped},  // likewise: it ran at first
				{ID: fourth, Previous: instance.StateRunning, Current: instance.StateRunning},
			} {
				got := r.Changes[i]
				if got.ID != want.ID || got.Previous != want.Previous || got.Current != want.Current {
					t.Errorf("retry %d is told %v -> %v of %s, want %+v", n, got.Previous, got.Current, got.ID, want)
				}
			}
			if n == 1 && (r.Cursor != answer.Cursor || r.EndCursor != answer.EndCursor) {
				t.Errorf("a further retry got the cursors %s and %s, want the first ones, %s and %s", r.Cursor, r.EndCursor, answer.Cursor, answer.EndCursor)
			}
			answer = r
		}
		if n := g.calls.Load(); n != 1 {
			t.Errorf("the backend got %d commands, want one", n)
		}
		started := f.changes(t, first)
		if c := started[len(started)-1]; c.Cause.ClientToken != "t" {
			t.Errorf("%s was last changed by %+v", first, c.Cause)
		}
		if left := slices.DeleteFunc(f.changes(t, second, third), func(c *instance.Change) bool { return c.Cause.External() }); len(left) != 0 {
			t.Errorf("the retry acted on instances that somebody has stopped since: %v", steps(left))
		}
	}
}

// A change that leads elsewhere is no sign that the command was carried out.
func TestAnotherChangeIsNoAnswerToACommand(t *testing.T) {
	req := lifecycle.CommandRequest{Verb: instance.VerbStop, InstanceIDs: []string{first}, ClientToken: "t"}
	f, g := interrupted(t, options{sim: sim.Config{Fleet: []sim.Spec{{ID: first, State: instance.StateRunning}}}}, req)
	f.fromOutside(t, sim.Change{IDs: []instance.ID{first}, Action: sim.ActionTerminate}, instance.StateTerminated)
	if _, err := f.Command(t.Context(), caller, req); reasonOf(err) != instance.CodeIncorrectInstanceState {
		t.Errorf("the retry of a stop got %v, want that the instance is terminated", err)
	}
	if n := g.calls.Load(); n != 1 {
		t.Errorf("the backend got %d commands, want one", n)
	}
}

// partway carries the first command out on its first instance, and loses the answer.
type partway struct {
	lifecycle.Backend
	once sync.Once
}

func (p *partway) Execute(ctx context.Context, cmd instance.Command) (result instance.Result, err error) {
	p.once.Do(func() {
		part := cmd
		part.IDs = cmd.IDs[:1]
		if _, err = p.Backend.Execute(ctx, part); err == nil {
			err = &instance.Error{Kind: instance.KindUnavailable, Message: "the connection broke", OutcomeUnknown: true}
		}
	})
	if err != nil {
		return instance.Result{}, err
	}
	return p.Backend.Execute(ctx, cmd)
}

// A retry that is refused for the rest says what the earlier attempt did, keeps the token,
// and does not repeat what was done when it comes again.
func TestARetryThatIsRefusedForTheRestDoesNotRepeatWhatWasDone(t *testing.T) {
	p := &partway{}
	f := start(t, options{
		sim:  sim.Config{Faults: []sim.Fault{{Kind: sim.InsufficientCapacity, Remaining: 1, Match: sim.Match{IDs: []instance.ID{second}}}}},
		wrap: func(b lifecycle.Backend) lifecycle.Backend { p.Backend = b; return p },
	})
	req := lifecycle.CommandRequest{Verb: instance.VerbStart, InstanceIDs: []string{first, second}, ClientToken: "t"}
	if _, err := f.Command(t.Context(), caller, req); err == nil {
		t.Fatal("the answer was not lost")
	}
	_, err := f.Command(t.Context(), caller, req)
	if e, ok := errors.AsType[*instance.Error](err); !ok || e.Code != instance.CodeInsufficientCapacity || e.Metadata["changed_instance_ids"] != first {
		t.Fatalf("the retry got %v, want a lack of capacity that names %s", err, first)
	}
	f.fromOutside(t, sim.Change{IDs: []instance.ID{first}, Action: sim.ActionStop}, instance.StateStopped)
	r, err := f.Command(t.Context(), caller, req)
	if err != nil || len(r.Changes) != 2 || r.Changes[1].Previous != instance.StateStopped || r.Changes[1].Current != instance.StatePending {
		t.Fatalf("the next retry got %+v, %v; want that the rest is started", r.Changes, err)
	}
	if known, _ := f.journal.Get(first); known.Instance.State != instance.StateStopped {
		t.Errorf("%s is %v, want that it stays stopped", first, known.Instance.State)
	}
}

// A retry that is carried out in part and rejected for the rest names each changed instance once.
func TestARetryThatIsRejectedInPartNamesEachChangedInstanceOnce(t *testing.T) {
	p := &partway{}
	f := start(t, options{
		sim:  sim.Config{Fleet: []sim.Spec{{ID: first}, {ID: second}, {ID: third}}},
		wrap: func(b lifecycle.Backend) lifecycle.Backend { p.Backend = &startsOne{Backend: b}; return p },
	})
	req := lifecycle.CommandRequest{Verb: instance.VerbStart, InstanceIDs: []string{first, second, third}, ClientToken: "t"}
	if _, err := f.Command(t.Context(), caller, req); err == nil {
		t.Fatal("the answer was not lost")
	}
	_, err := f.Command(t.Context(), caller, req)
	e, ok := errors.AsType[*instance.Error](err)
	if want := first + "," + second; !ok || e.Code != instance.CodeInsufficientCapacity || e.Metadata[lifecycle.MetadataChangedIDs] != want && e.Metadata[lifecycle.MetadataChangedIDs] != second+","+first {
		t.Fatalf("the retry got %v with %+v, want a lack of capacity that names %s", err, e.Metadata, want)
	}
}

// startsOne has capacity for the first instance of a command only.
type startsOne struct{ lifecycle.Backend }

func (s *startsOne) Execute(ctx context.Context, cmd instance.Command) (instance.Result, error) {
	one := cmd
	one.IDs = cmd.IDs[:1]
	result, err := s.Backend.Execute(ctx, one)
	if err == nil && len(cmd.IDs) > 1 {
		err = &instance.Error{Kind: instance.KindExhausted, Code: instance.CodeInsufficientCapacity, Message: "no capacity"}
	}
	return result, err
}

// halfKnown carries the first command out on its first instance, answers for it, and does not
// know what became of the others.
type halfKnown struct {
	lifecycle.Backend
	once sync.Once
}

func (h *halfKnown) Execute(ctx context.Context, cmd instance.Command) (result instance.Result, err error) {
	h.once.Do(func() {
		part := cmd
		part.IDs = cmd.IDs[:1]
		if result, err = h.Backend.Execute(ctx, part); err == nil {
			err = &instance.Error{Kind: instance.KindUnavailable, Message: "the connection broke", OutcomeUnknown: true}
		}
	})
	if err != nil {
		return result, err
	}
	return h.Backend.Execute(ctx, cmd)
}

// A token is not free after a command that was carried out in part while the outcome for the
// others is unknown: a retry does not repeat what was done.
func TestATokenIsNotFreeWhileTheOutcomeIsUnknown(t *testing.T) {
	f := start(t, options{wrap: func(b lifecycle.Backend) lifecycle.Backend { return &halfKnown{Backend: b} }})
	req := lifecycle.CommandRequest{Verb: instance.VerbStart, InstanceIDs: []string{first, second}, ClientToken: "t"}
	_, err := f.Command(t.Context(), caller, req)
	if e, ok := errors.AsType[*instance.Error](err); !ok || !e.OutcomeUnknown || e.Metadata["changed_instance_ids"] != first {
		t.Fatalf("the command got %v, want that the outcome is unknown, and that %s has changed", err, first)
	}
	f.fromOutside(t, sim.Change{IDs: []instance.ID{first}, Action: sim.ActionStop}, instance.StateStopped)
	r, err := f.Command(t.Context(), caller, req)
	if err != nil || len(r.Changes) != 2 {
		t.Fatalf("the retry got %+v, %v", r, err)
	}
	for i, id := range []instance.ID{first, second} {
		if c := r.Changes[i]; c.ID != id || c.Previous != instance.StateStopped || c.Current != instance.StatePending {
			t.Errorf("the retry is told %+v, want that it started %s", c, id)
		}
	}
	if known, _ := f.journal.Get(first); known.Instance.State != instance.StateStopped {
		t.Errorf("%s is %v, want that it stays stopped", first, known.Instance.State)
	}
}

// Where the history since the intent is no longer kept, an instance that may have been
// started and stopped since is neither started again nor reported as started.
func TestAnOutcomeThatHistoryNoLongerTellsIsNotRepeated(t *testing.T) {
	whole := lifecycle.CommandRequest{Verb: instance.VerbStart, InstanceIDs: []string{first, second, third}, ClientToken: "whole"}
	each := whole
	each.ClientToken, each.FailureMode = "each", lifecycle.PerInstance
	f, g := interrupted(t, options{retention: time.Millisecond, sim: sim.Config{Fleet: []sim.Spec{{ID: first}, {ID: second}, {ID: third}, {ID: fourth}}}}, whole, each)
	f.startedAndStopped(t, second)
	f.fromOutside(t, sim.Change{IDs: []instance.ID{third}, Action: sim.ActionStart}, instance.StateRunning)
	happened := f.journal.Head()
	for deadline := time.Now().Add(30 * time.Second); f.journal.Oldest().Seq < happened.Seq; {
		if time.Now().After(deadline) {
			t.Fatal("the history is still kept")
		}
		f.startedAndStopped(t, fourth)
	}
	for range 2 {
		_, err := f.Command(t.Context(), caller, whole)
		e, ok := errors.AsType[*instance.Error](err)
		if !ok || e.Reason != "COMMAND_OUTCOME_UNKNOWN" || !e.OutcomeUnknown || !slices.Equal(e.InstanceIDs, []instance.ID{second}) {
			t.Fatalf("the retry of the whole call got %v, want that the outcome for %s is unknown", err, second)
		}
	}
	if n := g.calls.Load(); n != 0 {
		t.Errorf("the backend got %d commands", n)
	}
	for range 2 {
		r, err := f.Command(t.Context(), caller, each)
		if err != nil || len(r.Changes) != 2 || len(r.Failures) != 1 {
			t.Fatalf("the retry got %+v, %v", r, err)
		}
		if c := r.Changes[0]; c.ID != first || c.Previous != instance.StateStopped || c.Current != instance.StatePending {
			t.Errorf("of the instance that did not change: %+v, want a start", c)
		}
		if c := r.Changes[1]; c.ID != third || c.Previous != instance.StateRunning || c.Current != instance.StateRunning {
			t.Errorf("of the instance that runs: %+v, want that there was nothing to do", c)
		}
		if f := r.Failures[0]; f.ID != second || f.Err.Reason != "COMMAND_OUTCOME_UNKNOWN" || !f.Err.OutcomeUnknown {
			t.Errorf("of the instance that may have been started: %+v", f)
		}
	}
	if n := g.calls.Load(); n != 1 {
		t.Errorf("the backend got %d commands, want one", n)
	}
}
