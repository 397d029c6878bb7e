package ec2query_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

func TestReadsAreThrottledAsEC2Throttles(t *testing.T) {
	srv := servertest.New(t, servertest.Options{Throttle: true})
	client, ctx := sdk(t, srv, once), patient(t)
	// Fifty at once, ten a second from then on: some refusal comes, and it comes soon.
	var err error
	for err == nil && ctx.Err() == nil {
		_, err = client.DescribeInstances(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{documented}})
	}
	wantAPIError(t, err, 503, "RequestLimitExceeded",
		"Request limit exceeded. Account 123456789012 has been throttled on ec2:DescribeInstances because it exceeded its request rate limit.")

	// Filters have more room, as have other actions; gRPC callers read for nothing.
	if _, err := client.DescribeInstances(ctx, &ec2.DescribeInstancesInput{
		Filters: []types.Filter{{Name: new("instance-id"), Values: []string{documented}}},
	}); err != nil {
		t.Error(err)
	}
	if _, err := client.DescribeInstanceStatus(ctx, &ec2.DescribeInstanceStatusInput{}); err != nil {
		t.Error(err)
	}
	for range 200 {
		if _, err := srv.Instances().DescribeInstances(ctx, &instancedv1.DescribeInstancesRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	// An SDK that tries again gets through.
	if _, err := sdk(t, srv).DescribeInstances(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{documented}}); err != nil {
		t.Error(err)
	}
}

func TestReadsAreStruckByFaults(t *testing.T) {
	srv := servertest.New(t, servertest.Options{})
	client, ctx := sdk(t, srv, once), patient(t)
	unavailable := &instancedv1.Fault{Kind: instancedv1.FaultKind_FAULT_KIND_UNAVAILABLE, Match: &instancedv1.FaultMatch{Verbs: []string{"DescribeInstances"}}}
	if _, err := srv.Simulator().SetFaults(ctx, &instancedv1.SetFaultsRequest{Faults: []*instancedv1.Fault{unavailable}}); err != nil {
		t.Fatal(err)
	}
	_, err := client.DescribeInstances(ctx, &ec2.DescribeInstancesInput{})
	wantAPIError(t, err, 503, "Unavailable", "The server is overloaded and can't handle the request.")
	if _, err := client.DescribeInstanceStatus(ctx, &ec2.DescribeInstanceStatusInput{}); err != nil {
		t.Error(err)
	}
}

func TestReadsMayLagBehind(t *testing.T) {
	srv := servertest.New(t, servertest.Options{Speed: 0.001})
	client, ctx := sdk(t, srv, once), patient(t)
	lag := &instancedv1.Fault{Kind: instancedv1.FaultKind_FAULT_KIND_DESCRIBE_LAG, Delay: durationpb.New(time.Hour)}
	if _, err := srv.Simulator().SetFaults(ctx, &instancedv1.SetFaultsRequest{Faults: []*instancedv1.Fault{lag}}); err != nil {
		t.Fatal(err)
	}
	started, err := client.StartInstances(ctx, &ec2.StartInstancesInput{InstanceIds: []string{documented}})
	if err != nil || started.StartingInstances[0].CurrentState.Name != types.InstanceStateNamePending {
		t.Fatalf("%+v, %v", started, err)
	}
	byID := &ec2.DescribeInstancesInput{InstanceIds: []string{documented}}
	stale := types.Filter{Name: new("instance-state-name"), Values: []string{"stopped"}}
	for _, input := range []*ec2.DescribeInstancesInput{byID, {InstanceIds: byID.InstanceIds, Filters: []types.Filter{stale}}} {
		out, err := client.DescribeInstances(ctx, input)
		if err != nil || len(out.Reservations) != 1 || out.Reservations[0].Instances[0].State.Name != types.InstanceStateNameStopped {
			t.Errorf("while it lags: %+v, %v", out, err)
		}
	}
	if _, err := srv.Simulator().SetFaults(ctx, &instancedv1.SetFaultsRequest{}); err != nil {
		t.Fatal(err)
	}
	out, err := client.DescribeInstances(ctx, byID)
	if err != nil || out.Reservations[0].Instances[0].State.Name != types.InstanceStateNamePending {
		t.Errorf("when it does not: %+v, %v", out, err)
	}
}

// counted counts the requests of an SDK.
type counted struct {
	inner    ec2.HTTPClient
	requests atomic.Int32
}

func (c *counted) Do(req *http.Request) (*http.Response, error) {
	c.requests.Add(1)
	return c.inner.Do(req)
}

func TestAFollowerReadsAndSendsCommandsAway(t *testing.T) {
	endpoints := []string{etcd(t)}
	owner := servertest.New(t, servertest.Options{Endpoints: endpoints, Speed: 0.001})
	follower := servertest.New(t, servertest.Options{Endpoints: endpoints, Throttle: true})
	ctx := patient(t)
	tries := &counted{inner: httpClient(t)}
	there := sdk(t, follower, func(o *ec2.Options) { o.HTTPClient = tries })
	if _, err := sdk(t, owner).StartInstances(ctx, &ec2.StartInstancesInput{InstanceIds: []string{documented}}); err != nil {
		t.Fatal(err)
	}
	for pending := false; !pending; {
		out, err := there.DescribeInstances(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{documented}})
		if err != nil {
			if refused, ok := errors.AsType[smithy.APIError](err); ok && refused.ErrorCode() == "InvalidInstanceID.NotFound" {
				continue // it has yet to follow
			}
			t.Fatal(err)
		}
		pending = out.Reservations[0].Instances[0].State.Name == types.InstanceStateNamePending
	}
	stop := []string{"i-0a000000000000001"}
	for name, call := range map[string]func() error{
		"StopInstances": func() error {
			_, err := there.StopInstances(ctx, &ec2.StopInstancesInput{InstanceIds: stop})
			return err
		},
		"RunInstances": func() error {
			_, err := there.RunInstances(ctx, launchInput("t"))
			return err
		},
		"CreateTags": func() error {
			_, err := there.CreateTags(ctx, &ec2.CreateTagsInput{Resources: stop, Tags: []types.Tag{{Key: new("k"), Value: new("v")}}})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := tries.requests.Load()
			err := call()
			wantAPIError(t, err, 421, "Unavailable", "")
			if n := tries.requests.Load() - before; n != 1 {
				t.Errorf("the SDK made %d requests of it", n)
			}
			if ownerAddress := "bufconn"; !strings.Contains(err.Error(), ownerAddress) {
				t.Errorf("%v does not name the owner, %s", err, ownerAddress)
			}
		})
	}
	out, err := sdk(t, owner).DescribeInstances(ctx, &ec2.DescribeInstancesInput{InstanceIds: stop})
	if err != nil || out.Reservations[0].Instances[0].State.Name != types.InstanceStateNameRunning {
		t.Errorf("what was sent away was carried out: %+v, %v", out, err)
	}
}

func TestCallsUnderWayDoNotKeepOthersFromBeingRead(t *testing.T) {
	srv := servertest.New(t, servertest.Options{})
	ctx := patient(t)
	const maxSlowed = 1_000_000
	slow := &instancedv1.Fault{
		Kind: instancedv1.FaultKind_FAULT_KIND_SLOW_CALL, Delay: durationpb.New(time.Hour), Remaining: maxSlowed,
		Match: &instancedv1.FaultMatch{Verbs: []string{"DescribeInstances"}},
	}
	if _, err := srv.Simulator().SetFaults(ctx, &instancedv1.SetFaultsRequest{Faults: []*instancedv1.Fault{slow}}); err != nil {
		t.Fatal(err)
	}
	calling, leave := context.WithCancel(ctx)
	client := sdk(t, srv, once)
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer leave()
	calls := 4 * runtime.GOMAXPROCS(0)
	for range calls {
		waiting.Go(func() { _, _ = client.DescribeInstances(calling, &ec2.DescribeInstancesInput{}) })
	}
	for slowed := 0; slowed < calls; {
		plan, err := srv.Simulator().GetFaults(ctx, &instancedv1.GetFaultsRequest{})
		if err != nil {
			t.Fatalf("%d of %d calls were read: %v", slowed, calls, err)
		}
		slowed = maxSlowed - int(plan.GetFaults()[0].GetRemaining())
	}
}

func TestFiltersHaveABudget(t *testing.T) {
	tags := map[string]string{"text": strings.Repeat("a", 256)}
	srv := servertest.New(t, servertest.Options{Fleet: &instancedv1.CreateInstancesRequest{
		Instances: []*instancedv1.InstanceSpec{{Count: 1000, Tags: tags}},
	}})
	client, ctx := sdk(t, srv, once), patient(t)
	values := make([]string, 199)
	for n := range values {
		values[n] = fmt.Sprint(strings.Repeat("*a?a", 60), n)
	}
	_, err := client.DescribeInstances(ctx, &ec2.DescribeInstancesInput{Filters: []types.Filter{{Name: new("tag:text"), Values: values}}})
	wantAPIError(t, err, 400, "FilterLimitExceeded", "")
	_, err = client.DescribeTags(ctx, &ec2.DescribeTagsInput{Filters: []types.Filter{{Name: new("value"), Values: values}}})
	wantAPIError(t, err, 400, "FilterLimitExceeded", "")
	out, err := client.DescribeInstances(ctx, &ec2.DescribeInstancesInput{
		MaxResults: new(int32(1000)), Filters: []types.Filter{{Name: new("tag:text"), Values: []string{"*b", "*a?a*a"}}},
	})
	if err != nil || len(out.Reservations) != 1000 {
		t.Errorf("two values with wildcards: %v", err)
	}
	// All pages of tags together are all tags, each once.
	seen := 0
	pages := ec2.NewDescribeTagsPaginator(client, &ec2.DescribeTagsInput{MaxResults: new(int32(300)), Filters: []types.Filter{{Name: new("value"), Values: []string{"a*"}}}})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		seen += len(page.Tags)
	}
	if seen != 1000 {
		t.Errorf("%d tags in all pages, want 1000", seen)
	}
}
