package conformance_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
)

const (
	pending = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_PENDING
	running = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_RUNNING
	stopped = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_STOPPED
)

func inst(id string, state instancedv1.InstanceStateName) *instancedv1.Instance {
	return &instancedv1.Instance{InstanceId: id, State: &instancedv1.InstanceState{Name: state}}
}

func event(revision uint64, index uint32, id string, from, to instancedv1.InstanceStateName) *instancedv1.Event {
	return &instancedv1.Event{
		Type:          instancedv1.EventType_EVENT_TYPE_STATE_CHANGED,
		Revision:      revision,
		Index:         index,
		Instance:      inst(id, to),
		PreviousState: &instancedv1.InstanceState{Name: from},
		Match:         instancedv1.EventMatch_EVENT_MATCH_STAYED,
		Cause:         &instancedv1.Cause{RequestId: "request"},
	}
}

// added is an instance that is there from then on, and stopped.
func added(revision uint64, index uint32, id string) *instancedv1.Event {
	e := event(revision, index, id, stopped, stopped)
	e.Type, e.PreviousState = instancedv1.EventType_EVENT_TYPE_ADDED, nil
	return e
}

func recordedSnapshot(c *conformance.Connection, before ...*instancedv1.Event) error {
	_, _, err := conformance.RecordedSnapshot(c, before)
	return err
}

func cursor(revision uint64) string { return fmt.Sprintf("cursor-%d", revision) }

func message(at int, m *instancedv1.WatchInstancesResponse) conformance.Message {
	return conformance.Message{WatchInstancesResponse: m, At: time.Unix(int64(at), 0)}
}

func subscribed(at int) conformance.Message {
	return message(at, &instancedv1.WatchInstancesResponse{Message: &instancedv1.WatchInstancesResponse_Subscribed{
		Subscribed: &instancedv1.Subscribed{ProgressInterval: durationpb.New(10 * time.Second)},
	}})
}

func snapshot(at int, revision uint64, instances ...*instancedv1.Instance) conformance.Message {
	return message(at, &instancedv1.WatchInstancesResponse{Cursor: cursor(revision), Message: &instancedv1.WatchInstancesResponse_Snapshot{
		Snapshot: &instancedv1.Snapshot{First: true, Last: true, Instances: instances},
	}})
}

func events(at int, cursor string, events ...*instancedv1.Event) conformance.Message {
	return message(at, &instancedv1.WatchInstancesResponse{Cursor: cursor, Message: &instancedv1.WatchInstancesResponse_Events{
		Events: &instancedv1.Events{Events: events},
	}})
}

func progress(at int, revision uint64) conformance.Message {
	return message(at, &instancedv1.WatchInstancesResponse{Cursor: cursor(revision), Message: &instancedv1.WatchInstancesResponse_Progress{
		Progress: &instancedv1.Progress{},
	}})
}

// story is two instances of which one starts at revision 1, both do something at 2, and
// the first one stops at 3.
func story() *conformance.Connection {
	return &conformance.Connection{
		Request: &instancedv1.WatchInstancesRequest{},
		Messages: []conformance.Message{
			subscribed(0),
			snapshot(0, 0, inst("a", stopped), inst("b", stopped)),
			events(1, cursor(1), event(1, 0, "a", stopped, pending)),
			events(2, cursor(2), event(2, 0, "a", pending, running), event(2, 1, "b", stopped, pending)),
			progress(9, 2),
			events(12, cursor(3), event(3, 0, "b", pending, stopped)),
		},
	}
}

// after is a connection that goes on where another one ended.
func after(revision uint64, messages ...conformance.Message) *conformance.Connection {
	return &conformance.Connection{
		Request:  &instancedv1.WatchInstancesRequest{AfterCursor: cursor(revision)},
		Messages: append([]conformance.Message{subscribed(0)}, messages...),
	}
}

func truth(t *testing.T) *conformance.Log {
	t.Helper()
	log, err := conformance.NewLog(story())
	if err != nil {
		t.Fatal(err)
	}
	return log
}

func TestAStoryThatKeepsAllPromises(t *testing.T) {
	log := truth(t)
	for name, c := range map[string]*conformance.Connection{
		"from the beginning": story(),
		"after revision 1":   after(1, story().Messages[3:]...),
		"a snapshot at revision 2": {
			Request: &instancedv1.WatchInstancesRequest{},
			Messages: []conformance.Message{
				subscribed(0),
				snapshot(0, 2, inst("a", running), inst("b", pending)),
				events(12, cursor(3), event(3, 0, "b", pending, stopped)),
			},
		},
	} {
		if err := conformance.All(log, c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, f := range conformance.Together(conformance.Alone(story()), conformance.Against(log, resumed())) {
		if f.Err != nil {
			t.Error(f.Err)
		}
	}
	if err := errors.Join(conformance.Recorded(story(), log.Matching(nil, 0, 3), true), conformance.Recorded(story(), log.Matching(nil, 1, 3), false)); err != nil {
		t.Error(err)
	}
	whole := []*instancedv1.Event{added(0, 0, "a"), added(0, 1, "b"), added(0, 2, "c")}
	if compared, unknown, err := conformance.RecordedSnapshot(story(), whole); compared != 2 || unknown != 0 || err != nil {
		t.Errorf("a snapshot that lacks an instance: %d, %d, %v", compared, unknown, err)
	}
	if compared, unknown, err := conformance.RecordedSnapshot(story(), whole[:1]); compared != 1 || unknown != 1 || err != nil {
		t.Errorf("a snapshot with an instance that the history has nothing of: %d, %d, %v", compared, unknown, err)
	}
	if err := conformance.Progress(story(), time.Unix(15, 0), time.Second); err != nil {
		t.Error(err)
	}
	if err := conformance.Truthful(log, map[string]instancedv1.InstanceStateName{"a": running, "b": stopped}); err != nil {
		t.Error(err)
	}
}

// resumed is a sequence over three streams: the first one breaks in the midst of a
// snapshot, the second one in the midst of a batch.
func resumed() *conformance.Connection {
	begun := snapshot(0, 0, inst("a", stopped))
	begun.Cursor, begun.GetSnapshot().Last = "", false
	goesOn := subscribed(3)
	goesOn.Cursor = cursor(1)
	s := story().Messages
	return &conformance.Connection{
		Request:  &instancedv1.WatchInstancesRequest{},
		Followed: true,
		Messages: []conformance.Message{
			subscribed(0), begun,
			subscribed(1), s[1], s[2], events(2, "", event(2, 0, "a", pending, running)),
			goesOn, events(3, cursor(2), event(2, 1, "b", stopped, pending)), s[4], s[5],
		},
	}
}

func TestAFollowedSequenceIsOneStream(t *testing.T) {
	log := truth(t)
	if err := conformance.All(log, resumed()); err != nil {
		t.Error(err)
	}
	again, err := conformance.NewLog(resumed())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(again.Agrees(log.Matching(nil, 0, log.Head())), conformance.All(again, story())); err != nil {
		t.Error(err)
	}
	if err := conformance.Progress(resumed(), time.Unix(15, 0), time.Second); err != nil {
		t.Error(err)
	}
	if n := len(resumed().Streams()); n != 3 {
		t.Errorf("there are %d streams, want 3", n)
	}
	// What is missing or doubled between two streams is seen.
	missing := resumed()
	missing.Messages[7].GetEvents().Events = nil
	doubled := resumed()
	doubled.Messages[7].GetEvents().Events = event2()
	for says, err := range map[string]error{
		"connection 0: after revision 0: event 2 is": conformance.Complete(log, missing),
		"comes after event 2.0":                      conformance.Ordered(doubled),
		"event 2.0 (a INSTANCE_STATE_NAME_PENDING -> INSTANCE_STATE_NAME_RUNNING) was delivered before": conformance.Unique(log, doubled),
	} {
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want an error that says %q", err, says)
		}
	}
	// A single stream has no such excuse.
	raw := resumed()
	raw.Followed = false
	if err := conformance.All(log, raw); err == nil {
		t.Error("a stream that begins three times passes")
	}
}

// elsewhere is a sequence whose second stream skips revision 2.
func elsewhere() *conformance.Connection {
	c := resumed()
	c.Messages[6].Cursor = cursor(2)
	return c
}

func part(first, last bool) conformance.Message {
	m := snapshot(0, 0)
	m.Cursor, m.GetSnapshot().First, m.GetSnapshot().Last = "", first, last
	return m
}

func goodbye(cursor string) conformance.Message {
	return message(9, &instancedv1.WatchInstancesResponse{Cursor: cursor, Message: &instancedv1.WatchInstancesResponse_Goodbye{
		Goodbye: &instancedv1.Goodbye{Reason: instancedv1.GoodbyeReason_GOODBYE_REASON_DRAIN, RetryDelay: durationpb.New(time.Second)},
	}})
}

// alone returns what a connection shows of one promise by itself.
func alone(promise string, c *conformance.Connection) error {
	for _, f := range conformance.Alone(c) {
		if f.Promise == promise {
			return f.Err
		}
	}
	return fmt.Errorf("nothing was found of %s", promise)
}

// event2 is all of revision 2.
func event2() []*instancedv1.Event {
	return []*instancedv1.Event{event(2, 0, "a", pending, running), event(2, 1, "b", stopped, pending)}
}

func TestAStreamMayBeCutAnywhere(t *testing.T) {
	log := truth(t)
	s := story().Messages
	first := &conformance.Connection{
		Request:  &instancedv1.WatchInstancesRequest{},
		Messages: append(append([]conformance.Message{}, s[:3]...), events(2, "", event(2, 0, "a", pending, running))),
	}
	if got := first.Cursor(); got != cursor(1) {
		t.Fatalf("it goes on at %s", got)
	}
	rest := after(1, s[3:]...)
	if err := conformance.All(log, first, rest); err != nil {
		t.Error(err)
	}
	first.Messages[3] = events(2, "", event(2, 1, "b", stopped, pending))
	if err := conformance.Complete(log, first); err == nil {
		t.Error("a hole behind the last cursor passes")
	}
}

func TestBrokenPromisesAreSeen(t *testing.T) {
	log := truth(t)
	with := func(n int, m ...conformance.Message) *conformance.Connection {
		c := story()
		c.Messages = append(append(append([]conformance.Message{}, c.Messages[:n]...), m...), c.Messages[n+1:]...)
		return c
	}
	changed := func(change func(*instancedv1.Event)) *instancedv1.Event {
		e := proto.CloneOf(event(2, 0, "a", pending, running))
		change(e)
		return e
	}
	rest := event(2, 1, "b", stopped, pending)
	removed := event(0, 1, "b", stopped, stopped)
	removed.Type = instancedv1.EventType_EVENT_TYPE_REMOVED
	for _, test := range []struct {
		name string
		err  error
		says string
	}{
		{"events out of order", conformance.Ordered(with(3, events(2, cursor(2), rest, event(2, 0, "a", pending, running)))), "comes after"},
		{"an event twice", conformance.Ordered(with(3, events(2, cursor(2), event(1, 0, "a", stopped, pending)))), "comes after"},
		{"a state that was skipped", conformance.Ordered(with(2)), "but it was"},
		{"a state that cannot follow", conformance.Ordered(with(2, events(1, cursor(1), event(1, 0, "a", stopped, running)))), "cannot follow"},
		{"an event that is missing", conformance.Complete(log, with(3, events(2, cursor(2), event(2, 0, "a", pending, running)))), "want"},
		{"a batch that is missing", conformance.Complete(log, with(3)), "want"},
		{"an event that was altered", conformance.Complete(log, with(3, events(2, cursor(2), changed(func(e *instancedv1.Event) { e.Inferred = true }), rest))), "event 1 is"},
		{"a wrong match", conformance.Complete(log, with(3, events(2, cursor(2), changed(func(e *instancedv1.Event) { e.Match = instancedv1.EventMatch_EVENT_MATCH_LEFT }), rest))), "event 1 is"},
		{"a cursor beyond what was delivered", conformance.Complete(log, with(5, progress(12, 3))), "missing"},
		{"an event before the cursor", conformance.Unique(log, after(2, story().Messages[3])), "delivered before"},
		{"an event delivered twice", conformance.Unique(log, after(1, story().Messages[3], story().Messages[3])), "delivered before"},
		{"a cursor in the midst of a batch", conformance.Atomic(log, with(3, events(2, cursor(1), event(2, 0, "a", pending, running)), events(2, cursor(2), rest))), "stands before"},
		{"a batch that goes on after its cursor", conformance.Atomic(log, with(3, events(2, cursor(2), event(2, 0, "a", pending, running)), events(2, cursor(2), rest))), "comes after a cursor"},
		{"a cursor that is none", conformance.Atomic(log, with(3, events(2, "?", event(2, 0, "a", pending, running)))), "no recorded batch"},
		{"a snapshot that is behind", conformance.Snapshot(log, with(1, snapshot(0, 1, inst("a", stopped), inst("b", stopped)))), "want"},
		{"a snapshot that lacks an instance", conformance.Snapshot(log, with(1, snapshot(0, 0, inst("a", stopped)))), "1 instances, want 2"},
		{"a snapshot out of order", conformance.Snapshot(log, with(1, snapshot(0, 0, inst("b", stopped), inst("a", stopped)))), "order"},
		{"a change that was acknowledged and not delivered", conformance.Live(log, &conformance.Connection{
			Request: &instancedv1.WatchInstancesRequest{}, Messages: []conformance.Message{subscribed(0), story().Messages[1], story().Messages[2], progress(3, 2)},
		}, conformance.Acknowledged{At: time.Unix(1, 0), Cursor: cursor(1), EndCursor: cursor(2)}), "not delivered"},
		{"progress that is late", conformance.Progress(story(), time.Unix(30, 0), time.Second), "none for 21s"},
		{"a start that is not seen", conformance.ReadYourStart(after(1, story().Messages[3]), &instancedv1.StartInstancesResponse{
			Cursor:            cursor(1),
			StartingInstances: []*instancedv1.InstanceStateChange{{InstanceId: "a", PreviousState: &instancedv1.InstanceState{Name: stopped}, CurrentState: &instancedv1.InstanceState{Name: pending}}},
		}, "request"), "not seen"},
		{"an end without a goodbye", conformance.Goodbye(&conformance.Connection{
			Request: &instancedv1.WatchInstancesRequest{}, Messages: story().Messages, Err: status.Error(codes.Unavailable, "gone"),
		}, instancedv1.GoodbyeReason_GOODBYE_REASON_DRAIN), "the last message"},
		{"a history that lost its end", conformance.Durable([]*instancedv1.Event{event(1, 0, "a", stopped, pending), rest}, []*instancedv1.Event{event(1, 0, "a", stopped, pending)}), "missing"},
		{"a record that is not what is", conformance.Truthful(log, map[string]instancedv1.InstanceStateName{"a": stopped, "b": stopped}), "recorded as"},
		{"an event that matched before and was never seen", conformance.Ordered(with(1, snapshot(0, 0, inst("a", stopped)))), "nothing was told of that"},
		{"an event that begins to match twice", conformance.Ordered(with(3, events(2, cursor(2), changed(func(e *instancedv1.Event) { e.Match = instancedv1.EventMatch_EVENT_MATCH_ENTERED }), rest))), "it matched before"},
		{"alone: an event twice", alone("Unique", with(3, events(2, cursor(2), event(1, 0, "a", stopped, pending)))), "delivered before"},
		{"alone: a cursor in the midst of a batch", alone("Atomic", with(3, events(2, cursor(4), event(2, 0, "a", pending, running)), events(2, cursor(2), rest))), "comes after a cursor"},
		{"alone: a snapshot in parts of which none is last", alone("Snapshot", with(1, part(true, false), subscribed(2))), "something else comes"},
		{"alone: a snapshot without a beginning", alone("Snapshot", with(1, part(false, true))), "marked as that"},
		{"alone: a snapshot that ends without a cursor", alone("Snapshot", with(1, part(true, true))), "has the cursor"},
		{"alone: an instance twice in a snapshot", alone("Snapshot", with(1, snapshot(0, 0, inst("a", stopped), inst("a", stopped)))), "order of the ids"},
		{"alone: progress that goes back", alone("Progress", with(4, progress(9, 1))), "from before 2 of the events"},
		{"alone: something after a goodbye", alone("Goodbye", with(4, goodbye(cursor(2)))), "something comes after it"},
		{"alone: a goodbye without a cursor", alone("Goodbye", with(5, goodbye(""))), "there is no cursor"},
		{"alone: a stream that goes on elsewhere", alone("Unique", elsewhere()), "goes on at another cursor"},
		{"a recording with an event that never was", conformance.Recorded(story(), log.Matching(nil, 0, 2), true), "delivered and not recorded"},
		{"a recording that lacks an event", conformance.Recorded(with(2), log.Matching(nil, 0, 3), true), "recorded and not delivered"},
		{"a recording that lacks its end", conformance.Recorded(with(5, progress(12, 3)), log.Matching(nil, 0, 3), true), "recorded and not delivered"},
		{"a recording with an altered event", conformance.Recorded(with(3, events(2, cursor(2), changed(func(e *instancedv1.Event) { e.Inferred = true }), rest)), log.Matching(nil, 0, 3), true), "and recorded as"},
		{"a recorded snapshot with another state", recordedSnapshot(with(1, snapshot(0, 0, inst("a", stopped), inst("b", running))), added(0, 0, "a"), added(0, 1, "b")), "instance b is"},
		{"a recorded snapshot with an instance that was removed", recordedSnapshot(story(), added(0, 0, "a"), removed), "was removed by event 0.1"},
		{"a history that disagrees", log.Agrees([]*instancedv1.Event{event(1, 0, "a", stopped, pending)}), "want 4"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.err == nil || !strings.Contains(test.err.Error(), test.says) {
				t.Errorf("got %v, want an error that says %q", test.err, test.says)
			}
		})
	}
}

func TestFiltersEnterAndLeave(t *testing.T) {
	log := truth(t)
	filter := &instancedv1.InstanceFilter{States: []instancedv1.InstanceStateName{pending}}
	var got []string
	for _, e := range log.Matching(filter, 0, log.Head()) {
		got = append(got, fmt.Sprintf("%s %v", e.GetInstance().GetInstanceId(), e.GetMatch()))
	}
	const want = "a EVENT_MATCH_ENTERED, a EVENT_MATCH_LEFT, b EVENT_MATCH_ENTERED, b EVENT_MATCH_LEFT"
	if text := strings.Join(got, ", "); text != want {
		t.Errorf("got %s, want %s", text, want)
	}
}
