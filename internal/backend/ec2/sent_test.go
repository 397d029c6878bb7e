package ec2

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	grpccodes "google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

// reports are what a backend reports of a command.
type reports struct {
	mu   sync.Mutex
	list []string
}

// watch has what is reported of a command noted under a name.
func (r *reports) watch(name string, cmd instance.Command) instance.Command {
	note := func(what string) func([]instance.ID) {
		return func(ids []instance.ID) {
			r.mu.Lock()
			defer r.mu.Unlock()
			var numbers []int
			for n := range 100 {
				if slices.Contains(ids, id(n)) {
					numbers = append(numbers, n)
				}
			}
			r.list = append(r.list, fmt.Sprint(name, " ", what, " ", numbers))
		}
	}
	cmd.Sent, cmd.Requeued = note("sent"), note("requeued")
	return cmd
}

func (r *reports) expect(t *testing.T, want ...string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.list, want) {
		t.Errorf("reported is %q, want %q", r.list, want)
	}
}

var requestLimit = refusal(503, "RequestLimitExceeded", "Request limit exceeded.")

func TestCommandsAreReportedAsSentEachTime(t *testing.T) {
	inBubble(t, "a throttle changed nothing", func(t *testing.T) {
		calls := 0
		f := &fleet{refuse: func(call) (reply, bool) { calls++; return requestLimit, calls <= 2 }}
		var r reports
		if o := execute(t.Context(), connect(t, &endpoint{answer: f.answer}), r.watch("a", start(id(1), id(2))))[0]; o.err != nil {
			t.Fatal(o.err)
		}
		r.expect(t, "a sent [1 2]", "a requeued [1 2]", "a sent [1 2]", "a requeued [1 2]", "a sent [1 2]")
	})
	inBubble(t, "a throttle after a call that may have acted is no proof", func(t *testing.T) {
		calls := 0
		f := &fleet{refuse: func(c call) (reply, bool) {
			if c.action != string(instance.VerbStart) {
				return reply{}, false
			}
			if calls++; calls == 1 {
				return refusal(500, "InternalError", "An internal error has occurred"), true
			}
			return requestLimit, calls == 2
		}}
		var r reports
		if o := execute(t.Context(), connect(t, &endpoint{answer: f.answer}), r.watch("a", start(id(1))))[0]; o.err != nil {
			t.Fatal(o.err)
		}
		r.expect(t, "a sent [1]", "a sent [1]", "a sent [1]")
	})
	inBubble(t, "those who go again without a bad one are queued meanwhile", func(t *testing.T) {
		f := &fleet{refuse: func(c call) (reply, bool) {
			return refusal(400, instance.CodeNotFound, "The instance ID '"+string(id(3))+"' does not exist"), slices.Contains(c.ids, id(3))
		}}
		var r reports
		b := connect(t, &endpoint{answer: f.answer})
		o := execute(t.Context(), b, r.watch("a", each(start(id(1), id(3), id(2)))))[0]
		if o.err != nil || len(o.result.Failures) != 1 {
			t.Fatalf("outcome is %+v", o)
		}
		r.expect(t, "a sent [1 2 3]", "a requeued [1 2]", "a sent [1 2]")
	})
}

// The bucket of instances is empty, and a caller waits in front of it.
func TestARequestThatLeavesBeforeItsTurnIsNotSent(t *testing.T) {
	inBubble(t, "in the queue", func(t *testing.T) {
		var r reports
		b := connect(t, &endpoint{answer: (&fleet{}).answer})
		if o := execute(t.Context(), b, start(ids(1000, 2000)...))[0]; o.err != nil {
			t.Fatal(o.err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		leaving := background(ctx, b, r.watch("a", start(ids(0, 50)...)))
		r.expect(t)
		cancel()
		if o := leaving(); !errors.Is(o.err, context.Canceled) {
			t.Errorf("outcome is %+v", o)
		}
		time.Sleep(time.Hour)
		r.expect(t)
	})
	inBubble(t, "in a batch that EC2 throttled", func(t *testing.T) {
		calls := 0
		f := &fleet{refuse: func(call) (reply, bool) { calls++; return requestLimit, calls <= 1 }}
		var r reports
		b := connect(t, &endpoint{answer: f.answer})
		ctx, cancel := context.WithCancel(t.Context())
		leaving := background(ctx, b, r.watch("a", start(id(1))))
		cancel()
		if o := leaving(); !errors.Is(o.err, context.Canceled) {
			t.Errorf("outcome is %+v", o)
		}
		time.Sleep(time.Hour)
		r.expect(t, "a sent [1]", "a requeued [1]")
	})
}

// TestAStartFromOutsideWhileACommandWaitsForTokens goes through the service: the history does
// not name a command that was not sent, its caller is told that it found the start done, and
// one whose deadline comes first is told that nothing was done.
func TestAStartFromOutsideWhileACommandWaitsForTokens(t *testing.T) {
	for name, throttle := range map[string]bool{"the bucket is empty": false, "EC2 throttles": true} {
		dir := t.TempDir()
		inBubble(t, name, func(t *testing.T) {
			wanted, others := ids(0, 20), ids(1000, 2000) // as many as the bucket has tokens
			var fleet []sim.Spec
			for _, id := range slices.Concat(wanted, others) {
				fleet = append(fleet, sim.Spec{ID: id})
			}
			var throttling atomic.Bool
			throttling.Store(throttle)
			o := newOutageOf(t, dir, sim.Config{Speed: 1, Fleet: fleet}, throttleStarts(&throttling))
			defer o.end()
			time.Sleep(10 * time.Minute) // the fleet has been as it is for longer than descriptions may lag
			ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(t.Context(), "instanced-principal", "waiting"))
			defer cancel()
			if !throttle {
				if _, err := o.api.StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: names(others)}); err != nil {
					t.Fatal(err)
				}
			}
			sent := len(o.endpoint.of(instance.VerbStart))
			told := make(chan *instancedv1.StartInstancesResponse, 1)
			go func() {
				resp, err := o.api.StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: names(wanted)})
				if err != nil {
					t.Error(err)
				}
				told <- resp
			}()
			time.Sleep(3 * time.Second) // longer than a command holds back what is known
			if got := len(o.endpoint.of(instance.VerbStart)) - sent; !throttle && got != 0 || throttle && got == 0 {
				t.Fatalf("%d requests were sent", got)
			}
			if err := o.far.Change(ctx, []sim.Change{{IDs: wanted, Action: sim.ActionStart}}); err != nil {
				t.Fatal(err)
			}
			if _, err := o.layer.Refresh(ctx, wanted); err != nil {
				t.Fatal(err)
			}
			throttling.Store(false)
			resp := <-told
			for _, line := range resp.GetStartingInstances() {
				if line.GetPreviousState().GetName() == instancedv1.InstanceStateName_INSTANCE_STATE_NAME_STOPPED {
					t.Errorf("the caller is told %v", line)
				}
			}
			history, err := o.api.ListEvents(ctx, &instancedv1.ListEventsRequest{InstanceIds: names(wanted)})
			if err != nil {
				t.Fatal(err)
			}
			starts := 0
			for _, e := range history.GetEvents() {
				if e.GetType() == instancedv1.EventType_EVENT_TYPE_STATE_CHANGED {
					starts++
					if p := e.GetCause().GetPrincipal(); p != "" {
						t.Errorf("the history names %q as the cause of a change from outside", p)
					}
				}
			}
			if starts < len(wanted) {
				t.Errorf("the history has %d changes", starts)
			}
		})
	}
}

// throttleStarts has an endpoint answer at once, and throttle starts while it is told to.
func throttleStarts(throttling *atomic.Bool) func(*endpoint) {
	return func(e *endpoint) {
		answer := e.answer
		e.latency = nil
		e.answer = func(ctx context.Context, c call) (reply, error) {
			if throttling.Load() && c.action == string(instance.VerbStart) {
				return requestLimit, nil
			}
			return answer(ctx, c)
		}
	}
}

func names(ids []instance.ID) (list []string) {
	for _, id := range ids {
		list = append(list, string(id))
	}
	return list
}

// A caller whose deadline comes while it waits behind a batch that EC2 throttles is told that
// nothing was done.
func TestARequestBehindAThrottledBatchIsToldThatNothingWasDone(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var throttling atomic.Bool
		throttling.Store(true)
		o := newOutageOf(t, dir, sim.Config{Speed: 1, Fleet: []sim.Spec{{ID: id(1)}, {ID: id(2)}}}, throttleStarts(&throttling),
			func(e *endpoint) { e.latency = always(50 * time.Millisecond) })
		defer o.end()
		first := make(chan error, 1)
		go func() {
			_, err := o.api.StartInstances(t.Context(), &instancedv1.StartInstancesRequest{InstanceIds: []string{string(id(1))}})
			first <- err
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
		defer cancel()
		_, err := o.api.StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: []string{string(id(2))}})
		if status.Code(err) != grpccodes.ResourceExhausted || !strings.Contains(err.Error(), "nothing was changed") || ctx.Err() != nil {
			t.Errorf("who waits is told %v", err)
		}
		for _, c := range o.endpoint.of(instance.VerbStart) {
			if slices.Contains(c.ids, id(2)) {
				t.Error("its command was sent")
			}
		}
		throttling.Store(false)
		o.must(<-first)
	})
}

// A per-instance call of which EC2 has carried out a part by the deadline is answered by instance:
// one that could not be sent, behind a call that hangs, was not changed.
func TestAPerInstanceCallIsAnsweredByInstanceAtItsDeadline(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		o := newOutageOf(t, dir, sim.Config{Speed: 1, Fleet: []sim.Spec{{ID: id(1)}, {ID: id(2)}}}, func(e *endpoint) {
			answer := e.answer
			e.answer = func(ctx context.Context, c call) (reply, error) {
				if c.action == string(instance.VerbStart) && slices.Contains(c.ids, id(1)) {
					<-hang
				}
				return answer(ctx, c)
			}
		})
		defer o.end()
		first := make(chan error, 1)
		go func() {
			_, err := o.api.StartInstances(t.Context(), &instancedv1.StartInstancesRequest{InstanceIds: []string{string(id(1))}})
			first <- err
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		resp, err := o.api.StartInstances(ctx, &instancedv1.StartInstancesRequest{
			InstanceIds: names(ids(1, 3)), FailureMode: instancedv1.FailureMode_FAILURE_MODE_PER_INSTANCE,
		})
		started, failed := resp.GetStartingInstances(), resp.GetFailedInstances()
		switch {
		case err != nil || len(started) != 1 || len(failed) != 1:
			t.Errorf("the caller is told %v, %v", resp, err)
		case started[0].GetInstanceId() != string(id(2)) || started[0].GetPreviousState().GetName() != instancedv1.InstanceStateName_INSTANCE_STATE_NAME_STOPPED:
			t.Errorf("started is %v", started)
		case failed[0].GetInstanceId() != string(id(1)) || !strings.Contains(failed[0].GetMessage(), "nothing was changed"):
			t.Errorf("failed is %v", failed)
		}
		close(hang)
		o.must(<-first)
	})
}
