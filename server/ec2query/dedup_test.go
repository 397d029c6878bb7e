package ec2query_test

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// try sends a command as an SDK does, under the name that all tries of a call have.
func attempt(ctx context.Context, t *testing.T, client *http.Client, endpoint, invocation, form string) (answered, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(form+versioned))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("amz-sdk-invocation-id", invocation)
	response, err := client.Do(r)
	if err != nil {
		return answered{}, err
	}
	return read(t, response), nil
}

const fromStopped = "<previousState><code>80</code><name>stopped</name></previousState>"

func TestTriesOfOneCallHaveOneOutcome(t *testing.T) {
	srv := servertest.New(t, servertest.Options{Speed: 0.001, Fleet: fleetOf(4)})
	client := httpClient(t)
	start := func(invocation, id string) answered {
		t.Helper()
		got, err := attempt(patient(t), t, client, srv.EC2(), invocation, "Action=StartInstances&InstanceId.1="+id)
		if err != nil || got.status != 200 {
			t.Fatal(got, err)
		}
		return got
	}
	first, second := start("a", id(0)), start("a", id(0))
	if !strings.Contains(first.body, fromStopped) || !strings.Contains(second.body, fromStopped) || first.requestID == second.requestID {
		t.Errorf("the first try and the second:\n%s\n%s", first.body, second.body)
	}
	if other := start("b", id(0)); strings.Contains(other.body, fromStopped) {
		t.Errorf("another call: %s", other.body)
	}
	if other := start("a", id(1)); !strings.Contains(other.body, id(1)) {
		t.Errorf("another call that goes by the same name: %s", other.body)
	}
	for n := range 2 {
		got, err := attempt(patient(t), t, client, srv.EC2()+"/?InstanceId.1="+id(2+n), "q", "Action=StartInstances")
		if err != nil || !strings.Contains(got.body, id(2+n)) {
			t.Errorf("a call that differs in its query alone: %v, %v", got, err)
		}
	}
	for range 2 {
		got, err := attempt(patient(t), t, client, srv.EC2(), "c", "Action=StopInstances&InstanceId.1=i-0ffffffffffffffff")
		if err != nil || got.code != "InvalidInstanceID.NotFound" {
			t.Errorf("a call that is refused: %v, %v", got, err)
		}
	}
}

func fleetOf(count int) *instancedv1.CreateInstancesRequest {
	fleet := &instancedv1.CreateInstancesRequest{}
	for n := range count {
		fleet.Instances = append(fleet.Instances, &instancedv1.InstanceSpec{InstanceId: id(n)})
	}
	return fleet
}

func TestATryJoinsAnEarlierOneWhoseCallerHasLeft(t *testing.T) {
	t.Parallel()
	fleet := fleetOf(1)
	fleet.Faults = []*instancedv1.Fault{{Kind: instancedv1.FaultKind_FAULT_KIND_SLOW_CALL, Delay: durationpb.New(time.Second)}}
	srv := servertest.New(t, servertest.Options{Speed: 0.001, Fleet: fleet})
	client := httpClient(t)
	form := "Action=StartInstances&InstanceId.1=" + id(0)
	impatient, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if got, err := attempt(impatient, t, client, srv.EC2(), "a", form); err == nil {
		t.Fatalf("it was answered in time: %v", got)
	}
	var tries sync.WaitGroup
	for range 8 {
		tries.Go(func() {
			got, err := attempt(patient(t), t, client, srv.EC2(), "a", form)
			if err != nil || !strings.Contains(got.body, fromStopped) {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
	tries.Wait()
}
