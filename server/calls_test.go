package server_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

const (
	// example is the instance of EC2's own documentation of StartInstances.
	example   = "i-1234567890abcdef0"
	fallsBack = "i-0a0000000000000fa"
	denied    = "i-0a0000000000000de"
	missing   = "i-00000000000000bad"

	perInstance = instancedv1.FailureMode_FAILURE_MODE_PER_INSTANCE
)

func start(t testing.TB, srv *servertest.Server, ids ...string) *instancedv1.StartInstancesResponse {
	t.Helper()
	resp, err := srv.Instances().StartInstances(patient(t), &instancedv1.StartInstancesRequest{InstanceIds: ids})
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func TestStartInstancesAnswersTheExampleOfTheDocumentation(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{})
	resp := start(t, srv, example)
	if resp.GetCursor() == "" || resp.GetEndCursor() == "" {
		t.Errorf("a cursor is missing: %v", resp)
	}
	resp.Cursor, resp.EndCursor = "", ""
	got, err := protojson.Marshal(resp)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"startingInstances":[{` +
		`"currentState":{"code":0,"name":"INSTANCE_STATE_NAME_PENDING"},` +
		`"instanceId":"i-1234567890abcdef0",` +
		`"previousState":{"code":80,"name":"INSTANCE_STATE_NAME_STOPPED"}}]}`
	if text := strings.ReplaceAll(string(got), ", ", ","); text != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
}

func TestTheFourVerbs(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(1), Speed: 2000})
	ctx := patient(t)
	changed := func(from, to instancedv1.InstanceStateName, got ...*instancedv1.InstanceStateChange) {
		t.Helper()
		want := []*instancedv1.InstanceStateChange{{
			InstanceId:    id(0),
			PreviousState: &instancedv1.InstanceState{Code: new(codeOf(from)), Name: from},
			CurrentState:  &instancedv1.InstanceState{Code: new(codeOf(to)), Name: to},
		}}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
	changed(stopped, pending, start(t, srv, id(0)).GetStartingInstances()...)
	settled(t, srv, ids(1))
	changed(running, running, start(t, srv, id(0)).GetStartingInstances()...)
	reboot, err := srv.Instances().RebootInstances(ctx, &instancedv1.RebootInstancesRequest{InstanceIds: ids(1)})
	if err != nil {
		t.Fatal(err)
	}
	changed(running, running, reboot.GetRebootingInstances()...)
	stop, err := srv.Instances().StopInstances(ctx, &instancedv1.StopInstancesRequest{InstanceIds: ids(1), Force: true, SkipOsShutdown: true})
	if err != nil {
		t.Fatal(err)
	}
	changed(running, stopping, stop.GetStoppingInstances()...)
	settled(t, srv, ids(1))
	terminate, err := srv.Instances().TerminateInstances(ctx, &instancedv1.TerminateInstancesRequest{InstanceIds: ids(1)})
	if err != nil {
		t.Fatal(err)
	}
	changed(stopped, shuttingDown, terminate.GetTerminatingInstances()...)
	settled(t, srv, ids(1))
	_, err = srv.Instances().StopInstances(ctx, &instancedv1.StopInstancesRequest{InstanceIds: ids(1), Hibernate: true})
	wantRefusal(t, err, codes.FailedPrecondition, "INCORRECT_INSTANCE_STATE")
}

func codeOf(name instancedv1.InstanceStateName) int32 { return (int32(name) - 1) * 16 }

func TestARepeatedIDCountsOnce(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(2)})
	resp := start(t, srv, id(1), id(0), id(1))
	if got := resp.GetStartingInstances(); len(got) != 2 || got[0].GetInstanceId() != id(1) || got[1].GetInstanceId() != id(0) {
		t.Errorf("got %v", got)
	}
}

func TestGoodAndMissingInBothModes(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{})
	const store, host = "i-0a000000000000003", "i-0a000000000000004"
	_, err := srv.Instances().StartInstances(patient(t), &instancedv1.StartInstancesRequest{InstanceIds: []string{example, missing}})
	wantRefusal(t, err, codes.NotFound, "INVALID_INSTANCE_ID_NOT_FOUND")

	resp, err := srv.Instances().StartInstances(patient(t), &instancedv1.StartInstancesRequest{
		InstanceIds: []string{missing, example, host, denied, store},
		FailureMode: perInstance,
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := resp.GetStartingInstances(); len(got) != 1 || got[0].GetInstanceId() != example || got[0].GetPreviousState().GetName() != stopped {
		t.Errorf("started: %v", got)
	}
	want := []*instancedv1.InstanceFailure{
		{InstanceId: missing, StatusCode: int32(codes.NotFound), Ec2ErrorCode: "InvalidInstanceID.NotFound"},
		{InstanceId: host, StatusCode: int32(codes.FailedPrecondition), Ec2ErrorCode: "UnsupportedOperation"},
		{InstanceId: denied, StatusCode: int32(codes.PermissionDenied), Ec2ErrorCode: "UnauthorizedOperation"},
		{InstanceId: store, StatusCode: int32(codes.FailedPrecondition), Ec2ErrorCode: "UnsupportedOperation"},
	}
	if diff := cmp.Diff(want, resp.GetFailedInstances(), protocmp.Transform(), protocmp.IgnoreFields(&instancedv1.InstanceFailure{}, "message")); diff != "" {
		t.Errorf("failed (-want +got):\n%s", diff)
	}
	for _, f := range resp.GetFailedInstances() {
		if f.GetMessage() == "" {
			t.Errorf("no message: %v", f)
		}
	}
}

func TestDryRun(t *testing.T) {
	t.Parallel()
	var log logBuffer
	srv := servertest.New(t, servertest.Options{Logger: log.logger()})
	begin := head(t, srv)
	_, err := srv.Instances().StartInstances(patient(t), &instancedv1.StartInstancesRequest{InstanceIds: []string{example}, DryRun: true})
	wantRefusal(t, err, codes.FailedPrecondition, "DRY_RUN_OPERATION")
	if got := status.Convert(err).Message(); got != "Request would have succeeded, but DryRun flag is set." {
		t.Errorf("the message is %q", got)
	}
	_, err = srv.Instances().StopInstances(patient(t), &instancedv1.StopInstancesRequest{InstanceIds: []string{denied}, DryRun: true})
	wantRefusal(t, err, codes.PermissionDenied, "UNAUTHORIZED_OPERATION")
	if head(t, srv) != begin {
		t.Error("a dry run was recorded")
	}
	if line := lineWith(&log, "DRY_RUN_OPERATION"); !strings.Contains(line, "code=OK") || !strings.Contains(line, "level=INFO") {
		t.Errorf("the log does not count it as a success: %s", line)
	}
}

func TestExactlyOneOfConcurrentCallersSeesStopped(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(1), Speed: 10})
	var (
		callers sync.WaitGroup
		mu      sync.Mutex
		saw     = map[instancedv1.InstanceStateName]int{}
		who     string
	)
	for n := range 50 {
		callers.Go(func() {
			name := fmt.Sprintf("caller-%d", n)
			resp, err := srv.Instances().StartInstances(as(patient(t), name, name), &instancedv1.StartInstancesRequest{InstanceIds: ids(1)})
			if err != nil {
				t.Error(err)
				return
			}
			change := resp.GetStartingInstances()[0]
			mu.Lock()
			defer mu.Unlock()
			saw[change.GetPreviousState().GetName()]++
			if change.GetPreviousState().GetName() == stopped {
				who = name
			}
			if change.GetCurrentState().GetName() != pending {
				t.Errorf("the current state is %v", change.GetCurrentState())
			}
		})
	}
	callers.Wait()
	if saw[stopped] != 1 || saw[pending] != 49 {
		t.Fatalf("previous states: %v", saw)
	}
	events := history(t, srv, ids(1), "")
	last := events[len(events)-1]
	if last.GetCause().GetPrincipal() != who || last.GetCause().GetVerb() != "StartInstances" {
		t.Errorf("the cause is %v, want %s", last.GetCause(), who)
	}
}

func TestClientTokens(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(2)})
	call := func(principal, token string, ids ...string) (*instancedv1.StartInstancesResponse, error) {
		return srv.Instances().StartInstances(as(patient(t), principal, "r"), &instancedv1.StartInstancesRequest{InstanceIds: ids, ClientToken: token})
	}
	first, err := call("alice", "token", id(0))
	if err != nil {
		t.Fatal(err)
	}
	settled(t, srv, ids(1))
	again, err := call("alice", "token", id(0))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, again, protocmp.Transform()); diff != "" {
		t.Errorf("a retry got another answer:\n%s", diff)
	}
	_, err = call("alice", "token", id(1))
	wantRefusal(t, err, codes.AlreadyExists, "CLIENT_TOKEN_REUSED")
	if _, err := call("bob", "token", id(1)); err != nil {
		t.Errorf("the token of another principal: %v", err)
	}
	if _, err := srv.Instances().StopInstances(as(patient(t), "alice", "r"), &instancedv1.StopInstancesRequest{InstanceIds: ids(1), ClientToken: "token"}); err != nil {
		t.Errorf("the token of another verb: %v", err)
	}
}

func TestATokenInFlightIsJoined(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(1), Speed: 10})
	if _, err := srv.Simulator().SetFaults(patient(t), &instancedv1.SetFaultsRequest{Faults: []*instancedv1.Fault{{
		Kind:  instancedv1.FaultKind_FAULT_KIND_SLOW_CALL,
		Delay: durationpb.New(50 * time.Millisecond),
	}}}); err != nil {
		t.Fatal(err)
	}
	answers := make([]*instancedv1.StartInstancesResponse, 8)
	var callers sync.WaitGroup
	for n := range answers {
		callers.Go(func() {
			resp, err := srv.Instances().StartInstances(patient(t), &instancedv1.StartInstancesRequest{InstanceIds: ids(1), ClientToken: "same"})
			if err != nil {
				t.Error(err)
			}
			answers[n] = resp
		})
	}
	callers.Wait()
	for _, a := range answers {
		if diff := cmp.Diff(answers[0], a, protocmp.Transform()); diff != "" {
			t.Errorf("two answers to one token:\n%s", diff)
		}
	}
	if got := answers[0].GetStartingInstances()[0].GetPreviousState().GetName(); got != stopped {
		t.Errorf("the previous state is %v", got)
	}
}

func TestRequestIDs(t *testing.T) {
	t.Parallel()
	var log logBuffer
	srv := servertest.New(t, servertest.Options{Logger: log.logger()})
	var header metadata.MD
	if _, err := srv.Instances().GetServerInfo(as(patient(t), "alice", "mine"), &instancedv1.GetServerInfoRequest{}, grpc.Header(&header)); err != nil {
		t.Fatal(err)
	}
	if got := header.Get("request-id"); len(got) != 1 || got[0] != "mine" {
		t.Errorf("the header is %v", got)
	}
	if _, err := srv.Instances().GetServerInfo(patient(t), &instancedv1.GetServerInfoRequest{}, grpc.Header(&header)); err != nil {
		t.Fatal(err)
	}
	if got := header.Get("request-id"); len(got) != 1 || len(got[0]) < 20 {
		t.Errorf("the generated id is %v", got)
	}
	line := lineWith(&log, "request_id=mine")
	for _, part := range []string{"method=GetServerInfo", "code=OK", "principal_unverified=alice", "took="} {
		if !strings.Contains(line, part) {
			t.Errorf("the log line lacks %s: %s", part, line)
		}
	}
	start(t, srv, example)
	if line := lineWith(&log, "method=StartInstances"); !strings.Contains(line, " instances=1") {
		t.Errorf("the log line lacks the number of instances: %s", line)
	}
}

// lineWith returns the line of a log with a text in it.
func lineWith(log *logBuffer, text string) string {
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, text) {
			return line
		}
	}
	return ""
}

func TestThrottledCallsSayWhenToTryAgain(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(10), Throttle: true})
	for n := range 10 {
		var trailer metadata.MD
		_, err := srv.Instances().StartInstances(patient(t), &instancedv1.StartInstancesRequest{InstanceIds: []string{id(n)}}, grpc.Trailer(&trailer))
		if err == nil {
			continue
		}
		wantRefusal(t, err, codes.ResourceExhausted, "REQUEST_LIMIT_EXCEEDED")
		var delay time.Duration
		for _, d := range status.Convert(err).Details() {
			if retry, ok := d.(*errdetails.RetryInfo); ok {
				delay = retry.GetRetryDelay().AsDuration()
			}
		}
		if got := trailer.Get("grpc-retry-pushback-ms"); len(got) != 1 || got[0] != fmt.Sprint(delay.Milliseconds()) || delay <= 0 {
			t.Errorf("the trailer is %v, the delay %v", got, delay)
		}
		return
	}
	t.Error("no call was throttled")
}
