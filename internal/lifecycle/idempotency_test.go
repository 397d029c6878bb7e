package lifecycle_test

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

func TestAClientTokenGetsTheFirstAnswer(t *testing.T) {
	f := start(t, options{sim: sim.Config{Speed: 0.01}})
	req := lifecycle.CommandRequest{Verb: instance.VerbStart, InstanceIDs: []string{first}, ClientToken: "once"}
	r, err := f.Command(t.Context(), caller, req)
	if err != nil {
		t.Fatal(err)
	}
	again, err := f.Command(t.Context(), caller, req)
	if err != nil || again.Changes[0].Previous != instance.StateStopped || again.Cursor != r.Cursor || again.EndCursor != r.EndCursor {
		t.Errorf("the retry got %+v (%v), want the first answer %+v", again, err, r)
	}
	other := req
	other.InstanceIDs = []string{first, second}
	if _, err := f.Command(t.Context(), caller, other); reasonOf(err) != instance.ReasonClientTokenReused {
		t.Errorf("another request under the token got %v", err)
	}
	if r, err := f.Command(t.Context(), lifecycle.Caller{Principal: "somebody else"}, other); err != nil || r.Changes[0].Previous != instance.StatePending {
		t.Errorf("another principal's token got %+v, %v", r, err)
	}
}

func TestAClientTokenOfARefusedCallIsFree(t *testing.T) {
	f := start(t, options{sim: sim.Config{Faults: []sim.Fault{{Kind: sim.InsufficientCapacity, Remaining: 1}}}})
	req := lifecycle.CommandRequest{Verb: instance.VerbStart, InstanceIDs: []string{first}, ClientToken: "again"}
	if _, err := f.Command(t.Context(), caller, req); reasonOf(err) != instance.CodeInsufficientCapacity {
		t.Fatalf("got %v, want %s", err, instance.CodeInsufficientCapacity)
	}
	req.InstanceIDs = []string{second}
	if r, err := f.Command(t.Context(), caller, req); err != nil || r.Changes[0].Previous != instance.StateStopped {
		t.Errorf("got %+v, %v; want a start", r, err)
	}
}

// gate lets commands through one at a time.
type gate struct {
	lifecycle.Backend
	calls atomic.Int32
	enter chan struct{}
	pass  chan struct{}
}

func newGate() *gate { return &gate{enter: make(chan struct{}, 16), pass: make(chan struct{})} }

func (g *gate) wrap(b lifecycle.Backend) lifecycle.Backend { g.Backend = b; return g }

func (g *gate) Execute(ctx context.Context, cmd instance.Command) (instance.Result, error) {
	g.calls.Add(1)
	g.enter <- struct{}{}
	<-g.pass
	return g.Backend.Execute(ctx, cmd)
}

func TestACallInFlightIsJoinedByItsRetry(t *testing.T) {
	g := newGate()
	f := start(t, options{wrap: g.wrap})
	req := lifecycle.CommandRequest{Verb: instance.VerbStart, InstanceIDs: []string{first}, ClientToken: "twice"}
	impatient, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := f.Command(impatient, caller, req)
		left <- err
	}()
	<-g.enter
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller that left got %v", err)
	}
	other := req
	other.InstanceIDs = []string{second}
	if _, err := f.Command(t.Context(), caller, other); reasonOf(err) != instance.ReasonClientTokenReused {
		t.Errorf("another request under a token in flight got %v", err)
	}
	answers := make(chan lifecycle.CommandResponse, 4)
	for range cap(answers) {
		go func() {
			r, err := f.Command(t.Context(), caller, req)
			if err != nil {
				t.Error(err)
			}
			answers <- r
		}()
	}
	close(g.pass)
	for range cap(answers) {
		if r := <-answers; len(r.Changes) != 1 || r.Changes[0].Previous != instance.StateStopped {
			t.Errorf("got %+v, want the answer of the call in flight", r)
		}
	}
	if n := g.calls.Load(); n != 1 {
		t.Errorf("the backend was called %d times, want once", n)
	}
}

func TestAnIntentWithoutAnswerIsCarriedOutByTheRetry(t *testing.T) {
	g := newGate()
	f := start(t, options{wrap: g.wrap})
	req := lifecycle.CommandRequest{Verb: instance.VerbStart, InstanceIDs: []string{first}, ClientToken: "crashed"}
	go f.Command(t.Context(), caller, req) //nolint:errcheck // it is overtaken by the crash
	<-g.enter
	after := f.crash(t, options{})
	close(g.pass)
	other := req
	other.InstanceIDs = []string{second}
	if _, err := after.Command(t.Context(), caller, other); reasonOf(err) != instance.ReasonClientTokenReused {
		t.Errorf("another request under the token got %v", err)
	}
	r, err := after.Command(t.Context(), caller, req)
	if err != nil || r.Changes[0].Previous != instance.StateStopped {
		t.Errorf("got %+v, %v; want the start to be carried out", r, err)
	}
}

func TestAnIntentOfChangedInstancesIsAnsweredWithTheirStates(t *testing.T) {
	g := newGate()
	f := start(t, options{wrap: g.wrap})
	req := lifecycle.CommandRequest{Verb: instance.VerbStart, InstanceIDs: []string{first}, ClientToken: "crashed"}
	go f.Command(t.Context(), caller, req) //nolint:errcheck // it is overtaken by the crash
	<-g.enter
	after := f.crash(t, options{})
	close(g.pass)
	before := after.Cursor()
	changes := []sim.Change{{IDs: []instance.ID{first}, Action: sim.ActionStart}}
	if err := after.sim.Change(t.Context(), changes); err != nil {
		t.Fatal(err)
	}
	after.wait(t, before, instance.StateRunning, first)
	changes[0].Action = sim.ActionStop
	before = after.Cursor()
	if err := after.sim.Change(t.Context(), changes); err != nil {
		t.Fatal(err)
	}
	after.wait(t, before, instance.StateStopped, first)
	for range 2 {
		r, err := after.Command(t.Context(), caller, req)
		if err != nil || len(r.Changes) != 1 || r.Changes[0].Previous != instance.StateStopped || r.Changes[0].Current != instance.StateStopped {
			t.Fatalf("got %+v, %v; want the present state: a retry must not restart what somebody has just stopped", r, err)
		}
	}
}

func TestARetryAfterALostAnswerDoesNotRestartWhatSomebodyStopped(t *testing.T) {
	f := start(t, options{sim: sim.Config{Faults: []sim.Fault{{Kind: sim.AnswerLost, Remaining: 1}, {Kind: sim.NoticeLost}}}})
	req := lifecycle.CommandRequest{Verb: instance.VerbStart, InstanceIDs: []string{first}, ClientToken: "lost"}
	if _, err := f.Command(t.Context(), caller, req); err == nil {
		t.Fatal("the answer was not lost")
	}
	if err := f.sim.Change(t.Context(), []sim.Change{{IDs: []instance.ID{first}, Action: sim.ActionStop}}); err != nil {
		t.Fatal(err)
	}
	r, err := f.Command(t.Context(), caller, req)
	if err != nil || r.Changes[0].Previous != instance.StateStopped || r.Changes[0].Current != instance.StatePending {
		t.Errorf("the retry got %+v, %v; want to be told of the start that was its doing", r.Changes, err)
	}
	// What was observed in between depends on when the instance was described.
	starts := slices.DeleteFunc(steps(f.changes(t, first)), func(s string) bool { return !strings.HasPrefix(s, "stopped -> pending") })
	expect(t, starts, "stopped -> pending by tester, inferred")
}

// A caller whose answer was lost, and who is named as the cause, is told so by a retry; one
// who found the instance started meanwhile is not.
func TestARetryAfterALostAnswerIsToldWhatTheJournalNamesItAsTheCauseOf(t *testing.T) {
	f := start(t, options{sim: sim.Config{Faults: []sim.Fault{{Kind: sim.AnswerLost, Remaining: 1}}}})
	req := lifecycle.CommandRequest{Verb: instance.VerbStart, InstanceIDs: []string{first, second}, ClientToken: "lost"}
	if _, err := f.Command(t.Context(), caller, req); err == nil {
		t.Fatal("the answer was not lost")
	}
	other, err := f.Command(t.Context(), lifecycle.Caller{Principal: "other"}, lifecycle.CommandRequest{Verb: instance.VerbStart, InstanceIDs: []string{first}})
	if err != nil || other.Changes[0].Previous == instance.StateStopped {
		t.Errorf("another caller got %+v, %v; want that it was started by somebody else", other.Changes, err)
	}
	for range 2 {
		r, err := f.Command(t.Context(), caller, req)
		if err != nil || len(r.Changes) != 2 {
			t.Fatalf("the retry got %+v, %v", r.Changes, err)
		}
		for _, c := range r.Changes {
			if c.Previous != instance.StateStopped || c.Current != instance.StatePending {
				t.Errorf("the retry is told %v -> %v of %s, want stopped -> pending", c.Previous, c.Current, c.ID)
			}
		}
	}
}

func TestATagIsNoAnswerToACommand(t *testing.T) {
	f := start(t, options{sim: sim.Config{Faults: []sim.Fault{{Kind: sim.InternalError, Remaining: 1}}}})
	req := lifecycle.CommandRequest{Verb: instance.VerbStart, InstanceIDs: []string{first}, ClientToken: "tagged"}
	if _, err := f.Command(t.Context(), caller, req); err == nil {
		t.Fatal("the fault did not strike")
	}
	if err := f.sim.Change(t.Context(), []sim.Change{{IDs: []instance.ID{first}, SetTags: map[string]string{"k": "v"}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Refresh(t.Context(), []instance.ID{first}); err != nil {
		t.Fatal(err)
	}
	r, err := f.Command(t.Context(), caller, req)
	if err != nil || r.Changes[0].Previous != instance.StateStopped || r.Changes[0].Current != instance.StatePending {
		t.Errorf("the retry got %+v, %v; want a start", r.Changes, err)
	}
}

func TestARefusalThatChangedSomethingIsNotKept(t *testing.T) {
	f := start(t, options{sim: sim.Config{Faults: []sim.Fault{{Kind: sim.InsufficientCapacity, Partial: true, Remaining: 1, Match: sim.Match{IDs: []instance.ID{second}}}}}})
	req := lifecycle.CommandRequest{Verb: instance.VerbStart, InstanceIDs: []string{first, second}, ClientToken: "partial"}
	_, err := f.Command(t.Context(), caller, req)
	e, ok := errors.AsType[*instance.Error](err)
	if !ok || e.Code != instance.CodeInsufficientCapacity || e.Metadata["changed_instance_ids"] != first {
		t.Fatalf("got %v, want a lack of capacity that names %s", err, first)
	}
	r, err := f.Command(t.Context(), caller, req)
	if err != nil || r.Changes[1].Previous != instance.StateStopped {
		t.Errorf("the retry got %+v, %v; want that the rest is started", r.Changes, err)
	}
}

// TestARebootOfUnknownOutcomeIsNotRepeated: whether a reboot took place cannot be seen, and a
// second one would be another reboot, under any owner.
func TestARebootOfUnknownOutcomeIsNotRepeated(t *testing.T) {
	g := newGate()
	f := start(t, options{wrap: g.wrap})
	req := lifecycle.CommandRequest{Verb: instance.VerbReboot, InstanceIDs: []string{first}, ClientToken: "crashed"}
	go f.Command(t.Context(), caller, req) //nolint:errcheck // it is overtaken by the crash
	<-g.enter
	next := newGate()
	close(next.pass)
	after := f.crash(t, options{wrap: next.wrap})
	close(g.pass)
	_, err := after.Command(t.Context(), caller, req)
	if e, ok := errors.AsType[*instance.Error](err); !ok || e.Reason != instance.ReasonRebootOutcomeUnknown || !e.OutcomeUnknown {
		t.Errorf("the retry got %v, want that the outcome is unknown", err)
	}
	if n := next.calls.Load(); n != 0 {
		t.Errorf("the backend got %d commands", n)
	}
}

// TestARetryThatCannotLookDoesNotSayThatNothingWasChanged: the try before it may have changed
// something, as long as the backend does not say what became of that.
func TestARetryThatCannotLookDoesNotSayThatNothingWasChanged(t *testing.T) {
	b := &silentBackend{}
	f := start(t, options{
		sim:  sim.Config{Faults: []sim.Fault{{Kind: sim.AnswerLost, Remaining: 1}}},
		wrap: func(inner lifecycle.Backend) lifecycle.Backend { b.Backend = inner; return b },
	})
	b.failures.Store(math.MaxInt64)
	defer b.failures.Store(0)
	req := lifecycle.CommandRequest{Verb: instance.VerbStart, InstanceIDs: []string{first}, ClientToken: "lost"}
	for n, try := range []string{"the first try", "its retry"} {
		_, err := f.Command(t.Context(), caller, req)
		if e, ok := errors.AsType[*instance.Error](err); !ok || !e.OutcomeUnknown {
			t.Errorf("%s got %v, want that the outcome is unknown", try, err)
		} else if n == 1 && (e.Reason != instance.ReasonBackendUnavailable || strings.Contains(e.Message, "nothing was changed")) {
			t.Errorf("%s got %v, want that the backend does not describe the instance", try, err)
		}
	}
}
