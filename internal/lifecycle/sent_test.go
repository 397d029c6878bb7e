package lifecycle_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

// throttledOnce sends each command twice: the first request changes nothing. Between is called
// while the command waits in between.
type throttledOnce struct {
	lifecycle.Backend
	between func()
}

func (b *throttledOnce) Execute(ctx context.Context, cmd instance.Command) (instance.Result, error) {
	cmd.Sent(cmd.IDs)
	cmd.Requeued(cmd.IDs)
	b.between()
	return b.Backend.Execute(ctx, cmd)
}

// While a command waits in the backend somebody else does what it is about to do. The history
// does not name the command, and its caller is told that it found it done.
func TestWhatHappensBeforeACommandIsSentIsNotItsDoing(t *testing.T) {
	for name, wrap := range map[string]func(func()) func(lifecycle.Backend) lifecycle.Backend{
		"before it is sent at all": func(between func()) func(lifecycle.Backend) lifecycle.Backend {
			return (&hook{execute: func(context.Context, instance.Command) error { between(); return nil }}).wrap
		},
		"after a request that changed nothing": func(between func()) func(lifecycle.Backend) lifecycle.Backend {
			return func(b lifecycle.Backend) lifecycle.Backend { return &throttledOnce{b, between} }
		},
	} {
		for _, speed := range []float64{0, 0.01} { // by the time that it is sent the instance is running, or pending
			t.Run(name, func(t *testing.T) {
				var f *fixture
				reached := instance.StateRunning
				if speed != 0 {
					reached = instance.StatePending
				}
				f = start(t, options{sim: sim.Config{Speed: speed}, wrap: wrap(func() {
					before := f.Cursor()
					f.outside(t, sim.ActionStart)
					f.wait(t, before, reached, first)
				})})
				r, err := f.command(t.Context(), instance.VerbStart, first)
				if err != nil || r.Changes[0].Previous != reached || r.Changes[0].Current != reached {
					t.Errorf("the caller is told %+v, %v; want %v -> %[3]v", r.Changes, err, reached)
				}
				want := []string{"stopped -> pending", "pending -> running"}
				if reached == instance.StatePending {
					want = want[:1]
				}
				expect(t, steps(f.changes(t, first)), want...)
			})
		}
	}
}

// A caller whose deadline comes while its command waits in the backend is told that nothing was
// done, and that in time.
func TestACallerWhoseCommandIsNotSentIsToldSo(t *testing.T) {
	h := &hook{execute: func(ctx context.Context, cmd instance.Command) error {
		if cmd.Verb == instance.VerbStop {
			cmd.Sent(cmd.IDs)
		}
		<-ctx.Done()
		return ctx.Err()
	}}
	f := start(t, options{wrap: h.wrap})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := f.command(ctx, instance.VerbStart, first)
	e, ok := errors.AsType[*instance.Error](err)
	if !ok || e.Reason != instance.ReasonNotSentInTime || e.OutcomeUnknown || !strings.Contains(e.Message, "; nothing was changed") || ctx.Err() != nil {
		t.Errorf("the caller is told %v; want that nothing was changed, and before its deadline", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = f.command(ctx, instance.VerbStop, first)
	if _, certain := errors.AsType[*instance.Error](err); certain || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a caller whose command was sent is told %v; want no more than that its deadline has passed", err)
	}
}

// sentLate carries a command out just when the wait for its turn is ended, so that its caller
// leaves while the request is being written.
type sentLate struct{ lifecycle.Backend }

func (b *sentLate) Execute(ctx context.Context, cmd instance.Command) (instance.Result, error) {
	<-ctx.Done()
	if _, err := b.Backend.Execute(context.WithoutCancel(ctx), cmd); err != nil {
		return instance.Result{}, err
	}
	return instance.Result{}, ctx.Err()
}

// A command that is sent just as its time in the queue ends may have been carried out: its
// caller is told that the outcome is unknown, and the history names it as the cause.
func TestACommandThatIsSentJustAsItsTimeEndsHasAnUnknownOutcome(t *testing.T) {
	f := start(t, options{wrap: func(b lifecycle.Backend) lifecycle.Backend { return &sentLate{b} }})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	before := f.Cursor()
	_, err := f.command(ctx, instance.VerbStart, first)
	if e, ok := errors.AsType[*instance.Error](err); !ok || !e.OutcomeUnknown || strings.Contains(e.Error(), "nothing was changed") {
		t.Errorf("the caller is told %v; want that the outcome is unknown", err)
	}
	f.wait(t, before, instance.StateRunning, first)
	for _, c := range f.changes(t, first) {
		if c.Type == instance.ChangeState && c.Cause.Verb != instance.VerbStart {
			t.Errorf("%v -> %v has the cause %+v, want the command", c.Before.State, c.After.State, c.Cause)
		}
	}
}
