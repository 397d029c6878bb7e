package ec2

import (
	"context"
	"crypto/rand"
	"os"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awsec2 "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/backend/backendtest"
	"github.com/instanced/instanced/internal/lifecycle"
	"github.com/instanced/instanced/server/servertest"
)

// testTag is the tag that a run of the contract gives its instances. Its value is the run's.
const testTag = "instanced-test"

// TestContractOnAWS holds EC2 itself to the contract, in the account that AWS's usual
// settings lead to. docs/aws.md says what it creates.
func TestContractOnAWS(t *testing.T) {
	if os.Getenv("INSTANCED_TEST_AWS") != "1" {
		t.Skip("INSTANCED_TEST_AWS=1 runs the contract on real EC2, which launches instances: see docs/aws.md")
	}
	cfg, err := config.LoadDefaultConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	contractOn(t, cfg, 5*time.Second)
}

// TestContractOnAWSIsReadyToRun has the service for AWS: what the other one does before and
// after each test works.
func TestContractOnAWSIsReadyToRun(t *testing.T) {
	srv := servertest.New(t, servertest.Options{Speed: 500, Throttle: true, Fleet: &instancedv1.CreateInstancesRequest{}})
	a := contractOn(t, aws.Config{
		Region:       "us-east-1",
		Credentials:  credentials.NewStaticCredentialsProvider("AKID", "secret", ""),
		BaseEndpoint: new(srv.EC2()),
	}, 50*time.Millisecond)
	a.terminate()
	left, err := a.instances(t.Context())
	if err != nil || len(left) < backendtest.Needed {
		t.Errorf("%d instances were launched, %v", len(left), err)
	}
	for _, i := range left {
		if i.State.Name != types.InstanceStateNameTerminated {
			t.Errorf("%s is left %s", *i.InstanceId, i.State.Name)
		}
	}
}

// realm is EC2 for one run: the instances with its tag are all that exist.
type realm struct {
	*testing.T
	api   *awsec2.Client
	run   string
	every time.Duration
}

// contractOn runs the contract on an account, polling its instances at an interval, and
// terminates what it launched.
func contractOn(t *testing.T, cfg aws.Config, every time.Duration) *realm {
	a := &realm{T: t, api: awsec2.NewFromConfig(cfg), run: rand.Text(), every: every}
	t.Logf("the instances of this run have the tag %s=%s: terminate those that are left if it is killed", testTag, a.run)
	t.Cleanup(a.terminate)
	backendtest.Run(t, func(t *testing.T) lifecycle.Backend {
		a.prepare(t)
		b := New(Config{AWS: cfg, Manage: map[string][]string{testTag: {a.run}}})
		t.Cleanup(b.Close)
		return b
	})
	return a
}

// prepare sees to it that there are enough stopped instances, and no others but
// terminated ones.
func (a *realm) prepare(t *testing.T) {
	launched := false
	for ctx := t.Context(); ; {
		all, err := a.instances(ctx)
		if err != nil {
			t.Fatal(err)
		}
		alive, stopped := 0, 0
		var running []string
		for _, i := range all {
			switch i.State.Name {
			case types.InstanceStateNameStopped:
				stopped++
				alive++
			case types.InstanceStateNameRunning:
				running = append(running, *i.InstanceId)
				alive++
			case types.InstanceStateNamePending, types.InstanceStateNameStopping:
				alive++
			}
		}
		if missing := backendtest.Needed - alive; missing > 0 && !launched {
			a.launch(ctx, t, missing, len(all))
			launched = true
			continue
		}
		if stopped == alive && stopped >= backendtest.Needed {
			return
		}
		if len(running) > 0 {
			if _, err := a.api.StopInstances(ctx, &awsec2.StopInstancesInput{InstanceIds: running}); err != nil {
				t.Fatal(err)
			}
		}
		if !pause(ctx, a.every) {
			t.Fatal(ctx.Err())
		}
	}
}

// launch adds n of the smallest instances that there are to those that are known.
func (a *realm) launch(ctx context.Context, t *testing.T, n, known int) {
	_, err := a.api.RunInstances(ctx, &awsec2.RunInstancesInput{
		ImageId:      new("resolve:ssm:/aws/service/ami-amazon-linux-latest/al2023-ami-minimal-kernel-default-arm64"),
		InstanceType: types.InstanceTypeT4gNano,
		MinCount:     new(int32(n)),
		MaxCount:     new(int32(n)),
		ClientToken:  new(rand.Text()),
		TagSpecifications: []types.TagSpecification{{
			ResourceType: types.ResourceTypeInstance,
			Tags:         []types.Tag{{Key: new(testTag), Value: &a.run}, {Key: new("Name"), Value: new("contract of instanced")}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; pause(ctx, a.every) {
		// They are not described at once.
		all, err := a.instances(ctx)
		switch {
		case err != nil:
			t.Fatal(err)
		case len(all) >= known+n:
			return
		case time.Now().After(deadline):
			t.Fatalf("%d instances were launched, and %d are there of %d", n, len(all), known+n)
		}
	}
}

// terminate ends the run's instances, and waits for that.
func (a *realm) terminate() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	for {
		all, err := a.instances(ctx)
		if err != nil {
			a.Errorf("whether instances are left is not known: %v", err)
			return
		}
		var left []string
		for _, i := range all {
			if i.State.Name != types.InstanceStateNameTerminated {
				left = append(left, *i.InstanceId)
			}
		}
		if len(left) == 0 {
			return
		}
		if _, err := a.api.TerminateInstances(ctx, &awsec2.TerminateInstancesInput{InstanceIds: left}); err != nil {
			a.Errorf("%d instances are left: %v", len(left), err)
			return
		}
		if !pause(ctx, a.every) {
			a.Errorf("%d instances are left", len(left))
			return
		}
	}
}

// instances returns the instances of the run.
func (a *realm) instances(ctx context.Context) (list []types.Instance, err error) {
	pages := awsec2.NewDescribeInstancesPaginator(a.api, &awsec2.DescribeInstancesInput{
		Filters: []types.Filter{{Name: new("tag:" + testTag), Values: []string{a.run}}},
	})
	for pages.HasMorePages() {
		p, err := pages.NextPage(ctx)
		if err != nil {
			return nil, err
		}
		for _, r := range p.Reservations {
			list = append(list, r.Instances...)
		}
	}
	return list, nil
}
