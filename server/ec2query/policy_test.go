package ec2query_test

import (
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/instanced/instanced/internal/policy"
	"github.com/instanced/instanced/server/ec2query"
	"github.com/instanced/instanced/server/servertest"
)

func TestThePolicyHoldsAtTheEC2Endpoint(t *testing.T) {
	known, err := ec2query.ParseCredentials(strings.NewReader(keys))
	if err != nil {
		t.Fatal(err)
	}
	srv := servertest.New(t, servertest.Options{EC2Credentials: known, Policy: policy.AllowAuthenticated})
	api, ctx, ids := sdk(t, srv, signedBy("AKIA/BOB", "s", ""), once), patient(t), []string{documented}
	const denied = "You are not authorized to perform this operation."
	if _, err := api.DescribeInstances(ctx, &ec2.DescribeInstancesInput{}); err != nil {
		t.Errorf("describe: %v", err)
	}
	if _, err := api.StartInstances(ctx, &ec2.StartInstancesInput{InstanceIds: ids}); err != nil {
		t.Errorf("start: %v", err)
	}
	_, err = api.RebootInstances(ctx, &ec2.RebootInstancesInput{InstanceIds: ids})
	wantAPIError(t, err, 403, "UnauthorizedOperation", denied)
	_, err = api.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: ids, DryRun: aws.Bool(true)})
	wantAPIError(t, err, 403, "UnauthorizedOperation", denied)
	_, err = api.CreateTags(ctx, &ec2.CreateTagsInput{Resources: ids, Tags: []types.Tag{{Key: aws.String("a"), Value: aws.String("b")}}})
	wantAPIError(t, err, 403, "UnauthorizedOperation", denied)

	unverified := servertest.New(t, servertest.Options{Policy: policy.AllowAuthenticated})
	_, err = sdk(t, unverified, once).DescribeInstances(ctx, &ec2.DescribeInstancesInput{})
	wantAPIError(t, err, 403, "UnauthorizedOperation", denied)
	_, err = sdk(t, unverified, once).StartInstances(ctx, &ec2.StartInstancesInput{InstanceIds: ids})
	wantAPIError(t, err, 403, "UnauthorizedOperation", denied)
}

// TestAnAccessKeyIsNoVerifiedName: neither a file of access keys nor a claimed one can spell the
// name of a client certificate.
func TestAnAccessKeyIsNoVerifiedName(t *testing.T) {
	_, err := ec2query.ParseCredentials(strings.NewReader(`{"credentials": [
		{"access_key_id": "AKIAMALLORY", "secret_access_key": "s", "principal": "x509:spiffe://example.org/a"}]}`))
	if err == nil || !strings.Contains(err.Error(), "begins with x509:, which is reserved") {
		t.Errorf("a file of access keys: %v", err)
	}
	srv := servertest.New(t, servertest.Options{})
	_, err = sdk(t, srv, signedBy("x509:spiffe:", "s", "")).DescribeInstances(patient(t), &ec2.DescribeInstancesInput{})
	wantAPIError(t, err, 401, "AuthFailure", "The access key id begins with x509:, which is reserved for verified names.")
}
