package ec2

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/metadata"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
)

// TestWhoeverTheHistoryNamesIsToldOfTheStart loses the answer of EC2 to a start that was
// carried out, in every way in which one gets lost, while others want the same instance:
// exactly one caller is told stopped -> pending, the one that the history names, and so is
// its retry with the same client token.
func TestWhoeverTheHistoryNamesIsToldOfTheStart(t *testing.T) {
	after := func(d time.Duration, answer reply, err error) func(context.Context, call) (reply, bool, error) {
		return func(ctx context.Context, _ call) (reply, bool, error) {
			pause(ctx, d)
			return answer, true, err
		}
	}
	ways := map[string]func(context.Context, call) (reply, bool, error){
		"the connection is lost":                           after(0, reply{}, errLost),
		"it is lost late":                                  after(5*time.Second, reply{}, errLost),
		"it is silent":                                     after(time.Hour, reply{}, errLost),
		"a gateway answers":                                after(0, reply{502, "<html>Bad Gateway</html>"}, nil),
		"a gateway answers late":                           after(5*time.Second, reply{504, "<html>Gateway Time-out</html>"}, nil),
		"EC2 answers with an error that is of itself":      after(0, refusal(500, "InternalError", "An internal error has occurred"), nil),
		"EC2 answers late with an error that is of itself": after(5*time.Second, refusal(503, "Unavailable", "The service is unavailable."), nil),
		"EC2 throttles after all":                          after(0, refusal(503, "RequestLimitExceeded", "Request limit exceeded."), nil),
		"EC2 throttles late":                               after(5*time.Second, refusal(503, "RequestLimitExceeded", "Request limit exceeded."), nil),
		"an unlisted error, late":                          after(5*time.Second, refusal(500, "NotYetInvented", "Something failed."), nil),
	}
	for name, lose := range ways {
		for _, times := range []int{1, 4} {
			t.Run(fmt.Sprintf("%s, %d times", name, times), func(t *testing.T) {
				dir := t.TempDir()
				synctest.Test(t, func(t *testing.T) {
					o := newOutageOf(t, dir, sim.Config{Speed: 1, Fleet: []sim.Spec{{ID: id(1)}, {ID: id(2)}}})
					defer o.end()
					left := times
					o.far.mu.Lock()
					o.far.lose = func(ctx context.Context, c call) (reply, bool, error) {
						if c.action != string(instance.VerbStart) {
							return reply{}, false, nil
						}
						o.far.mu.Lock()
						left--
						lost := left >= 0
						o.far.mu.Unlock()
						if !lost {
							return reply{}, false, nil
						}
						return lose(ctx, c)
					}
					o.far.mu.Unlock()
					o.startedOnce(t)
				})
			})
		}
	}
}

// startedOnce has three callers start one instance at once, each with a client token, has
// each try again until it is answered, and compares what they are told with the history.
func (o *outage) startedOnce(t *testing.T) {
	told := make([]*instancedv1.StartInstancesResponse, 3)
	var all sync.WaitGroup
	for n := range told {
		all.Go(func() {
			ctx := metadata.AppendToOutgoingContext(t.Context(), "instanced-principal", fmt.Sprint("caller-", n))
			for tries := 0; told[n] == nil && tries < 20; tries++ {
				resp, err := o.api.StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: []string{string(id(1))}, ClientToken: "token"})
				if told[n] = resp; err != nil {
					t.Logf("caller %d: %v", n, err)
					time.Sleep(2 * time.Second)
				}
			}
		})
		time.Sleep(time.Millisecond)
	}
	all.Wait()
	time.Sleep(time.Minute)
	history, err := o.api.ListEvents(t.Context(), &instancedv1.ListEventsRequest{InstanceIds: []string{string(id(1))}})
	if err != nil {
		t.Fatal(err)
	}
	var causes []string
	for _, e := range history.GetEvents() {
		if e.GetType() == instancedv1.EventType_EVENT_TYPE_STATE_CHANGED && e.GetInstance().GetState().GetName() == instancedv1.InstanceStateName_INSTANCE_STATE_NAME_PENDING {
			causes = append(causes, e.GetCause().GetPrincipal())
		}
	}
	if len(causes) != 1 {
		t.Fatalf("the history has starts by %q, want one", causes)
	}
	for n, resp := range told {
		if resp == nil {
			t.Errorf("caller %d was never answered", n)
			continue
		}
		started := resp.GetStartingInstances()[0].GetPreviousState().GetName() == instancedv1.InstanceStateName_INSTANCE_STATE_NAME_STOPPED
		if named := causes[0] == fmt.Sprint("caller-", n); started != named {
			t.Errorf("the history names %q; caller %d is told %v", causes[0], n, resp.GetStartingInstances()[0])
		}
		ctx := metadata.AppendToOutgoingContext(t.Context(), "instanced-principal", fmt.Sprint("caller-", n))
		again, err := o.api.StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: []string{string(id(1))}, ClientToken: "token"})
		if err != nil || again.GetStartingInstances()[0].GetPreviousState().GetName() != resp.GetStartingInstances()[0].GetPreviousState().GetName() {
			t.Errorf("a retry of caller %d got %v, %v, after %v", n, again.GetStartingInstances(), err, resp.GetStartingInstances())
		}
	}
}
