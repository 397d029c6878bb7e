package server_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
	"github.com/instanced/instanced/server/servertest"
)

const (
	reached     = instancedv1.WaitOutcome_WAIT_OUTCOME_REACHED
	unreachable = instancedv1.WaitOutcome_WAIT_OUTCOME_UNREACHABLE
	timedOut    = instancedv1.WaitOutcome_WAIT_OUTCOME_TIMED_OUT
	unsettled   = instancedv1.WaitOutcome_WAIT_OUTCOME_UNSETTLED
)

func wait(t testing.TB, srv *servertest.Server, req *instancedv1.WaitInstancesRequest) []*instancedv1.WaitResult {
	t.Helper()
	resp, err := srv.Instances().WaitInstances(patient(t), req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.GetCursor() == "" {
		t.Error("the answer has no cursor")
	}
	return resp.GetResults()
}

func TestWaitUntilRunning(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Speed: 100})
	begun := start(t, srv, example)
	r := wait(t, srv, &instancedv1.WaitInstancesRequest{
		InstanceIds: []string{example, example},
		States:      []instancedv1.InstanceStateName{running},
		AfterCursor: begun.GetCursor(),
	})
	if len(r) != 1 || r[0].GetOutcome() != reached || r[0].GetReachedState().GetCode() != 16 || r[0].GetReachedState().GetName() != running {
		t.Fatalf("got %v", r)
	}
	if i := r[0].GetInstance(); i.GetPublicIpAddress() == "" || i.GetPrivateIpAddress() == "" || i.GetSimulator().GetBilledSeconds() < 60 {
		t.Errorf("the instance is %v", i)
	}
}

func TestWaitForAStartThatFallsBack(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Speed: 100})
	begun := start(t, srv, fallsBack)
	r := wait(t, srv, &instancedv1.WaitInstancesRequest{
		InstanceIds: []string{fallsBack},
		States:      []instancedv1.InstanceStateName{running},
		AfterCursor: begun.GetCursor(),
	})
	if r[0].GetOutcome() != unreachable || r[0].GetStateReason().GetCode() != "Client.InternalError" || r[0].GetInstance().GetState().GetName() != stopped {
		t.Errorf("got %v", r[0])
	}
	// That it fell back before is of no interest to somebody who asks without a cursor.
	r = wait(t, srv, &instancedv1.WaitInstancesRequest{
		InstanceIds: []string{fallsBack},
		States:      []instancedv1.InstanceStateName{running},
		Timeout:     durationpb.New(50 * time.Millisecond),
	})
	if r[0].GetOutcome() != timedOut {
		t.Errorf("without a cursor: %v", r[0])
	}
}

func TestATimeoutIsAnAnswer(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{})
	r := wait(t, srv, &instancedv1.WaitInstancesRequest{
		InstanceIds: []string{example},
		States:      []instancedv1.InstanceStateName{running},
		Timeout:     durationpb.New(20 * time.Millisecond),
	})
	if r[0].GetOutcome() != timedOut || r[0].GetInstance().GetState().GetName() != stopped || r[0].GetReachedState() != nil {
		t.Errorf("got %v", r[0])
	}
}

func TestAStateThatWasPassedThroughCounts(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{})
	begun := start(t, srv, example)
	settled(t, srv, []string{example})
	r := wait(t, srv, &instancedv1.WaitInstancesRequest{
		InstanceIds: []string{example},
		States:      []instancedv1.InstanceStateName{pending},
		AfterCursor: begun.GetCursor(),
	})
	if r[0].GetOutcome() != reached || r[0].GetReachedState().GetName() != pending || r[0].GetInstance().GetState().GetName() != running {
		t.Errorf("got %v", r[0])
	}
}

func TestWaitForAnInstanceThatIsTerminated(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(3)})
	if _, err := srv.Instances().TerminateInstances(patient(t), &instancedv1.TerminateInstancesRequest{InstanceIds: []string{id(1)}}); err != nil {
		t.Fatal(err)
	}
	settled(t, srv, []string{id(1)})
	start(t, srv, id(0))
	settled(t, srv, []string{id(0)})
	for until, want := range map[instancedv1.WaitUntil][]instancedv1.WaitOutcome{
		instancedv1.WaitUntil_WAIT_UNTIL_ALL_SETTLED:   {reached, unreachable, timedOut},
		instancedv1.WaitUntil_WAIT_UNTIL_FIRST_FAILURE: {reached, unreachable, unsettled},
	} {
		r := wait(t, srv, &instancedv1.WaitInstancesRequest{
			InstanceIds: ids(3),
			States:      []instancedv1.InstanceStateName{running},
			Timeout:     durationpb.New(100 * time.Millisecond),
			Until:       until,
		})
		for i := range r {
			if r[i].GetOutcome() != want[i] {
				t.Errorf("%v: %s: got %v, want %v", until, r[i].GetInstanceId(), r[i].GetOutcome(), want[i])
			}
		}
	}
}

func TestDescribePages(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(25)})
	filter := &instancedv1.InstanceFilter{Tags: []*instancedv1.TagFilter{{Key: "team", Values: []string{"red"}}}}
	var got []*instancedv1.Instance
	pages, token := 0, ""
	for {
		resp, err := srv.Instances().DescribeInstances(patient(t), &instancedv1.DescribeInstancesRequest{Filter: filter, PageSize: 5, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		if len(resp.GetInstances()) > 5 || resp.GetCursor() == "" || resp.GetLastReconciled() == nil {
			t.Errorf("page %d: %d instances, cursor %q, last reconciled %v", pages, len(resp.GetInstances()), resp.GetCursor(), resp.GetLastReconciled())
		}
		got = append(got, resp.GetInstances()...)
		pages++
		if token = resp.GetNextPageToken(); token == "" {
			break
		}
	}
	if pages != 3 || len(got) != 13 {
		t.Fatalf("%d instances on %d pages", len(got), pages)
	}
	for i, inst := range got {
		if inst.GetInstanceId() != id(2*i) {
			t.Errorf("instance %d is %s", i, inst.GetInstanceId())
		}
	}
}

func TestDescribeShowsWhatWasAcknowledged(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(20), Speed: 10})
	for n := range 20 {
		begun := start(t, srv, id(n))
		resp, err := srv.Instances().DescribeInstances(patient(t), &instancedv1.DescribeInstancesRequest{
			Filter:    &instancedv1.InstanceFilter{InstanceIds: []string{id(n)}},
			MinCursor: begun.GetEndCursor(),
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := resp.GetInstances()[0].GetState(); got.GetName() != pending || got.Code == nil || got.GetCode() != 0 {
			t.Errorf("%s is %v", id(n), got)
		}
	}
}

func TestBilledSecondsRunUpToTheAnswer(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{})
	describe := func() *instancedv1.Instance {
		resp, err := srv.Instances().DescribeInstances(patient(t), &instancedv1.DescribeInstancesRequest{Filter: &instancedv1.InstanceFilter{InstanceIds: []string{example}}})
		if err != nil {
			t.Fatal(err)
		}
		return resp.GetInstances()[0]
	}
	if got := describe().GetSimulator().GetBilledSeconds(); got != 0 {
		t.Errorf("%d seconds before the first start", got)
	}
	start(t, srv, example)
	settled(t, srv, []string{example})
	if got := describe().GetSimulator().GetBilledSeconds(); got != 60 {
		t.Errorf("%d seconds right after the start, want a minute at least", got)
	}
	snapshot := until(t, reference(t, srv), conformance.SnapshotSeen)
	for _, m := range snapshot.Messages {
		for _, i := range m.GetSnapshot().GetInstances() {
			if i.GetInstanceId() == example && i.GetSimulator().GetBilledSeconds() != 0 {
				t.Errorf("a snapshot is as recorded, but shows %d seconds", i.GetSimulator().GetBilledSeconds())
			}
		}
	}
}

func TestListEvents(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(4), Seed: 3, Speed: 2000})
	all := reference(t, srv)
	busy(t, srv, ids(4), 30)
	log := logUpTo(t, all, settled(t, srv, ids(4)))

	chosen := &instancedv1.InstanceFilter{InstanceIds: []string{id(1), id(3)}}
	want := log.Matching(chosen, 0, log.Head())
	var got []*instancedv1.Event
	token, cursor := "", ""
	for {
		resp, err := srv.Instances().ListEvents(patient(t), &instancedv1.ListEventsRequest{
			InstanceIds: chosen.GetInstanceIds(), AfterCursor: log.Begin(), PageSize: 7, PageToken: token,
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(resp.GetEvents()) > 7 {
			t.Errorf("a page of %d events", len(resp.GetEvents()))
		}
		got = append(got, resp.GetEvents()...)
		token, cursor = resp.GetNextPageToken(), resp.GetCursor()
		if (token == "") != (cursor != "") {
			t.Errorf("a cursor belongs to the last page, and to no other: %q, %q", token, cursor)
		}
		if token == "" {
			break
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%d events, want %d", len(got), len(want))
	}
	for i := range got {
		if !proto.Equal(got[i], want[i]) {
			t.Fatalf("event %d is\n%v\nwant\n%v", i, got[i], want[i])
		}
	}
	if rest := history(t, srv, ids(4), cursor); len(rest) > 0 {
		t.Errorf("there are events after the last page: %v", rest)
	}
}

func TestGetServerInfo(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(5)})
	info, err := srv.Instances().GetServerInfo(patient(t), &instancedv1.GetServerInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	l := info.GetLimits()
	if l.GetMaxInstanceIds() != 1000 || l.GetMaxClientTokenLength() != 64 || l.GetMaxRequestBytes() != 1<<20 || l.GetMaxWait().AsDuration() != time.Hour ||
		l.GetRetention().AsDuration() != 24*time.Hour || l.GetJournalMaxBytes() != 1<<30 || l.GetClientTokenLifetime().AsDuration() != 24*time.Hour ||
		l.GetMaxRequests() != 2048 || l.GetMaxStreams() != 8192 || l.GetMaxConnections() != 5000 {
		t.Errorf("the limits are %v", l)
	}
	if info.GetBackend() != "simulator" || info.GetVersion() != "test" || info.GetLogId() == "" || !info.GetOwner().GetIsThisProcess() ||
		info.GetInstanceCount() != 5 || info.GetLastReconciled() == nil || info.GetCursor() == "" || info.GetOldestCursor() == "" || info.GetJournalBytes() <= 0 {
		t.Errorf("got %v", info)
	}
}

func TestAnAttributeChangeSaysWhatChanged(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Speed: 1})
	change := func(c *instancedv1.OutsideChange) string {
		t.Helper()
		c.InstanceIds = []string{example}
		resp, err := srv.Simulator().ChangeInstances(patient(t), &instancedv1.ChangeInstancesRequest{Changes: []*instancedv1.OutsideChange{c}})
		if err != nil {
			t.Fatal(err)
		}
		return resp.GetCursor()
	}
	cursor := change(&instancedv1.OutsideChange{SetTags: map[string]string{"team": "red", "keep": "me", "gone": "soon"}})
	change(&instancedv1.OutsideChange{SetTags: map[string]string{"team": "blue", "owner": "x.y"}, RemoveTags: []string{"gone"}})
	change(&instancedv1.OutsideChange{DisableApiStop: new(true)})
	started, err := srv.Instances().StartInstances(patient(t), &instancedv1.StartInstancesRequest{InstanceIds: []string{example}})
	if err != nil {
		t.Fatal(err)
	}
	want := [][]string{
		{"tags.gone", "tags.keep", "tags.team"},
		{"tags.gone", "tags.owner", "tags.team"},
		{"simulator"},
		nil, // a change of state
	}
	var got [][]string
	for _, e := range history(t, srv, []string{example}, cursor) {
		got = append(got, e.GetChangedFields())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("changed fields (-want +got):\n%s\nafter %v", diff, started)
	}
}

func TestOutsideChangesAreRecordedWhenTheCallReturns(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Speed: 1})
	resp, err := srv.Simulator().ChangeInstances(patient(t), &instancedv1.ChangeInstancesRequest{Changes: []*instancedv1.OutsideChange{
		{InstanceIds: []string{example}, Action: instancedv1.OutsideAction_OUTSIDE_ACTION_START, SetTags: map[string]string{"by": "hand"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	events := history(t, srv, []string{example}, resp.GetCursor())
	last := events[len(events)-1]
	if last.GetInstance().GetState().GetName() != pending || last.GetInstance().GetTags()["by"] != "hand" || !last.GetCause().GetExternal() {
		t.Errorf("got %v", events)
	}
}

func TestCreateInstancesAndReset(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(2)})
	before := head(t, srv)
	created, err := srv.Simulator().CreateInstances(patient(t), &instancedv1.CreateInstancesRequest{
		Instances: []*instancedv1.InstanceSpec{{Count: 3, State: running}},
		Faults:    []*instancedv1.Fault{{Kind: instancedv1.FaultKind_FAULT_KIND_UNAVAILABLE, Remaining: 2, Probability: 0.5}},
	})
	if err != nil {
		t.Fatal(err)
	}
	events := history(t, srv, created.GetInstanceIds(), before)
	if len(events) != 3 || events[0].GetType() != instancedv1.EventType_EVENT_TYPE_ADDED || events[0].GetMatch() != instancedv1.EventMatch_EVENT_MATCH_ENTERED {
		t.Errorf("got %v", events)
	}
	plan, err := srv.Simulator().GetFaults(patient(t), &instancedv1.GetFaultsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if f := plan.GetFaults(); len(f) != 1 || f[0].GetKind() != instancedv1.FaultKind_FAULT_KIND_UNAVAILABLE || f[0].GetRemaining() != 2 || f[0].GetProbability() != 0.5 {
		t.Errorf("the plan is %v", f)
	}
	reset, err := srv.Simulator().Reset(patient(t), &instancedv1.ResetRequest{})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := srv.Instances().DescribeInstances(patient(t), &instancedv1.DescribeInstancesRequest{MinCursor: reset.GetCursor()})
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.GetInstances()) != 2 {
		t.Errorf("%d instances after the reset", len(resp.GetInstances()))
	}
	events = history(t, srv, created.GetInstanceIds(), created.GetCursor())
	if len(events) != 3 || events[2].GetType() != instancedv1.EventType_EVENT_TYPE_REMOVED || events[2].GetMatch() != instancedv1.EventMatch_EVENT_MATCH_LEFT {
		t.Errorf("got %v", events)
	}
	if plan, err = srv.Simulator().GetFaults(patient(t), &instancedv1.GetFaultsRequest{}); err != nil || len(plan.GetFaults()) > 0 {
		t.Errorf("the plan after the reset is %v, %v", plan, err)
	}
}

func TestManyInstancesAtOnce(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(1000)})
	resp := start(t, srv, ids(1000)...)
	for i, change := range resp.GetStartingInstances() {
		if change.GetInstanceId() != id(i) {
			t.Fatalf("the answer is not in the order asked for: %s at %d", change.GetInstanceId(), i)
		}
	}
	if got := fmt.Sprint(len(resp.GetStartingInstances())); got != "1000" {
		t.Errorf("%s instances are starting", got)
	}
}
