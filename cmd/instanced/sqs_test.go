package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/backend/sqstest"
	"github.com/instanced/instanced/internal/cli"
	"github.com/instanced/instanced/internal/conformance"
	"github.com/instanced/instanced/internal/instance"
)

const (
	changedState = instancedv1.EventType_EVENT_TYPE_STATE_CHANGED
	eventBridge  = instancedv1.EventSource_EVENT_SOURCE_EVENT_BRIDGE
)

// hearing runs the service with EC2 behind a road and SQS in this process, and
// with intervals that are too long for a second reconcile.
func hearing(t *testing.T, r *road, q *sqstest.Queue) *service {
	t.Helper()
	sqs := httptest.NewServer(q)
	t.Cleanup(sqs.Close)
	return runServiceIn(t, []string{"AWS_REGION=us-east-1", "AWS_ENDPOINT_URL_EC2=" + r.url(), "AWS_ENDPOINT_URL_SQS=" + sqs.URL},
		"--backend", "ec2", "--sqs-queue-url", sqstest.URL, "--reconcile-interval", "1h")
}

// telling hands what happens at EC2 over as EventBridge would tell it, until the test
// ends. It returns once nothing is missed.
func telling(t *testing.T, ec2 *service, tell func(state, body string)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := ec2.instances().WatchInstances(ctx, &instancedv1.WatchInstancesRequest{FromNow: true})
	if err != nil {
		t.Fatal(err)
	}
	if msg, err := stream.Recv(); err != nil || msg.GetSubscribed() == nil {
		t.Fatalf("the stream begins with %v, %v", msg, err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	go func() {
		defer close(ended)
		for {
			msg, err := stream.Recv()
			if err != nil {
				return
			}
			for _, e := range msg.GetEvents().GetEvents() {
				if e.GetType() == changedState {
					state := stateOf(e.GetInstance()).String()
					tell(state, sqstest.Event(fmt.Sprintf("event-%d-%d", e.GetRevision(), e.GetIndex()), e.GetInstance().GetInstanceId(), state, e.GetOccurredAt().AsTime()))
				}
			}
		}
	}()
}

func stateOf(i *instancedv1.Instance) instance.State {
	s, _ := instance.StateFromCode(i.GetState().GetCode()) // none, where there is no instance
	return s
}

// crash kills the service, and shows all messages again once nothing of it can take them.
func crash(t *testing.T, s *service, q *sqstest.Queue) {
	t.Helper()
	s.kill()
	eventually(t, "SQS notices", func() bool { return q.Waiting() == 0 })
	q.Expire()
}

// stopAt stops an instance where no service but the simulator knows of it.
func stopAt(t *testing.T, ec2 *service, id string) {
	t.Helper()
	if _, err := ec2.instances().StopInstances(patient(t), &instancedv1.StopInstancesRequest{InstanceIds: []string{id}}); err != nil {
		t.Fatal(err)
	}
}

// states are the changes of state that were recorded of instances.
func states(t *testing.T, s *service, ids ...string) (events []*instancedv1.Event) {
	t.Helper()
	all, err := conformance.History(patient(t), s.instances(), ids, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if e.GetType() == changedState {
			events = append(events, e)
		}
	}
	return events
}

// steps renders changes for comparison.
func steps(events []*instancedv1.Event) string {
	var b strings.Builder
	for _, e := range events {
		fmt.Fprintf(&b, "%s %v -> %v at %s, seen at %s, %v, inferred %v\n", e.GetInstance().GetInstanceId(), e.GetPreviousState().GetName(), e.GetInstance().GetState().GetName(),
			e.GetOccurredAt().AsTime().Format("05.000"), e.GetObservedAt().AsTime().Format("05.000"), e.GetSource(), e.GetInferred())
	}
	return b.String()
}

func TestAChangeFromOutsideIsHeardFromTheQueueAtOnce(t *testing.T) {
	t.Parallel()
	const id = "i-0000000000000000a"
	// As slow as EC2: the instance is stopping for as long as this takes.
	first, endpoint := simulated(t, "instances:\n  - {instance_id: "+id+", state: running}\n", "--sim-speed", "1")
	road, q := newRoad(t, endpoint), &sqstest.Queue{}
	s := hearing(t, road, q)
	telling(t, first, func(_, body string) { q.Send(body) })
	stream, err := s.instances().WatchInstances(patient(t), &instancedv1.WatchInstancesRequest{FromNow: true})
	if err != nil {
		t.Fatal(err)
	}
	// EventBridge tells whole seconds: within the one in which the instance was first
	// seen, nothing is believed without a look.
	seen := time.Now()
	eventually(t, "the next second begins", func() bool { return time.Now().Truncate(time.Second).After(seen) })
	since, began := len(road.calls(0)), time.Now()
	stopAt(t, first, id)
	var e *instancedv1.Event
	for e.GetType() != changedState {
		msg, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, e = range msg.GetEvents().GetEvents() {
			if e.GetType() == changedState {
				break
			}
		}
	}
	took := time.Since(began)
	if e.GetPreviousState().GetName() != stateRunning || e.GetInstance().GetState().GetName() != stateStopping ||
		e.GetSource() != eventBridge || !e.GetCause().GetExternal() || e.GetInferred() {
		t.Errorf("the event is %v", e)
	}
	if took > 5*time.Second {
		t.Errorf("it took %v to come", took)
	}
	t.Logf("the event came %v after the call that changed the instance", took)
	eventually(t, "the message is deleted", func() bool { alive, _ := q.Left(); return alive == 0 })
	// An instance at rest is not polled, and nothing else was compared.
	for _, c := range road.calls(since) {
		if c.Get("Action") != "DescribeInstances" || c.Get("Filter.1.Name") != "instance-id" || c.Get("Filter.1.Value.2") != "" {
			t.Errorf("EC2 was asked %v", c)
		}
	}
}

func TestAMessageIsDeletedOnlyAfterItsChangeIsRecorded(t *testing.T) {
	t.Parallel()
	const id = "i-0000000000000000a"
	first, endpoint := simulated(t, "instances:\n  - {instance_id: "+id+", state: running}\n", "--sim-speed", "0")
	road, q := newRoad(t, endpoint), &sqstest.Queue{}
	s := hearing(t, road, q)
	telling(t, first, func(state, body string) {
		// The other message is lost, so that this one is believed only after a look.
		if state == "stopped" {
			q.Send(body)
		}
	})
	road.close()
	stopAt(t, first, id)
	// It is delivered to one process after the other, and none of them can record it.
	for n := 1; n <= 2; n++ {
		eventually(t, "the message is received", func() bool { return q.Received(n) == 1 })
		eventually(t, "the look comes to nothing", func() bool {
			return strings.Count(s.log(), "descriptions of instances could not be fetched or recorded") == n
		})
		if alive, _ := q.Left(); alive != 1 || len(states(t, s, id)) > 0 {
			t.Fatalf("%d messages are left, and recorded is\n%s", alive, steps(states(t, s, id)))
		}
		crash(t, s, q)
		s.start()
	}
	eventually(t, "the message is received", func() bool { return q.Received(3) == 1 })
	road.open()
	eventually(t, "the message is deleted", func() bool { alive, _ := q.Left(); return alive == 0 })
	if got := states(t, s, id); len(got) != 2 || !got[0].GetInferred() || got[1].GetInstance().GetState().GetName() != stateStopped {
		t.Errorf("recorded is\n%v", got)
	}
}

func TestAMessageThatComesAgainAfterACrashIsRecordedOnce(t *testing.T) {
	t.Parallel()
	const id = "i-0000000000000000a"
	first, endpoint := simulated(t, "instances:\n  - {instance_id: "+id+", state: running}\n", "--sim-speed", "0")
	q := &sqstest.Queue{}
	s := hearing(t, newRoad(t, endpoint), q)
	telling(t, first, func(_, body string) { q.Send(body) })
	q.Fail("DeleteMessageBatch")
	stopAt(t, first, id)
	eventually(t, "the changes are recorded, and their messages left", func() bool {
		return len(states(t, s, id)) == 2 && q.Received(1) == 2
	})
	eventually(t, "deleting them fails", func() bool { return strings.Contains(s.log(), "could not be deleted") })
	before := states(t, s, id)
	crash(t, s, q)
	s.start()
	eventually(t, "the messages come again", func() bool { return q.Received(2) == 2 })
	q.Fail()
	q.Expire()
	eventually(t, "the messages are deleted", func() bool { alive, _ := q.Left(); return alive == 0 })
	after := states(t, s, id)
	if err := conformance.Durable(before, after); err != nil || len(after) != len(before) {
		t.Errorf("recorded was\n%sand is\n%s%v", steps(before), steps(after), err)
	}
}

func TestDoubledReorderedAndLateMessagesGiveOneLegalChain(t *testing.T) {
	t.Parallel()
	const instances, cycles = 6, 2
	fleet := "instances:\n"
	var ids []string
	for n := range instances {
		ids = append(ids, fmt.Sprintf("i-%017x", n+1))
		fleet += fmt.Sprintf("  - {instance_id: %s}\n", ids[n])
	}
	first, endpoint := simulated(t, fleet, "--sim-speed", "10")
	q := &sqstest.Queue{}
	s := hearing(t, newRoad(t, endpoint), q)
	seed := uint64(time.Now().UnixNano())
	t.Logf("the seed is %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	var (
		mu   sync.Mutex
		told int
		late []string
	)
	telling(t, first, func(_, body string) {
		mu.Lock()
		defer mu.Unlock()
		told++
		if random.IntN(8) == 0 {
			late = append(late, body)
			return
		}
		for range 1 + random.IntN(2) {
			again := random.IntN(4) == 0
			time.AfterFunc(time.Duration(random.Int64N(int64(time.Second))), func() {
				q.Send(body)
				if again {
					q.Expire() // what is not deleted yet is delivered twice
				}
			})
		}
	})
	var lives sync.WaitGroup
	for _, id := range ids {
		lives.Go(func() {
			launched := time.Now()
			for range cycles {
				// As at EC2, launch times, in whole seconds, tell one start from another, and
				// from the stop before it.
				stopped := time.Now()
				if !comesAbout(2*storyTimeout, func() bool {
					return time.Since(launched) > 4*time.Second && time.Now().Truncate(time.Second).After(stopped)
				}) {
					t.Error("some seconds never passed")
					return
				}
				launched = time.Now()
				for _, verb := range []string{"start", "stop"} {
					if _, stderr, status := first.ask(verb, id, "--wait"); status != cli.ExitOK {
						t.Errorf("%s %s at EC2 itself ended with %d: %s", verb, id, status, stderr)
						return
					}
				}
			}
		})
	}
	lives.Wait()
	eventually(t, "everything is told", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return told == len(ids)*cycles*4
	})
	// What is late comes last, the newest first.
	for _, body := range slices.Backward(late) {
		q.Send(body)
	}
	sound := func() error {
		count := make(map[string]int)
		last := make(map[string]instance.State)
		for _, e := range states(t, s, ids...) {
			id, to := e.GetInstance().GetInstanceId(), stateOf(e.GetInstance())
			from, _ := instance.StateFromCode(e.GetPreviousState().GetCode())
			if known, ok := last[id]; ok && known != from || !ok && from != instance.StateStopped || !instance.CanFollow(from, to) {
				t.Fatalf("after %v of %s comes %v -> %v", last[id], id, from, to)
			}
			count[id], last[id] = count[id]+1, to
		}
		for _, id := range ids {
			switch {
			case count[id] > 4*cycles:
				t.Fatalf("%d changes of %s are recorded", count[id], id)
			case count[id] == 0 || last[id] != instance.StateStopped:
				return fmt.Errorf("%s is recorded as %v", id, last[id])
			}
		}
		return nil
	}
	defer func() {
		if t.Failed() {
			alive, _ := q.Left()
			t.Logf("%d messages are left", alive)
			for _, id := range ids {
				t.Logf("of %s\ntrue:\n%srecorded:\n%s", id, steps(states(t, first, id)), steps(states(t, s, id)))
			}
		}
	}()
	// What shows an instance as it was before a change is believed a minute later.
	within(t, 2*time.Minute, "all messages are deleted, and the end is recorded", func() bool {
		alive, _ := q.Left()
		return alive == 0 && sound() == nil
	})
	events := states(t, s, ids...)
	heard := 0
	for _, e := range events {
		if e.GetSource() == eventBridge {
			heard++
		}
	}
	t.Logf("%d changes happened, %d are recorded, %d of them as EventBridge told them", told, len(events), heard)
	if heard == 0 {
		t.Error("nothing was heard from the queue")
	}
}

func TestUnreadableMessagesEndInTheDeadLetterQueueAndHoldNothingUp(t *testing.T) {
	t.Parallel()
	const id = "i-0000000000000000a"
	first, endpoint := simulated(t, "instances:\n  - {instance_id: "+id+", state: running}\n", "--sim-speed", "0")
	q := &sqstest.Queue{MaxReceives: 3}
	bad := []string{"hello", "{}", sqstest.Event("bad", "i-1", "stopped", time.Now()), sqstest.Event("bad", id, "asleep", time.Now())}
	for range 5 {
		// More than are received at once.
		for _, body := range bad {
			q.Send(body)
		}
	}
	s := hearing(t, newRoad(t, endpoint), q)
	telling(t, first, func(_, body string) { q.Send(body) })
	stopAt(t, first, id)
	eventually(t, "the changes are recorded", func() bool { return len(states(t, s, id)) == 2 })
	eventually(t, "only what cannot be read is left", func() bool { alive, _ := q.Left(); return alive == 5*len(bad) })
	eventually(t, "it is in the dead-letter queue", func() bool {
		q.Expire()
		alive, dead := q.Left()
		return alive == 0 && dead == 5*len(bad)
	})
	if got := states(t, s, id); len(got) != 2 {
		t.Errorf("recorded is\n%s", steps(got))
	}
}
