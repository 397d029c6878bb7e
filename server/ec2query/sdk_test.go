package ec2query_test

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

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

func TestTheSDKFindsTheDoorByItsEnvironmentAlone(t *testing.T) {
	srv := servertest.New(t, servertest.Options{})
	t.Setenv("AWS_ENDPOINT_URL_EC2", srv.EC2())
	t.Setenv("AWS_REGION", "eu-central-1")
	t.Setenv("AWS_ACCESS_KEY_ID", "bob")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "whatever")
	t.Setenv("AWS_CA_BUNDLE", "")
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	cfg, err := config.LoadDefaultConfig(patient(t), config.WithHTTPClient(httpClient(t)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ec2.NewFromConfig(cfg).RebootInstances(patient(t), &ec2.RebootInstancesInput{InstanceIds: []string{"i-0a000000000000001"}}); err != nil {
		t.Fatal(err)
	}
}
