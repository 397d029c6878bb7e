package observer

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

// scripted is a backend that carries commands out as a function says.
type scripted struct {
	Backend
	execute func(context.Context, instance.Command) (instance.Result, error)
}

func (s scripted) Execute(ctx context.Context, cmd instance.Command) (instance.Result, error) {
	return s.execute(ctx, cmd)
}

// callWithin calls a backend with a command on two instances that has five seconds.
func callWithin(t *testing.T, perInstance bool, execute func(context.Context, instance.Command) (instance.Result, error)) (instance.Result, error) {
	o := &Observer{backend: scripted{execute: execute}, tracker: newTracker()}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	cmd := instance.Command{Verb: instance.VerbStart, IDs: []instance.ID{trackedX, trackedY}, PerInstance: perInstance}
	command := o.tracker.track(cmd.IDs, instance.Cause{Verb: cmd.Verb}, journal.Position{})
	defer command.finish()
	cmd.Sent, cmd.Requeued = command.markSent, command.markRequeued
	result, err := o.callBackend(ctx, cmd, command)
	if ctx.Err() != nil {
		t.Error("the call returned after its deadline")
	}
	return result, err
}

func TestACommandThatIsQueuedAgainShortlyBeforeItsDeadlineIsToldSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, err := callWithin(t, false, func(ctx context.Context, cmd instance.Command) (instance.Result, error) {
			cmd.Sent(cmd.IDs)
			time.Sleep(4900 * time.Millisecond)
			cmd.Requeued(cmd.IDs)
			<-ctx.Done()
			return instance.Result{}, ctx.Err()
		})
		if e, ok := errors.AsType[*instance.Error](err); !ok || e.Reason != instance.ReasonNotSentInTime || e.OutcomeUnknown {
			t.Errorf("the caller is told %v, want that nothing was sent in time", err)
		}
	})
}

func TestEachInstanceIsToldWhetherItsCommandWasSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		result, err := callWithin(t, true, func(ctx context.Context, cmd instance.Command) (instance.Result, error) {
			cmd.Sent(cmd.IDs[:1])
			<-ctx.Done()
			return instance.Result{}, ctx.Err()
		})
		if err != nil || len(result.Failures) != 2 {
			t.Fatalf("the caller is told %+v, %v, want a failure for each instance", result, err)
		}
		sent, unsent := result.Failures[0], result.Failures[1]
		if sent.ID != trackedX || !sent.Err.OutcomeUnknown {
			t.Errorf("of the instance that was sent: %+v", sent)
		}
		if unsent.ID != trackedY || unsent.Err.OutcomeUnknown || unsent.Err.Reason != instance.ReasonNotSentInTime {
			t.Errorf("of the instance that was not sent: %+v", unsent)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		started := instance.StateChange{ID: trackedY, Previous: instance.StateStopped, Current: instance.StatePending}
		result, err := callWithin(t, true, func(ctx context.Context, cmd instance.Command) (instance.Result, error) {
			cmd.Sent(cmd.IDs[1:])
			<-ctx.Done()
			return instance.Result{Changes: []instance.StateChange{started}}, ctx.Err()
		})
		if err != nil || len(result.Changes) != 1 || result.Changes[0] != started || len(result.Failures) != 1 || result.Failures[0].Err.Reason != instance.ReasonNotSentInTime {
			t.Errorf("the caller is told %+v, %v, want one change, and that the other command was not sent", result, err)
		}
	})
}
