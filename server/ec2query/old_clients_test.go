package ec2query_test

import (
	"encoding/xml"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// TestOlderClientsAreAnswered sends what clients of older versions send: boto 2,
// Net::Amazon::EC2, VM::EC2, fog and libcloud.
func TestOlderClientsAreAnswered(t *testing.T) {
	const (
		signed2 = "&AWSAccessKeyId=ana&SignatureMethod=HmacSHA256&SignatureVersion=2&Timestamp=2026-01-01T00%3A00%3A00Z&Signature=x%3D"
		signed4 = "AWS4-HMAC-SHA256 Credential=ana/20260101/us-east-1/ec2/aws4_request, SignedHeaders=host;x-amz-date, Signature=0"
	)
	log := &logged{}
	srv := servertest.New(t, servertest.Options{Logger: log.logger()})
	for _, test := range []struct {
		name, method, version, form string
		header                      []string
		contains                    string
	}{
		{"boto", "POST", "2014-10-01", "Action=DescribeInstances" + signed2, []string{"User-Agent", "Boto/2.49.0 Python/2.7.18"}, "<amiLaunchIndex>0</amiLaunchIndex>"},
		{
			"boto, a start", "POST", "2014-10-01", "Action=StartInstances&InstanceId.1=" + documented + signed2,
			[]string{"User-Agent", "Boto/2.49.0 Python/2.7.18"},
			"<previousState><code>80</code>",
		},
		{"Net::Amazon::EC2", "POST", "2014-06-15", "Action=DescribeInstanceStatus" + signed2, []string{"User-Agent", "libwww-perl/6.68"}, "<instanceStatusSet>"},
		{
			"VM::EC2, with a session token", "POST", "2014-05-01", "Action=DescribeTags&SecurityToken=t" + signed2,
			[]string{"User-Agent", "Mozilla/5.0 (compatible; U; AnyEvent-HTTP/2.25; +http://software.schmorp.de/pkg/AnyEvent)"},
			"<tagSet><item>",
		},
		{"fog", "POST", "2016-11-15", "Action=DescribeInstances&InstanceId.0=" + documented, []string{"Authorization", signed4, "User-Agent", "fog/2.3.0"}, documented},
		{"fog, tags", "POST", "2014-10-01", "Action=CreateTags&ResourceId.0=" + documented + "&Tag.0.Key=k&Tag.0.Value=v", []string{"Authorization", signed4}, "<return>true</return>"},
		{"libcloud", "GET", "2013-10-15", "Action=DescribeInstances&Filter.0.Name=instance-id&Filter.0.Value.0=" + documented + signed2, []string{"User-Agent", "libcloud/2.8.0"}, documented},
		{"one id without an index", "POST", "2012-03-01", "Action=DescribeInstances&InstanceId=" + documented + signed2, []string{"User-Agent", "curl/8.5.0"}, documented},
	} {
		t.Run(test.name, func(t *testing.T) {
			form := test.form + "&Version=" + test.version
			url, body := srv.EC2(), form
			if test.method == http.MethodGet {
				url, body = url+"/?"+form, ""
			}
			r, err := http.NewRequestWithContext(patient(t), test.method, url, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			for n := 0; n < len(test.header); n += 2 {
				r.Header.Set(test.header[n], test.header[n+1])
			}
			response, err := httpClient(t).Do(r)
			if err != nil {
				t.Fatal(err)
			}
			got := read(t, response)
			var root struct{ XMLName xml.Name }
			if err := xml.Unmarshal([]byte(got.body), &root); err != nil || root.XMLName.Space != "http://ec2.amazonaws.com/doc/"+test.version+"/" {
				t.Errorf("the answer is of %q", root.XMLName.Space)
			}
			if got.status != 200 || !strings.Contains(got.body, test.contains) {
				t.Errorf("%d %.300s", got.status, got.body)
			}
			if lines := callLines(t, log, got.requestID); lines[0]["principal_unverified"] != "ana" {
				t.Errorf("%v", lines)
			}
		})
	}
}

func TestClientsWithoutPagesGetAllInstances(t *testing.T) {
	srv := servertest.New(t, servertest.Options{Fleet: &instancedv1.CreateInstancesRequest{
		Instances: []*instancedv1.InstanceSpec{{Count: 1000}, {Count: 200}},
	}})
	count := func(form string) (instances int, more bool) {
		t.Helper()
		got := post(t, httpClient(t), srv.EC2(), form)
		if got.status != 200 {
			t.Fatal(got.code, got.message)
		}
		return strings.Count(got.body, "<instanceId>"), strings.Contains(got.body, "<nextToken>")
	}
	const describe = "Action=DescribeInstances&Version="
	for form, want := range map[string]int{
		describe + "2013-08-15":              1200,
		describe + "2014-10-01":              1200,
		describe + "2014-10-01&MaxResults=7": 7,
		describe + "2016-11-15":              1000,
		"Action=DescribeInstanceStatus&IncludeAllInstances=true&Version=2013-08-15": 1200,
	} {
		if got, more := count(form); got != want || more != (want < 1200) {
			t.Errorf("%s: %d instances, more %v; want %d", form, got, more, want)
		}
	}
}

func TestEveryInstanceHasWhatClientsRelyOn(t *testing.T) {
	srv := servertest.New(t, servertest.Options{})
	client, ctx := sdk(t, srv), patient(t)
	launch := launchInput("t")
	launch.MinCount, launch.MaxCount = new(int32(3)), new(int32(3))
	launched, err := client.RunInstances(ctx, launch)
	if err != nil {
		t.Fatal(err)
	}
	out, err := client.DescribeInstances(ctx, &ec2.DescribeInstancesInput{})
	if err != nil {
		t.Fatal(err)
	}
	var indices []int32
	for _, r := range out.Reservations {
		for _, i := range r.Instances {
			if i.ImageId == nil || i.AmiLaunchIndex == nil || i.PrivateDnsName == nil || i.PublicDnsName == nil {
				t.Fatalf("%s: %+v", *i.InstanceId, i)
			}
			private, public := "", ""
			if i.PrivateIpAddress != nil {
				private = "ip-" + strings.ReplaceAll(*i.PrivateIpAddress, ".", "-") + ".ec2.internal"
			}
			if i.PublicIpAddress != nil {
				public = "ec2-" + strings.ReplaceAll(*i.PublicIpAddress, ".", "-") + ".compute-1.amazonaws.com"
			}
			if *i.PrivateDnsName != private || *i.PublicDnsName != public {
				t.Errorf("%s: names %q and %q, want %q and %q", *i.InstanceId, *i.PrivateDnsName, *i.PublicDnsName, private, public)
			}
			if *r.ReservationId == *launched.ReservationId {
				indices = append(indices, *i.AmiLaunchIndex)
			}
		}
	}
	if slices.Sort(indices); !slices.Equal(indices, []int32{0, 1, 2}) {
		t.Errorf("launch indices %v, want 0, 1, 2", indices)
	}
	// What is told can be asked for.
	one := launched.Instances[1]
	for name, value := range map[string]string{
		"private-dns-name": *one.PrivateDnsName, "dns-name": *one.PublicDnsName, "launch-index": "*", "image-id": *one.ImageId, "tag-value": "docs-example",
	} {
		out, err := client.DescribeInstances(ctx, &ec2.DescribeInstancesInput{Filters: []types.Filter{{Name: &name, Values: []string{value}}}})
		if err != nil || len(out.Reservations) == 0 {
			t.Errorf("%s=%s: %v, %v", name, value, out, err)
		}
	}
}

func TestARepeatedIDCountsOnceBeforeTheLimit(t *testing.T) {
	srv := servertest.New(t, servertest.Options{})
	ids := slices.Repeat([]string{documented}, 1001)
	started, err := sdk(t, srv).StartInstances(patient(t), &ec2.StartInstancesInput{InstanceIds: ids})
	if err != nil || len(started.StartingInstances) != 1 {
		t.Errorf("%v, %v", started, err)
	}
	status, err := sdk(t, srv).DescribeInstanceStatus(patient(t), &ec2.DescribeInstanceStatusInput{InstanceIds: ids, IncludeAllInstances: new(true)})
	if err != nil || len(status.InstanceStatuses) != 1 {
		t.Errorf("%v, %v", status, err)
	}
	tags := []types.Tag{{Key: new("k"), Value: new("v")}}
	if _, err := sdk(t, srv).CreateTags(patient(t), &ec2.CreateTagsInput{Resources: ids, Tags: tags}); err != nil {
		t.Error(err)
	}
	response, err := srv.Instances().StartInstances(patient(t), &instancedv1.StartInstancesRequest{InstanceIds: ids})
	if err != nil || len(response.GetStartingInstances()) != 1 {
		t.Errorf("%v, %v", response, err)
	}
}
