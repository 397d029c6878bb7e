package ec2

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/metadata"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

// A call whose answer was lost made the change that EC2 describes only if no caller was told of it
// and it was not described before, in whatever order that became known.
func TestAChangeIsClaimedForOneCall(t *testing.T) {
	inBubble(t, "", func(t *testing.T) {
		began := time.Now()
		stopping := func(at time.Duration) *instance.Instance {
			return &instance.Instance{ID: id(1), State: instance.StateStopping, StateTransitionReason: "User initiated (" + began.Add(at).UTC().Format(time.DateTime) + " GMT)"}
		}
		told := func(from, to instance.State, sent time.Duration) func(*lastChanges) {
			return func(known *lastChanges) {
				known.reported(instance.StateChange{ID: id(1), Previous: from, Current: to, At: began.Add(sent)})
			}
		}
		stop := func(sent time.Duration) func(*lastChanges) {
			return told(instance.StateRunning, instance.StateStopping, sent)
		}
		for name, tc := range map[string]struct {
			dated time.Duration // as EC2 describes the stop
			known []func(*lastChanges)
			want  bool
		}{
			"nothing is known":                          {want: true},
			"another caller was told":                   {known: []func(*lastChanges){stop(0)}},
			"another was told, and EC2's clock is fast": {dated: time.Second, known: []func(*lastChanges){stop(0)}},
			"another was told, and of a start after it": {known: []func(*lastChanges){stop(0), told(instance.StateStopped, instance.StatePending, 300*time.Millisecond)}},
			"another was told of an earlier one":        {dated: 5 * time.Second, known: []func(*lastChanges){stop(0)}, want: true},
			"it was described before the call":          {known: []func(*lastChanges){func(known *lastChanges) { known.observed(stopping(0)) }}},
			"an earlier one was described":              {dated: time.Second, known: []func(*lastChanges){func(known *lastChanges) { known.observed(stopping(0)) }}, want: true},
		} {
			var known lastChanges
			for _, know := range tc.known {
				know(&known)
				time.Sleep(10 * time.Millisecond)
			}
			time.Sleep(10 * time.Millisecond)
			if got := known.changedBy(instance.VerbStop, stopping(time.Since(began).Truncate(time.Second)+tc.dated), time.Now()); got != tc.want {
				t.Errorf("%s: the call made the change: %v, want %v", name, got, tc.want)
			}
		}
	})
}

// TestOneStopHasOneCallerWhateverEC2sClockSays stops an instance, and loses EC2's answer to a second
// stop that finds it stopping, while EC2's clock is fast. The first caller alone is told of the stop,
// the history has nothing that did not happen, and the end of the stop is recorded in time.
func TestOneStopHasOneCallerWhateverEC2sClockSays(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		dates := regexp.MustCompile(`\(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d GMT\)`)
		o := newOutageOf(t, dir, sim.Config{Speed: 1, Fleet: []sim.Spec{{ID: id(1), State: instance.StateRunning}}}, func(e *endpoint) {
			answer := e.answer
			e.answer = func(ctx context.Context, c call) (reply, error) {
				r, err := answer(ctx, c)
				r.body = dates.ReplaceAllStringFunc(r.body, func(date string) string {
					return "(" + transitionTime(date).Add(time.Second).Format(time.DateTime) + " GMT)"
				})
				return r, err
			}
		})
		defer o.end()
		time.Sleep(10 * time.Minute)
		stop := func(who string) instancedv1.InstanceStateName {
			t.Helper()
			ctx := metadata.AppendToOutgoingContext(t.Context(), "instanced-principal", who)
			resp, err := o.api.StopInstances(ctx, &instancedv1.StopInstancesRequest{InstanceIds: []string{string(id(1))}})
			if err != nil {
				t.Fatal(err)
			}
			return resp.GetStoppingInstances()[0].GetPreviousState().GetName()
		}
		if got := stop("first"); got != instancedv1.InstanceStateName_INSTANCE_STATE_NAME_RUNNING {
			t.Errorf("the first caller found it %v", got)
		}
		lost := false
		o.far.mu.Lock()
		o.far.lose = func(_ context.Context, c call) (reply, bool, error) {
			if lost || c.action != string(instance.VerbStop) {
				return reply{}, false, nil
			}
			lost = true
			return reply{}, true, errLost
		}
		o.far.mu.Unlock()
		if got := stop("second"); got != instancedv1.InstanceStateName_INSTANCE_STATE_NAME_STOPPING || !lost {
			t.Errorf("the second caller found it %v; lost is %v", got, lost)
		}
		for {
			page, err := o.far.Describe(t.Context(), instance.DescribeQuery{IDs: ids(1, 2)})
			if err != nil {
				t.Fatal(err)
			}
			if page.Instances[0].State == instance.StateStopped {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(17 * time.Second) // eight poll intervals and the time of a call
		history, err := o.api.ListEvents(t.Context(), &instancedv1.ListEventsRequest{InstanceIds: []string{string(id(1))}})
		if err != nil {
			t.Fatal(err)
		}
		var steps []string
		for _, e := range history.GetEvents() {
			if e.GetType() == instancedv1.EventType_EVENT_TYPE_STATE_CHANGED {
				state, _ := instance.StateFromCode(e.GetInstance().GetState().GetCode())
				steps = append(steps, fmt.Sprintf("%s by %s", state, e.GetCause().GetPrincipal()))
			}
		}
		if want := []string{"stopping by first", "stopped by first"}; !slices.Equal(steps, want) {
			t.Errorf("the history has %q, want %q", steps, want)
		}
	})
}

// A start from outside just before a start whose answer is lost stays external: the caller is
// told that it found the instance pending.
func TestAStartFromOutsideIsNotClaimedWhenAnAnswerIsLost(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		o := newOutageOf(t, dir, sim.Config{Speed: 0.01, Fleet: []sim.Spec{{ID: id(1)}}})
		defer o.end()
		time.Sleep(10 * time.Minute)
		if err := o.far.Change(t.Context(), []sim.Change{{IDs: ids(1, 2), Action: sim.ActionStart}}); err != nil {
			t.Fatal(err)
		}
		if _, err := o.layer.Refresh(t.Context(), ids(1, 2)); err != nil {
			t.Fatal(err)
		}
		lost := false
		o.far.mu.Lock()
		o.far.lose = func(_ context.Context, c call) (reply, bool, error) {
			if lost || c.action != string(instance.VerbStart) {
				return reply{}, false, nil
			}
			lost = true
			return reply{}, true, errLost
		}
		o.far.mu.Unlock()
		ctx := metadata.AppendToOutgoingContext(t.Context(), "instanced-principal", "starter")
		resp, err := o.api.StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: []string{string(id(1))}})
		if err != nil || !lost || resp.GetStartingInstances()[0].GetPreviousState().GetName() != instancedv1.InstanceStateName_INSTANCE_STATE_NAME_PENDING {
			t.Errorf("the caller is told %v, %v; lost is %v", resp.GetStartingInstances(), err, lost)
		}
		history, err := o.api.ListEvents(t.Context(), &instancedv1.ListEventsRequest{InstanceIds: []string{string(id(1))}})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range history.GetEvents() {
			if e.GetCause().GetPrincipal() != "" || e.GetPreviousState().GetName() == instancedv1.InstanceStateName_INSTANCE_STATE_NAME_PENDING {
				t.Errorf("the history has %v -> %v by %q", e.GetPreviousState().GetName(), e.GetInstance().GetState().GetName(), e.GetCause().GetPrincipal())
			}
		}
	})
}
