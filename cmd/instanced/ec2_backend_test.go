package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awsec2 "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/cli"
)

const (
	stateRunning  = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_RUNNING
	stateStopping = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_STOPPING
	stateStopped  = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_STOPPED
)

// trouble is a fleet, and what an account has to reckon with.
const trouble = `
instances:
  - {count: 20}
  - {instance_id: i-0000000000000000a}
  - {instance_id: i-000000000000000fa, tags: {falls: back}}
faults:
  - {kind: request-limit-exceeded, match: {verbs: [StartInstances]}, remaining: 1}
  - {kind: answer-lost, match: {verbs: [StartInstances]}, remaining: 1}
  - {kind: slow-call, delay: 0.2s}
  - {kind: fall-back-to-stopped, match: {tags: {falls: back}}, state_reason: {code: Server.InternalError, message: "Server.InternalError: Internal error on launch"}}
`

func TestAStartGoesThroughTheWholeChain(t *testing.T) {
	t.Parallel()
	_, endpoint := simulated(t, trouble, "--sim-throttle", "--sim-speed", "20")
	s := fronting(t, "http://"+endpoint)
	stdout, stderr, status := s.ask("start", "i-0000000000000000a", "--wait")
	if status != cli.ExitOK || !strings.Contains(stdout, "i-0000000000000000a  stopped -> pending") || !strings.Contains(stdout, "is running at ") {
		t.Errorf("the start ended with %d:\n%s%s", status, stdout, stderr)
	}
	if stdout, _, _ := s.ask("version"); !strings.Contains(stdout, "backend   ec2, ") || !strings.Contains(stdout, "requests of StartInstances: ") || !strings.Contains(stdout, " of 5, gains ") {
		t.Errorf("the service says of itself:\n%s", stdout)
	}
}

func TestAStartThatFallsBackIsToldWithEC2sReason(t *testing.T) {
	t.Parallel()
	_, endpoint := simulated(t, trouble, "--sim-speed", "20")
	s := fronting(t, "http://"+endpoint)
	ctx, api := patient(t), s.instances()
	const id = "i-000000000000000fa"
	started, err := api.StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: []string{id}})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	waited, err := api.WaitInstances(ctx, &instancedv1.WaitInstancesRequest{
		InstanceIds: []string{id}, States: []instancedv1.InstanceStateName{stateRunning}, AfterCursor: started.GetCursor(), Timeout: durationpb.New(storyTimeout),
	})
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	result := waited.GetResults()[0]
	if result.GetOutcome() != instancedv1.WaitOutcome_WAIT_OUTCOME_UNREACHABLE || result.GetStateReason().GetCode() != "Server.InternalError" {
		t.Errorf("the wait ended with %v", result)
	}
	t.Logf("told %v after the answer to the start", took)
	events, err := api.ListEvents(ctx, &instancedv1.ListEventsRequest{InstanceIds: []string{id}, AfterCursor: started.GetCursor()})
	if err != nil {
		t.Fatal(err)
	}
	last := events.GetEvents()[len(events.GetEvents())-1]
	if last.GetInstance().GetState().GetName() != stateStopped || last.GetInstance().GetStateReason().GetMessage() != "Server.InternalError: Internal error on launch" || last.GetCause().GetVerb() != "StartInstances" {
		t.Errorf("the last event is %v", last)
	}
}

func TestOnlyManagedInstancesExist(t *testing.T) {
	t.Parallel()
	first, endpoint := simulated(t, `
instances:
  - {instance_id: i-0000000000000000a, state: running, tags: {team: red}}
  - {instance_id: i-0000000000000000b, state: running, tags: {team: blue}}
`, "--sim-speed", "0")
	s := fronting(t, "http://"+endpoint, "--manage-filter", "team=red", "--reconcile-interval", "500ms")
	ctx, api := patient(t), s.instances()
	stream, err := api.WatchInstances(ctx, &instancedv1.WatchInstancesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	direct := first.instances()
	for _, id := range []string{"i-0000000000000000b", "i-0000000000000000a"} {
		if _, err := direct.StopInstances(ctx, &instancedv1.StopInstancesRequest{InstanceIds: []string{id}}); err != nil {
			t.Fatal(err)
		}
	}
	for seen := false; !seen; {
		msg, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range msg.GetSnapshot().GetInstances() {
			if i.GetInstanceId() != "i-0000000000000000a" {
				t.Errorf("the snapshot has %v", i)
			}
		}
		for _, e := range msg.GetEvents().GetEvents() {
			if e.GetInstance().GetInstanceId() != "i-0000000000000000a" {
				t.Errorf("an event tells of another instance: %v", e)
			}
			seen = seen || e.GetInstance().GetState().GetName() == stateStopped
		}
	}
	other := []string{"i-0000000000000000b"}
	if _, err := api.DescribeInstances(ctx, &instancedv1.DescribeInstancesRequest{Filter: &instancedv1.InstanceFilter{InstanceIds: other}}); status.Code(err) != codes.NotFound {
		t.Errorf("describing another instance: %v", err)
	}
	if _, err := api.StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: other}); status.Code(err) != codes.NotFound {
		t.Errorf("starting another instance: %v", err)
	}
	if got, err := direct.DescribeInstances(ctx, &instancedv1.DescribeInstancesRequest{Filter: &instancedv1.InstanceFilter{InstanceIds: other}}); err != nil || got.GetInstances()[0].GetState().GetName() != stateStopped {
		t.Errorf("it was touched anyway: %v, %v", got, err)
	}
}

func TestAnInstanceLaunchedAMinuteAgoIsFound(t *testing.T) {
	t.Parallel()
	_, endpoint := simulated(t, "", "--sim-speed", "0")
	s := fronting(t, "http://"+endpoint)
	ctx := patient(t)
	launched, err := dial(endpoint).RunInstances(ctx, &awsec2.RunInstancesInput{
		ImageId: aws.String("ami-0123456789abcdef0"), MinCount: aws.Int32(1), MaxCount: aws.Int32(1),
	})
	if err != nil {
		t.Fatal(err)
	}
	id := aws.ToString(launched.Instances[0].InstanceId)
	if stdout, stderr, status := s.ask("describe", id); status != cli.ExitOK || !strings.Contains(stdout, id) {
		t.Errorf("describing it ended with %d:\n%s%s", status, stdout, stderr)
	}
}

// The EC2 endpoint of a service in front of EC2 tells what EC2 does, and makes nothing up.
func TestImagesAndHostNamesOfEC2AreThereForItsClients(t *testing.T) {
	t.Parallel()
	_, behind := simulated(t, "", "--sim-speed", "0")
	ctx := patient(t)
	launched, err := dial(behind).RunInstances(ctx, &awsec2.RunInstancesInput{
		ImageId: aws.String("ami-0123456789abcdef0"), MinCount: aws.Int32(2), MaxCount: aws.Int32(2),
	})
	if err != nil {
		t.Fatal(err)
	}
	// A VPC that names instances otherwise, and has no DNS hostnames.
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: behind}) },
		ModifyResponse: func(r *http.Response) error {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return err
			}
			body = regexp.MustCompile(`<dnsName>[^<]*`).ReplaceAll(body, []byte("<dnsName>"))
			body = regexp.MustCompile(`<privateDnsName>ip-`).ReplaceAll(body, []byte("<privateDnsName>host-"))
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
			r.Header.Set("Content-Length", strconv.Itoa(len(body)))
			return nil
		},
	}
	between := httptest.NewServer(proxy)
	t.Cleanup(between.Close)
	_, door := withDoor(t, "--backend", "ec2", "--aws-region", "us-east-1", "--aws-endpoint-url", between.URL)
	client := dial(door)
	filtered := func(name, value string) (found []types.Instance) {
		out, err := client.DescribeInstances(ctx, &awsec2.DescribeInstancesInput{Filters: []types.Filter{{Name: &name, Values: []string{value}}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range out.Reservations {
			found = append(found, r.Instances...)
		}
		return found
	}
	got := filtered("image-id", "ami-0123456789abcdef0")
	if len(got) != 2 {
		t.Fatalf("%d instances are of the image", len(got))
	}
	var indices []int32
	for _, i := range got {
		indices = append(indices, *i.AmiLaunchIndex)
		want := "host-" + strings.ReplaceAll(*i.PrivateIpAddress, ".", "-") + ".ec2.internal"
		if *i.PrivateDnsName != want || *i.PublicDnsName != "" || i.PublicIpAddress == nil {
			t.Errorf("%s has the names %q and %q, want %q and none", *i.InstanceId, *i.PrivateDnsName, *i.PublicDnsName, want)
		}
		if by := filtered("private-dns-name", want); len(by) != 1 || *by[0].InstanceId != *i.InstanceId {
			t.Errorf("%d instances are named %s", len(by), want)
		}
	}
	if slices.Sort(indices); !slices.Equal(indices, []int32{0, 1}) {
		t.Errorf("the launch indices are %v", indices)
	}
	if by := filtered("launch-index", "1"); len(by) != 1 || *by[0].ImageId != *launched.Instances[0].ImageId {
		t.Errorf("%d instances have the launch index 1", len(by))
	}
	if by := filtered("dns-name", "*"); len(by) != 0 {
		t.Errorf("%d instances have public names", len(by))
	}
}

func TestNothingOfTheSimulatorIsThereWithEC2(t *testing.T) {
	t.Parallel()
	_, behind := simulated(t, "", "--sim-speed", "0")
	s, door := withDoor(t, "--backend", "ec2", "--aws-region", "us-east-1", "--aws-endpoint-url", "http://"+behind)
	ctx := patient(t)
	if _, err := instancedv1.NewSimulatorServiceClient(s.conn()).Reset(ctx, &instancedv1.ResetRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("SimulatorService: %v", err)
	}
	ec2 := dial(door)
	_, err := ec2.RunInstances(ctx, &awsec2.RunInstancesInput{ImageId: aws.String("ami-0123456789abcdef0"), MinCount: aws.Int32(1), MaxCount: aws.Int32(1)})
	if refusal, ok := errors.AsType[smithy.APIError](err); !ok || refusal.ErrorCode() != "InvalidAction" {
		t.Errorf("RunInstances: %v", err)
	}
	if got, err := ec2.DescribeInstances(ctx, &awsec2.DescribeInstancesInput{}); err != nil || len(got.Reservations) == 0 {
		t.Errorf("DescribeInstances: %v, %v", got, err)
	}
}

// dial returns a client of an EC2 endpoint that retries nothing.
func dial(endpoint string) *awsec2.Client {
	return awsec2.New(awsec2.Options{
		Region: "us-east-1", BaseEndpoint: aws.String("http://" + endpoint), Retryer: aws.NopRetryer{},
		Credentials: credentials.NewStaticCredentialsProvider("AKIASOMEBODY", "secret", ""),
	})
}

// subscribe opens subscriptions and keeps them up for as long as the test lasts. It
// returns when each has had its snapshot.
func subscribe(t *testing.T, s *service, n int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var streams sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		streams.Wait()
	})
	api := s.instances()
	for range n {
		stream, err := api.WatchInstances(ctx, &instancedv1.WatchInstancesRequest{ProgressInterval: durationpb.New(time.Second)})
		if err != nil {
			t.Fatal(err)
		}
		ready := make(chan struct{})
		streams.Go(func() {
			for told := false; ; {
				msg, err := stream.Recv()
				if err != nil {
					return
				}
				if !told && msg.GetCursor() != "" {
					told = true
					close(ready)
				}
			}
		})
		select {
		case <-ready:
		case <-patient(t).Done():
			t.Fatal("a subscription did not begin")
		}
	}
}

func TestIdleCostsOneSweepAnInterval(t *testing.T) {
	t.Parallel()
	const interval, sweeps = time.Second, 5
	_, endpoint := simulated(t, "instances:\n  - {count: 200}\n  - {count: 100, state: running}\n")
	road := newRoad(t, endpoint)
	s := fronting(t, road.url(), "--reconcile-interval", interval.String())
	subscribe(t, s, 20)
	since, began := len(road.calls(0)), time.Now()
	eventually(t, "everything is compared a few times", func() bool { return len(road.calls(since)) >= sweeps })
	took, calls := time.Since(began), road.calls(since)
	if maxCalls := int(took/interval) + 2; len(calls) > maxCalls {
		t.Errorf("%d calls within %v, want at most %d", len(calls), took, maxCalls)
	}
	for _, c := range calls {
		if c.Get("Action") != "DescribeInstances" || c.Get("NextToken") != "" || c.Get("Filter.1.Name") != "" {
			t.Errorf("an idle service calls %v", c)
		}
	}
}

func TestEC2OutOfReach(t *testing.T) {
	t.Parallel()
	fleet := "instances:\n"
	var ids []string
	for i := range 40 {
		ids = append(ids, fmt.Sprintf("i-%017x", i+1))
		fleet += fmt.Sprintf("  - {instance_id: %s, state: %s}\n", ids[i], []string{"stopped", "running"}[i%2])
	}
	first, endpoint := simulated(t, fleet, "--sim-speed", "20")
	road := newRoad(t, endpoint)
	s := fronting(t, road.url(), "--reconcile-interval", "1s")
	subscribe(t, s, 20)
	ctx, api := patient(t), s.instances()
	stream, err := api.WatchInstances(ctx, &instancedv1.WatchInstancesRequest{ProgressInterval: durationpb.New(time.Second)})
	if err != nil {
		t.Fatal(err)
	}

	road.close()
	first.kill()
	const failed = "could not be compared with the backend"
	eventually(t, "a comparison fails", func() bool { return strings.Contains(s.log(), failed) })
	gone := time.Now()

	// Commands fail fast, all of them, and say that nothing was changed.
	var callers sync.WaitGroup
	for _, id := range ids {
		callers.Go(func() {
			_, err := api.StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: []string{id}})
			if status.Code(err) != codes.Unavailable || !strings.Contains(status.Convert(err).Message(), "nothing was changed") {
				t.Errorf("a start without EC2: %v", err)
			}
		})
	}
	callers.Wait()
	if took := time.Since(gone); took > 15*time.Second {
		t.Errorf("the starts took %v to fail", took)
	}
	// Reads go on, and say how old they are.
	read, err := api.DescribeInstances(ctx, &instancedv1.DescribeInstancesRequest{})
	if err != nil || len(read.GetInstances()) != len(ids) || !read.GetLastReconciled().AsTime().Before(gone) || read.GetLastReconciled() == nil {
		t.Errorf("reading without EC2: %d instances, compared %v, %v", len(read.GetInstances()), read.GetLastReconciled(), err)
	}
	// So do subscriptions.
	for progress := 0; progress < 2; {
		msg, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if msg.GetProgress() != nil {
			progress++
		}
	}

	// A start of the service has nothing to wait for either.
	s.kill()
	s.start()
	api = s.instances()
	if read, err := api.DescribeInstances(ctx, &instancedv1.DescribeInstancesRequest{}); err != nil || len(read.GetInstances()) != len(ids) || read.GetLastReconciled() != nil {
		t.Errorf("reading from the journal alone: %d instances, compared %v, %v", len(read.GetInstances()), read.GetLastReconciled(), err)
	}
	if _, err := api.StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: ids[:1]}); status.Code(err) != codes.Unavailable {
		t.Errorf("a start without EC2 after a start of the service: %v", err)
	}
	subscribe(t, s, 20)
	stream, err = api.WatchInstances(ctx, &instancedv1.WatchInstancesRequest{AfterCursor: read.GetCursor()})
	if err != nil {
		t.Fatal(err)
	}

	// What happened meanwhile is seen on return, by few calls.
	first.start()
	if stdout, stderr, status := first.ask("stop", ids[7], "--wait"); status != cli.ExitOK {
		t.Fatalf("the stop at EC2 itself ended with %d:\n%s%s", status, stdout, stderr)
	}
	since := len(road.calls(0))
	road.open()
	for seen := false; !seen; {
		msg, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		seen = slices.ContainsFunc(msg.GetEvents().GetEvents(), func(e *instancedv1.Event) bool {
			return e.GetInstance().GetInstanceId() == ids[7] && e.GetInstance().GetState().GetName() == stateStopped && e.GetCause().GetExternal()
		})
	}
	if calls := road.calls(since); len(calls) > 10 || actions(calls)["DescribeInstances"] != len(calls) {
		t.Errorf("on return EC2 was asked %v", actions(calls))
	}
	if stdout, stderr, status := s.ask("start", ids[0], "--wait"); status != cli.ExitOK {
		t.Errorf("the start on return ended with %d:\n%s%s", status, stdout, stderr)
	}
}

// TestARetryAfterACrashCommandsOnlyTheRest kills an owner when EC2 has carried out a part of its
// command and the response has not come. The retry with the next owner commands only the rest.
func TestARetryAfterACrashCommandsOnlyTheRest(t *testing.T) {
	t.Parallel()
	const first, second = "i-0000000000000000a", "i-0000000000000000b"
	_, endpoint := simulated(t, "instances:\n  - {instance_id: "+first+"}\n  - {instance_id: "+second+"}\n", "--sim-speed", "0")
	ctx, road, ec2 := patient(t), newRoad(t, endpoint), dial(endpoint)
	var once sync.Once
	reached := make(chan error, 1)
	partly := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		if form, _ := url.ParseQuery(string(body)); form.Get("Action") == "StartInstances" {
			once.Do(func() {
				_, err := ec2.StartInstances(ctx, &awsec2.StartInstancesInput{InstanceIds: []string{first}})
				reached <- err
				<-r.Context().Done()
				panic(http.ErrAbortHandler)
			})
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		road.ServeHTTP(w, r)
	}))
	t.Cleanup(partly.Close)
	s := fronting(t, partly.URL)
	// Launch times are compared with three seconds of tolerance: an instance that is started
	// sooner after its launch looks as it was before.
	eventually(t, "the instances were launched a while ago", func() bool {
		out, err := ec2.DescribeInstances(ctx, &awsec2.DescribeInstancesInput{InstanceIds: []string{first}})
		return err == nil && time.Since(*out.Reservations[0].Instances[0].LaunchTime) > 5*time.Second
	})
	req := &instancedv1.StartInstancesRequest{InstanceIds: []string{first, second}, ClientToken: "t"}
	lost := make(chan error, 1)
	api := s.instances()
	go func() {
		_, err := api.StartInstances(ctx, req)
		lost <- err
	}()
	select {
	case err := <-reached:
		if err != nil {
			t.Fatal(err)
		}
	case err := <-lost:
		t.Fatalf("the start ended with %v before it was sent", err)
	}
	s.kill()
	if err := <-lost; status.Code(err) != codes.Unavailable {
		t.Fatalf("the caller of the owner that was killed got %v", err)
	}
	since := len(road.calls(0))
	s.start()
	api = s.instances()
	var answer *instancedv1.StartInstancesResponse
	for n := range 2 {
		var err error
		eventually(t, "the next owner answers", func() bool {
			answer, err = api.StartInstances(ctx, req)
			return status.Code(err) != codes.Unavailable
		})
		if err != nil || len(answer.GetStartingInstances()) != 2 {
			t.Fatalf("retry %d got %v, %v", n, answer, err)
		}
		if c := answer.GetStartingInstances()[1]; c.GetInstanceId() != second || c.GetPreviousState().GetName() != stateStopped {
			t.Errorf("retry %d is told %v, want that it started %s", n, c, second)
		}
	}
	var commanded []string
	for _, call := range road.calls(since) {
		if call.Get("Action") == "StartInstances" {
			commanded = append(commanded, call.Get("InstanceId.1")+call.Get("InstanceId.2"))
		}
	}
	if !slices.Equal(commanded, []string{second}) {
		t.Errorf("the next owner started %v, want only %s", commanded, second)
	}
}
