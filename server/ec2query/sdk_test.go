package ec2query_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

func TestTheSDKStartsAnInstance(t *testing.T) {
	srv := servertest.New(t, servertest.Options{Speed: 1})
	out, err := sdk(t, srv).StartInstances(patient(t), &ec2.StartInstancesInput{InstanceIds: []string{documented}})
	if err != nil {
		t.Fatal(err)
	}
	if len(out.StartingInstances) != 1 {
		t.Fatalf("got %d instances", len(out.StartingInstances))
	}
	change := out.StartingInstances[0]
	if *change.InstanceId != documented || *change.PreviousState.Code != 80 || change.PreviousState.Name != types.InstanceStateNameStopped ||
		*change.CurrentState.Code != 0 || change.CurrentState.Name != types.InstanceStateNamePending {
		t.Errorf("got %+v from %+v", change.CurrentState, change.PreviousState)
	}
}

func TestTheSDKFindsTheEndpointByItsEnvironmentAlone(t *testing.T) {
	srv := servertest.New(t, servertest.Options{})
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL_EC2": srv.EC2(), "AWS_REGION": "eu-central-1", "AWS_ACCESS_KEY_ID": "bob", "AWS_SECRET_ACCESS_KEY": "whatever",
		"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_CA_BUNDLE": "", "AWS_SESSION_TOKEN": "left over",
	} {
		t.Setenv(name, value)
	}
	cfg, err := config.LoadDefaultConfig(patient(t), config.WithHTTPClient(httpClient(t)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ec2.NewFromConfig(cfg).RebootInstances(patient(t), &ec2.RebootInstancesInput{InstanceIds: []string{"i-0a000000000000001"}}); err != nil {
		t.Fatal(err)
	}
}

func TestTheSDKsWaitersSeeEveryState(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{Speed: 50})
	client, ctx := sdk(t, srv), patient(t)
	ids := []string{documented, "i-0a000000000000011"}
	describe := &ec2.DescribeInstancesInput{InstanceIds: ids}
	const soon = 20 * time.Millisecond

	if err := ec2.NewInstanceExistsWaiter(client).Wait(ctx, describe, time.Minute); err != nil {
		t.Error("exists:", err)
	}
	if _, err := client.StartInstances(ctx, &ec2.StartInstancesInput{InstanceIds: ids}); err != nil {
		t.Fatal(err)
	}
	if err := ec2.NewInstanceRunningWaiter(client, func(o *ec2.InstanceRunningWaiterOptions) { o.MinDelay, o.MaxDelay = soon, soon }).Wait(ctx, describe, time.Minute); err != nil {
		t.Error("running:", err)
	}
	if err := ec2.NewInstanceStatusOkWaiter(client, func(o *ec2.InstanceStatusOkWaiterOptions) { o.MinDelay, o.MaxDelay = soon, soon }).
		Wait(ctx, &ec2.DescribeInstanceStatusInput{InstanceIds: ids}, time.Minute); err != nil {
		t.Error("status ok:", err)
	}
	if err := ec2.NewSystemStatusOkWaiter(client, func(o *ec2.SystemStatusOkWaiterOptions) { o.MinDelay, o.MaxDelay = soon, soon }).
		Wait(ctx, &ec2.DescribeInstanceStatusInput{InstanceIds: ids}, time.Minute); err != nil {
		t.Error("system status ok:", err)
	}
	if _, err := client.StopInstances(ctx, &ec2.StopInstancesInput{InstanceIds: ids}); err != nil {
		t.Fatal(err)
	}
	if err := ec2.NewInstanceStoppedWaiter(client, func(o *ec2.InstanceStoppedWaiterOptions) { o.MinDelay, o.MaxDelay = soon, soon }).Wait(ctx, describe, time.Minute); err != nil {
		t.Error("stopped:", err)
	}
	if _, err := client.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: ids}); err != nil {
		t.Fatal(err)
	}
	if err := ec2.NewInstanceTerminatedWaiter(client, func(o *ec2.InstanceTerminatedWaiterOptions) { o.MinDelay, o.MaxDelay = soon, soon }).Wait(ctx, describe, time.Minute); err != nil {
		t.Error("terminated:", err)
	}
}

func TestTheSDKsPaginatorsSeeEverythingOnce(t *testing.T) {
	fleet := &instancedv1.CreateInstancesRequest{}
	var all []string
	for n := range 23 {
		all = append(all, id(n))
		fleet.Instances = append(fleet.Instances, &instancedv1.InstanceSpec{InstanceId: id(n), State: running, Tags: map[string]string{"a": "1", "b": "2"}})
	}
	srv := servertest.New(t, servertest.Options{Fleet: fleet})
	client, ctx := sdk(t, srv), patient(t)

	var described, statuses, tags []string
	pages := 0
	instances := ec2.NewDescribeInstancesPaginator(client, &ec2.DescribeInstancesInput{MaxResults: aws.Int32(5), Filters: []types.Filter{{Name: new("tag:a"), Values: []string{"?"}}}})
	for instances.HasMorePages() {
		page, err := instances.NextPage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		pages++
		for _, r := range page.Reservations {
			described = append(described, *r.Instances[0].InstanceId)
		}
	}
	status := ec2.NewDescribeInstanceStatusPaginator(client, &ec2.DescribeInstanceStatusInput{MaxResults: aws.Int32(7)})
	for status.HasMorePages() {
		page, err := status.NextPage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range page.InstanceStatuses {
			statuses = append(statuses, *s.InstanceId)
		}
	}
	tagged := ec2.NewDescribeTagsPaginator(client, &ec2.DescribeTagsInput{MaxResults: aws.Int32(5)})
	for tagged.HasMorePages() {
		page, err := tagged.NextPage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, tag := range page.Tags {
			tags = append(tags, *tag.ResourceId+*tag.Key+*tag.Value)
		}
	}
	if pages != 5 || !slices.Equal(described, all) {
		t.Errorf("%d pages of %v", pages, described)
	}
	if !slices.Equal(statuses, all) {
		t.Errorf("statuses of %v", statuses)
	}
	var wantTags []string
	for _, id := range all {
		wantTags = append(wantTags, id+"a1", id+"b2")
	}
	if !slices.Equal(tags, wantTags) {
		t.Errorf("tags %v", tags)
	}
}

// logged is a log that can be read while it is written.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// lines returns those that have a field with a value.
func (l *logged) lines(t testing.TB, key, value string) (found []map[string]any) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatal(err)
		}
		if fields[key] == value {
			found = append(found, fields)
		}
	}
	return found
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewJSONHandler(l, nil)) }

func TestTheSDKTriesAgainWhatMaySucceedLater(t *testing.T) {
	t.Parallel()
	const refused = "i-0a000000000000011"
	for _, test := range []struct {
		name     string
		kind     instancedv1.FaultKind
		attempts int
		code     string
		status   int
	}{
		{"a throttle", instancedv1.FaultKind_FAULT_KIND_REQUEST_LIMIT_EXCEEDED, 3, "RequestLimitExceeded", 503},
		{"a lack of capacity", instancedv1.FaultKind_FAULT_KIND_INSUFFICIENT_CAPACITY, 3, "InsufficientInstanceCapacity", 500},
		{"an EC2 that is not available", instancedv1.FaultKind_FAULT_KIND_UNAVAILABLE, 3, "Unavailable", 503},
		{"a limit of the account", instancedv1.FaultKind_FAULT_KIND_INSTANCE_LIMIT_EXCEEDED, 1, "InstanceLimitExceeded", 400},
		{"a permission", instancedv1.FaultKind_FAULT_KIND_UNAUTHORIZED, 1, "UnauthorizedOperation", 403},
	} {
		t.Run(test.name, func(t *testing.T) {
			log := &logged{}
			srv := servertest.New(t, servertest.Options{Logger: log.logger()})
			if _, err := srv.Simulator().SetFaults(patient(t), &instancedv1.SetFaultsRequest{Faults: []*instancedv1.Fault{{Kind: test.kind}}}); err != nil {
				t.Fatal(err)
			}
			client := sdk(t, srv, func(o *ec2.Options) {
				o.Retryer = retry.NewStandard(func(o *retry.StandardOptions) { o.MaxBackoff = time.Millisecond })
			})
			_, err := client.StartInstances(patient(t), &ec2.StartInstancesInput{InstanceIds: []string{refused}})
			wantAPIError(t, err, test.status, test.code, "")
			callLines(t, log, requestIDOf(t, err))
			if calls := log.lines(t, "service", "ec2"); len(calls) != test.attempts {
				t.Errorf("it was tried %d times, want %d", len(calls), test.attempts)
			}
		})
	}
}

// callLines waits for the line of a call, which is written after its answer.
func callLines(t *testing.T, log *logged, requestID string) (lines []map[string]any) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); len(lines) == 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		for _, line := range log.lines(t, "request_id", requestID) {
			if line["msg"] == "call" {
				lines = append(lines, line)
			}
		}
	}
	return lines
}

func TestARequestIDIsTheSameEverywhere(t *testing.T) {
	log := &logged{}
	srv := servertest.New(t, servertest.Options{Logger: log.logger()})
	out, err := sdk(t, srv).StartInstances(patient(t), &ec2.StartInstancesInput{InstanceIds: []string{documented}})
	if err != nil {
		t.Fatal(err)
	}
	id, ok := middleware.GetRequestIDMetadata(out.ResultMetadata)
	if !ok || len(id) != 36 {
		t.Fatalf("request id %q", id)
	}
	events, err := srv.Instances().ListEvents(patient(t), &instancedv1.ListEventsRequest{InstanceIds: []string{documented}})
	if err != nil {
		t.Fatal(err)
	}
	recorded := false
	for _, e := range events.GetEvents() {
		cause := e.GetCause()
		recorded = recorded || cause.GetRequestId() == id && cause.GetPrincipal() == "alice" && cause.GetVerb() == "StartInstances"
	}
	if !recorded {
		t.Errorf("no event has the request %s: %v", id, events.GetEvents())
	}
	lines := callLines(t, log, id)
	if len(lines) != 1 || lines[0]["method"] != "StartInstances" || lines[0]["principal_unverified"] != "alice" || lines[0]["code"] != "OK" || lines[0]["instances"] != 1.0 {
		t.Errorf("lines of the log: %v", lines)
	}

	_, err = sdk(t, srv).StartInstances(patient(t), &ec2.StartInstancesInput{InstanceIds: []string{"i-0a000000000000003"}})
	refused := requestIDOf(t, err)
	if lines := callLines(t, log, refused); len(lines) != 1 || lines[0]["code"] != "UnsupportedOperation" || lines[0]["error"] == nil {
		t.Errorf("lines of the log: %v", lines)
	}
	_, err = sdk(t, srv).StartInstances(patient(t), &ec2.StartInstancesInput{InstanceIds: []string{documented}, DryRun: new(true)})
	if lines := callLines(t, log, requestIDOf(t, err)); len(lines) != 1 || lines[0]["code"] != "DryRunOperation" || lines[0]["error"] != nil || lines[0]["level"] != "INFO" {
		t.Errorf("a dry run that would have succeeded is no error: %v", lines)
	}
}

func TestStatusesComeAWhileAfterTheLaunch(t *testing.T) {
	srv := servertest.New(t, servertest.Options{Speed: 0.1})
	client := sdk(t, srv)
	const runs, rests = "i-0a000000000000001", "i-0a000000000000011"
	read := func(all bool) map[string]types.InstanceStatus {
		out, err := client.DescribeInstanceStatus(patient(t), &ec2.DescribeInstanceStatusInput{InstanceIds: []string{runs, rests}, IncludeAllInstances: &all})
		if err != nil {
			t.Fatal(err)
		}
		found := make(map[string]types.InstanceStatus)
		for _, s := range out.InstanceStatuses {
			found[*s.InstanceId] = s
		}
		return found
	}
	if found := read(false); len(found) != 1 || found[runs].InstanceStatus.Status != types.SummaryStatusInitializing || found[runs].SystemStatus.Details[0].Status != types.StatusTypeInitializing {
		t.Errorf("got %+v", found)
	}
	if found := read(true); len(found) != 2 || found[rests].InstanceStatus.Status != types.SummaryStatusNotApplicable {
		t.Errorf("got %+v", found)
	}
	for status, want := range map[string]int{"ok": 0, "init*": 1} {
		out, err := client.DescribeInstanceStatus(patient(t), &ec2.DescribeInstanceStatusInput{Filters: []types.Filter{
			{Name: new("instance-status.status"), Values: []string{status}},
			{Name: new("availability-zone"), Values: []string{"us-east-1a"}},
			{Name: new("system-status.reachability"), Values: []string{"initializing", "passed"}},
		}})
		if err != nil || len(out.InstanceStatuses) < want || want == 0 && len(out.InstanceStatuses) > 0 {
			t.Errorf("%s: %d instances, %v", status, len(out.InstanceStatuses), err)
		}
	}
}
