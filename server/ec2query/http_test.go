package ec2query_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

const versioned = "&Version=2016-11-15"

// answered is what came back.
type answered struct {
	status    int
	root      string
	code      string
	message   string
	requestID string
	header    http.Header
	body      string
}

// read reads an answer, which has to be well formed, with one request id in body and
// header.
func read(t testing.TB, response *http.Response) answered {
	t.Helper()
	body, err := io.ReadAll(response.Body)
	_ = response.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	var document struct {
		XMLName xml.Name
		Code    string `xml:"Errors>Error>Code"`
		Message string `xml:"Errors>Error>Message"`
		ID      string `xml:"requestId"`
		ErrorID string `xml:"RequestID"`
	}
	d := xml.NewDecoder(bytes.NewReader(body))
	if err := d.Decode(&document); err != nil {
		t.Fatalf("it is not well formed: %v\n%s", err, body)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		t.Errorf("there is something behind the document: %s", body)
	}
	id := document.ID + document.ErrorID
	if id == "" || id != response.Header.Get("X-Amzn-Requestid") || response.Header.Get("Content-Type") != "text/xml;charset=UTF-8" {
		t.Errorf("id %q, header %v", id, response.Header)
	}
	return answered{response.StatusCode, document.XMLName.Local, document.Code, document.Message, id, response.Header, string(body)}
}

// unsigned makes a request as the SDKs do when they are told not to sign.
func unsigned(t testing.TB, method, url string, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(patient(t), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	r.Header.Set("Amz-Sdk-Request", "attempt=1")
	return r
}

// post sends a form.
func post(t testing.TB, client *http.Client, url, form string) answered {
	t.Helper()
	response, err := client.Do(unsigned(t, http.MethodPost, url, strings.NewReader(form)))
	if err != nil {
		t.Fatal(err)
	}
	return read(t, response)
}

func numbered(name string, count int, value string) string {
	var b strings.Builder
	for n := range count {
		fmt.Fprintf(&b, "&%s.%d=%s", name, n+1, value)
	}
	return b.String()
}

// each is a list of values.
func each(name string, values []string) string {
	var b strings.Builder
	for n, value := range values {
		fmt.Fprintf(&b, "&%s.%d=%s", name, n+1, value)
	}
	return b.String()
}

// keyed is so many different tags.
func keyed(name string, count int) string {
	var b strings.Builder
	for n := range count {
		fmt.Fprintf(&b, "&%s.%d.Key=k%d", name, n+1, n)
	}
	return b.String()
}

func TestBadInputIsRefusedInEC2sForm(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{})
	client := httpClient(t)
	hostile := url.QueryEscape("<a x='\"&]]>\x00\x01\ufffe")
	describe := "Action=DescribeInstances" + versioned
	launch := "Action=RunInstances" + versioned + "&ImageId=ami-1&MinCount=1&MaxCount=1"
	attribute := "Action=ModifyInstanceAttribute" + versioned
	for _, test := range []struct {
		name, form    string
		status        int
		code, message string
	}{
		{"nothing", "", 400, "MissingParameter", "Action"},
		{"an unknown action", "Action=DescribeVpcs" + versioned, 400, "InvalidAction", "The action DescribeVpcs is not valid for this web service."},
		{"an action with every kind of hostility", "Action=" + hostile + versioned, 400, "InvalidAction", "<a x='\"&]]>"},
		{"no version", "Action=StartInstances&InstanceId.1=" + documented, 400, "MissingParameter", "Version"},
		{"an unknown version", "Action=StartInstances&Version=2010-01-01&InstanceId.1=" + documented, 400, "NoSuchVersion", "2010-01-01"},
		{"a parameter that comes twice", "Action=StartInstances" + versioned + "&DryRun=true&DryRun=false", 400, "InvalidRequest", "DryRun"},
		{"an unknown parameter", "Action=StartInstances" + versioned + "&InstanceId.1=" + documented + "&Colour=red", 400, "UnknownParameter", "The parameter Colour is not recognized"},
		{"a parameter of another action", "Action=StartInstances" + versioned + "&InstanceId.1=" + documented + "&Force=true", 400, "UnknownParameter", "Force"},
		{"both forms of a list", "Action=StartInstances" + versioned + "&InstanceId.1=" + documented + "&InstanceId.member.1=" + documented, 400, "UnknownParameter", "InstanceId.member.1"},
		{"an index that is no number", "Action=StartInstances" + versioned + "&InstanceId.x=" + documented, 400, "UnknownParameter", "InstanceId.x"},
		{"an unknown parameter with a hostile name", describe + "&" + hostile + "=1", 400, "UnknownParameter", "<a x="},
		{"a value that is not UTF-8", "Action=StartInstances" + versioned + "&InstanceId.1=%ff%fe", 400, "InvalidRequest", "UTF-8"},
		{"100,000 parameters", describe + strings.Repeat("&a", 100_000), 400, "InvalidRequest", "parameters"},
		{"a body of 10 MB", describe + "&X=" + strings.Repeat("x", 10<<20), 413, "RequestEntityTooLarge", "262144"},
		{"a flag that is none", "Action=StartInstances" + versioned + "&InstanceId.1=" + documented + "&DryRun=perhaps", 400, "InvalidParameterValue", "perhaps"},
		{"a malformed id", "Action=StopInstances" + versioned + "&InstanceId.1=" + hostile, 400, "InvalidInstanceID.Malformed", "Invalid id: "},

		{"ids and a page size", describe + "&InstanceId.1=" + documented + "&MaxResults=5", 400, "InvalidParameterCombination", "The parameter instancesSet cannot be used with the parameter maxResults"},
		{"a page that is too small", describe + "&MaxResults=1", 400, "InvalidParameterValue", "Value ( 1 ) for parameter maxResults is invalid. Expecting a value greater than 5."},
		{"a page that is too large", describe + "&MaxResults=1001", 400, "InvalidParameterValue", "Value ( 1001 )"},
		{"a page of no number", describe + "&MaxResults=ten", 400, "InvalidParameterValue", "ten"},
		{"a token that is none", describe + "&NextToken=garbage", 400, "InvalidPaginationToken", "The NextToken is not a page token: want the NextToken of the page before, as it was"},
		{"a token that is none, of tags", "Action=DescribeTags" + versioned + "&NextToken=garbage", 400, "InvalidPaginationToken", "The NextToken is not a page token: want the NextToken of the page before, as it was"},
		{"an unknown filter", describe + "&Filter.1.Name=colour&Filter.1.Value.1=red", 400, "InvalidParameterValue", "The filter 'colour' is invalid"},
		{"a filter without a name", describe + "&Filter.1.Value.1=red", 400, "MissingParameter", "Filter.1.Name"},
		{"a filter without values", describe + "&Filter.1.Name=instance-id", 400, "MissingParameter", "Filter.1.Value.1"},
		{"a filter with values of another form", describe + "&Filter.1.Name=instance-id&Filter.1.Value.member.1=i-1", 400, "UnknownParameter", "The parameter Filter.1.Value.member.1 is not recognized"},
		{"a filter without values before one that is unknown", describe + "&Filter.1.Name=instance-id&Filter.2.Name=x&Filter.2.Value.1=y&Filter.3.Name=z", 400, "MissingParameter", "Filter.1.Value.1"},
		{"a filter of an empty tag", describe + "&Filter.1.Name=tag:&Filter.1.Value.1=x", 400, "InvalidParameterValue", "tag:"},
		{"201 values", describe + "&Filter.1.Name=instance-id" + numbered("Filter.1.Value", 201, "a"), 400, "FilterLimitExceeded", "The maximum number of filter values specified on a single call is 200"},
		{"51 filters", describe + numbered("Filter", 51, "") + "&Filter.1.Name=x", 400, "FilterLimitExceeded", "50"},
		{"a value that is too long", describe + "&Filter.1.Name=instance-id&Filter.1.Value.1=" + strings.Repeat("ä", 256), 400, "InvalidParameterValue", "255"},
		{"an unknown id", describe + "&InstanceId.1=i-0ffffffffffffffff", 400, "InvalidInstanceID.NotFound", "The instance ID 'i-0ffffffffffffffff' does not exist"},
		{"1,001 ids", describe + each("InstanceId", distinctIDs(1001)), 400, "ResourceCountExceeded", "exceeded"},
		{
			"101 ids for a status", "Action=DescribeInstanceStatus" + versioned + each("InstanceId", distinctIDs(101)), 400, "InvalidRequest",
			"101 exceeds the maximum number of instance IDs that can be specificied (100). Please specify fewer than 100 instance IDs.",
		},
		{"a filter of another action", "Action=DescribeInstanceStatus" + versioned + "&Filter.1.Name=tenancy&Filter.1.Value.1=x", 400, "InvalidParameterValue", "The filter 'tenancy' is invalid"},
		{"a dry run of a description", describe + "&DryRun=true", 412, "DryRunOperation", "Request would have succeeded, but DryRun flag is set."},
		{"a dry run of a status", "Action=DescribeInstanceStatus" + versioned + "&DryRun=true", 412, "DryRunOperation", ""},

		{"a launch of no image", "Action=RunInstances" + versioned + "&MinCount=1&MaxCount=1", 400, "MissingParameter", "ImageId"},
		{"a launch of no number", "Action=RunInstances" + versioned + "&ImageId=ami-1&MinCount=1", 400, "MissingParameter", "MaxCount"},
		{"a launch of less than nothing", "Action=RunInstances" + versioned + "&ImageId=ami-1&MinCount=0&MaxCount=-1", 400, "InvalidParameterValue", "-1"},
		{"a launch of more at least than at most", "Action=RunInstances" + versioned + "&ImageId=ami-1&MinCount=3&MaxCount=2", 400, "InvalidParameterValue", "minCount"},
		{"a launch of too many", "Action=RunInstances" + versioned + "&ImageId=ami-1&MinCount=1&MaxCount=1001", 400, "InstanceLimitExceeded", "You have requested more instances (1001) than your current instance limit of 1000 allows"},
		{"a launch of far too many", "Action=RunInstances" + versioned + "&ImageId=ami-1&MinCount=1&MaxCount=20000", 400, "InstanceLimitExceeded", "(20000)"},
		{"a launch of no type", "Action=RunInstances" + versioned + "&ImageId=ami-1&MinCount=1&MaxCount=1&InstanceType=huge", 400, "InvalidParameterValue", "Invalid value 'huge' for InstanceType."},
		{"a launch of a type that does not exist", launch + "&InstanceType=t3.micpo", 400, "InvalidParameterValue", "Invalid value 't3.micpo' for InstanceType."},
		{"a launch of no tenancy", launch + "&Placement.Tenancy=foo", 400, "InvalidParameterValue", "Placement.Tenancy: is \"foo\": want one of default, dedicated, host"},
		{"a launch in no market", launch + "&InstanceMarketOptions.MarketType=foo", 400, "InvalidParameterValue", "InstanceMarketOptions.MarketType: is \"foo\": want one of spot"},
		{"a launch with no credits", launch + "&CreditSpecification.CpuCredits=foo", 400, "InvalidParameterValue", "CreditSpecification.CpuCredits: is \"foo\": want one of standard, unlimited"},
		{"a launch with credits of other types", launch + "&CreditSpecification.CpuCredits=standard", 400, "InvalidParameterValue", "CreditSpecification.CpuCredits: does not apply to m1.small: want a burstable type of t2, t3, t3a, t4g"},
		{"a launch that is wrong in more than one way", launch + "&CreditSpecification.CpuCredits=foo&Placement.Tenancy=foo", 400, "InvalidParameterValue", "Placement.Tenancy: is \"foo\": want one of default, dedicated, host; CreditSpecification.CpuCredits: is \"foo\": want one of standard, unlimited"},
		{"a launch with a tag of AWS", launch + "&TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=aws:a", 400, "InvalidParameterValue", "TagSpecification.Tag: have the key \"aws:a\": the prefix aws: is reserved"},
		{"a launch with a token that is not ASCII", launch + "&ClientToken=%C3%A9", 400, "InvalidParameterValue", "Invalid value 'é' for clientToken; at most 64 characters of printable ASCII are allowed."},
		{"a launch with a token of several lines", launch + "&ClientToken=a%0A", 400, "InvalidParameterValue", "clientToken"},
		{"a launch with a token that is too long", launch + "&ClientToken=" + strings.Repeat("x", 65), 400, "InvalidParameterValue", "clientToken"},
		{"additional information that is too long", "Action=StartInstances" + versioned + "&InstanceId.1=" + documented + "&AdditionalInfo=" + strings.Repeat("x", 1025), 400, "InvalidParameterValue", "AdditionalInfo: has 1025 bytes: want at most 1024"},
		{"a launch in no zone", "Action=RunInstances" + versioned + "&ImageId=ami-1&MinCount=1&MaxCount=1&Placement.AvailabilityZone=mars-1a", 400, "InvalidParameterValue", "Invalid availability zone: [mars-1a]"},
		{"a launch in a zone of another Region", launch + "&Placement.AvailabilityZone=eu-west-1a", 400, "InvalidParameterValue", "Invalid availability zone: [eu-west-1a]"},
		{"an unknown list", "Action=CreateTags" + versioned + "&Resources.0=" + documented + "&Tags.0.Key=a", 400, "UnknownParameter", "The parameter Resources is not recognized"},
		{"a malformed id with quotation marks", "Action=StopInstances" + versioned + "&InstanceId.1=" + url.QueryEscape(`i-"ä"\`), 400, "InvalidInstanceID.Malformed", `Invalid id: "i-"ä"\"`},
		{"a future version", "Action=StartInstances&Version=2099-01-01&InstanceId.1=" + documented, 400, "NoSuchVersion", "The requested version (2099-01-01) of service AmazonEC2 does not exist"},
		{"tags to delete of nothing", "Action=DeleteTags" + versioned + "&Tag.1.Key=a", 400, "MissingParameter", "The request must contain the parameter resourceIdSet"},
		{"a launch with an unknown parameter", "Action=RunInstances" + versioned + "&ImageId=ami-1&MinCount=1&MaxCount=1&Placement.Planet=mars", 400, "UnknownParameter", "Placement.Planet"},
		{"tags of another resource", "Action=CreateTags" + versioned + "&ResourceId.1=vol-1&Tag.1.Key=a", 400, "InvalidID", "vol-1"},
		{"no tags", "Action=CreateTags" + versioned + "&ResourceId.1=" + documented, 400, "MissingParameter", "Tag"},
		{"tags of nothing", "Action=CreateTags" + versioned + "&Tag.1.Key=a", 400, "MissingParameter", "The request must contain the parameter resourceIdSet"},
		{"tags of AWS", "Action=CreateTags" + versioned + "&ResourceId.1=" + documented + "&Tag.1.Key=aws:a", 400, "InvalidParameterValue", "Tag: have the key \"aws:a\": the prefix aws: is reserved"},
		{"a tag that is too long", "Action=CreateTags" + versioned + "&ResourceId.1=" + documented + "&Tag.1.Key=a&Tag.1.Value=" + strings.Repeat("x", 257), 400, "InvalidParameterValue", "Tag[\"a\"]: is too long: want at most 256 characters"},
		{"tags of an unknown instance", "Action=CreateTags" + versioned + "&ResourceId.1=i-0ffffffffffffffff&Tag.1.Key=a", 400, "InvalidInstanceID.NotFound", ""},
		{"tags of a malformed instance", "Action=CreateTags" + versioned + "&ResourceId.1=i-x&Tag.1.Key=a", 400, "InvalidInstanceID.Malformed", ""},
		{"51 tags", "Action=CreateTags" + versioned + "&ResourceId.1=" + documented + keyed("Tag", 51), 400, "TagLimitExceeded", "Tag: are 51: want at most 50"},
		{"50 tags beside one", "Action=CreateTags" + versioned + "&ResourceId.1=" + documented + keyed("Tag", 50), 400, "TagLimitExceeded", "would have more than 50 tags"},
		{"a launch with 51 tags", launch + "&TagSpecification.1.ResourceType=instance" + keyed("TagSpecification.1.Tag", 51), 400, "TagLimitExceeded", "TagSpecification.Tag: are 51: want at most 50"},
		{"two attributes", "Action=ModifyInstanceAttribute" + versioned + "&InstanceId=" + documented + "&DisableApiStop.Value=true&DisableApiTermination.Value=true", 400, "InvalidParameterCombination", "multiple"},
		{"no attribute", "Action=ModifyInstanceAttribute" + versioned + "&InstanceId=" + documented, 400, "InvalidParameterCombination", "No attributes"},
		{"an attribute that is not simulated", "Action=ModifyInstanceAttribute" + versioned + "&InstanceId=" + documented + "&UserData.Value=x", 400, "UnsupportedOperation", "UserData"},
		{"an unknown attribute", "Action=DescribeInstanceAttribute" + versioned + "&InstanceId=" + documented + "&Attribute=colour", 400, "InvalidParameterValue", "colour"},
		{"an attribute of a list of instances", attribute + "&InstanceId.1=" + documented + "&DisableApiStop.Value=true", 400, "UnknownParameter", "The parameter InstanceId.1 is not recognized"},
		{"an attribute that is not simulated, of no instance", attribute + "&UserData.Value=x", 400, "MissingParameter", "InstanceId"},
		{"an attribute of a name that is not simulated, of no instance", attribute + "&Attribute=userData&Value=x", 400, "MissingParameter", "InstanceId"},
		{"a type of no form", attribute + "&InstanceId=" + documented + "&InstanceType.Value=huge", 400, "InvalidParameterValue", "Invalid value 'huge' for InstanceType."},
		{"a type of a running instance", "Action=ModifyInstanceAttribute" + versioned + "&InstanceId=i-0a000000000000001&InstanceType.Value=t3.nano", 400, "IncorrectInstanceState", "The instance 'i-0a000000000000001' is not in the 'stopped' state."},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := post(t, client, srv.EC2(), test.form)
			if got.status != test.status || got.root != "Response" || got.code != test.code || !strings.Contains(got.message, test.message) {
				t.Errorf("%d %s: %.300s\nwant %d %s: %s", got.status, got.code, got.message, test.status, test.code, test.message)
			}
		})
	}
	if events, err := srv.Instances().ListEvents(patient(t), &instancedv1.ListEventsRequest{InstanceIds: []string{documented}}); err != nil || len(events.GetEvents()) != 1 {
		t.Errorf("something was changed anyway: %v, %v", events.GetEvents(), err)
	}
}

func TestAPageTokenBelongsToItsSelection(t *testing.T) {
	srv := servertest.New(t, servertest.Options{})
	client := httpClient(t)
	describe := "Action=DescribeInstances" + versioned + "&MaxResults=5&Filter.1.Name=tenancy&Filter.1.Value.1="
	var first struct {
		Token string `xml:"nextToken"`
	}
	if err := xml.Unmarshal([]byte(post(t, client, srv.EC2(), describe+"default").body), &first); err != nil || first.Token == "" {
		t.Fatal(first, err)
	}
	next := "&NextToken=" + url.QueryEscape(first.Token)
	for _, test := range []struct {
		form string
		code string
	}{
		{describe + "default" + next, ""},
		{describe + "*" + next, "InvalidPaginationToken"},
		{"Action=DescribeInstanceStatus" + versioned + "&IncludeAllInstances=true" + next, "InvalidPaginationToken"},
		{"Action=DescribeTags" + versioned + next, "InvalidPaginationToken"},
	} {
		if got := post(t, client, srv.EC2(), test.form); got.code != test.code {
			t.Errorf("%s: %d %s: %s", test.form, got.status, got.code, got.message)
		}
	}
}

func TestAPageTokenOfTagsBelongsToItsFilters(t *testing.T) {
	srv := servertest.New(t, servertest.Options{})
	client := httpClient(t)
	describe := "Action=DescribeTags" + versioned + "&MaxResults=5"
	named := describe + "&Filter.1.Name=key&Filter.1.Value.1=Name"
	var first struct {
		Token string `xml:"nextToken"`
	}
	if err := xml.Unmarshal([]byte(post(t, client, srv.EC2(), named).body), &first); err != nil || first.Token == "" {
		t.Fatal(first, err)
	}
	next := "&NextToken=" + url.QueryEscape(first.Token)
	const other = "The NextToken belongs to another selection: want the one with which the first page was asked for"
	for form, message := range map[string]string{named + next: "", describe + next: other, describe + "&Filter.1.Name=key&Filter.1.Value.1=access" + next: other} {
		if got := post(t, client, srv.EC2(), form); got.message != message {
			t.Errorf("%s: %d %s: %s", form, got.status, got.code, got.message)
		}
	}
}

func TestRequestsComeInAllFormsOfHTTP(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{})
	client := httpClient(t)
	form := "Action=DescribeInstances" + versioned + "&Filter.1.Name=instance-id&Filter.1.Value.7=i-nothing&Filter.1.Value.3=" + documented
	var zipped bytes.Buffer
	zip := gzip.NewWriter(&zipped)
	_, _ = io.WriteString(zip, form)
	_ = zip.Close()
	request := func(method, url string, body io.Reader, header ...string) *http.Request {
		r := unsigned(t, method, url, body)
		r.Header.Del("Content-Type")
		for n := 0; n < len(header); n += 2 {
			r.Header.Set(header[n], header[n+1])
		}
		return r
	}
	for name, r := range map[string]*http.Request{
		"a form":                    request("POST", srv.EC2(), strings.NewReader(form), "Content-Type", "application/x-www-form-urlencoded"),
		"a form of no type":         request("POST", srv.EC2()+"/", strings.NewReader(form)),
		"a query":                   request("GET", srv.EC2()+"/?"+form, nil),
		"a query and an empty form": request("POST", srv.EC2()+"/?"+form, nil),
		"a query and a form":        request("POST", srv.EC2()+"/?"+versioned, strings.NewReader(strings.Replace(form, versioned, "", 1))),
		"in chunks":                 request("POST", srv.EC2(), io.MultiReader(strings.NewReader(form[:7]), strings.NewReader(form[7:]))),
		"compressed":                request("POST", srv.EC2(), bytes.NewReader(zipped.Bytes()), "Content-Encoding", "gzip"),
		"expecting to be told":      request("POST", srv.EC2(), strings.NewReader(form), "Expect", "100-continue"),
	} {
		t.Run(name, func(t *testing.T) {
			response, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			if got := read(t, response); got.status != 200 || got.root != "DescribeInstancesResponse" || strings.Count(got.body, "<instanceId>") != 1 || !strings.Contains(got.body, documented) {
				t.Errorf("%d %s", got.status, got.body)
			}
		})
	}
	var bomb bytes.Buffer
	zip.Reset(&bomb)
	for range 64 {
		_, _ = zip.Write(make([]byte, 1<<20))
	}
	_ = zip.Close()
	for name, test := range map[string]struct {
		r      *http.Request
		status int
		code   string
	}{
		"more than is allowed once it is inflated": {request("POST", srv.EC2(), &bomb, "Content-Encoding", "gzip"), 413, "RequestEntityTooLarge"},
		"said to be compressed":                    {request("POST", srv.EC2(), strings.NewReader(form), "Content-Encoding", "gzip"), 400, "InvalidRequest"},
		"compressed and damaged":                   {request("POST", srv.EC2(), bytes.NewReader(zipped.Bytes()[:20]), "Content-Encoding", "gzip"), 400, "InvalidRequest"},
		"compressed in another way":                {request("POST", srv.EC2(), strings.NewReader(form), "Content-Encoding", "br"), 400, "InvalidRequest"},
		"another method":                           {request("PUT", srv.EC2(), strings.NewReader(form)), 405, "MethodNotAllowed"},
		"a web page's form":                        {request("POST", srv.EC2(), strings.NewReader(form), "Origin", "https://example.com"), 403, "AccessDenied"},
		"a web page's picture":                     {request("GET", srv.EC2()+"/?"+form, nil, "Sec-Fetch-Site", "cross-site"), 403, "AccessDenied"},
	} {
		t.Run(name, func(t *testing.T) {
			response, err := client.Do(test.r)
			if err != nil {
				t.Fatal(err)
			}
			if got := read(t, response); got.status != test.status || got.code != test.code {
				t.Errorf("%d %s: %s", got.status, got.code, got.message)
			}
		})
	}
	t.Run("a name that leads here", func(t *testing.T) {
		for host, status := range map[string]int{
			"localhost:1": 200, "LOCALHOST": 200, "localhost.:8580": 200, "ec2.localhost:8580": 200, "127.0.0.2:8580": 200, "[::1]:1": 200, "::1": 200,
			"example.com:8580": 403, "10.0.0.1.example.com": 403, "127.0.0.1.example.com": 403, "localhost.example.com:1": 403, "notlocalhost": 403,
			"0.0.0.0:8580": 403, "[::]:8580": 403, "0:8580": 403, "192.0.2.1:8580": 403, "instanced": 403, "instanced:8580": 403, "host.docker.internal": 403,
		} {
			r := request("GET", srv.EC2()+"/?"+form, nil)
			r.Host = host
			response, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			if got := read(t, response); got.status != status {
				t.Errorf("%s: %d %s", host, got.status, got.message)
			}
		}
	})
}

// TestAWebPageCannotSendARequest sends what the forms, links, pictures and scripts of a
// page can send to another origin, with and without what browsers add to it by themselves.
func TestAWebPageCannotSendARequest(t *testing.T) {
	srv := servertest.New(t, servertest.Options{})
	client := httpClient(t)
	stop := "Action=StopInstances" + versioned + "&InstanceId.1=i-0a000000000000001"
	version2 := stop + "&AWSAccessKeyId=ana&SignatureVersion=2&SignatureMethod=HmacSHA256&Timestamp=2026-01-01T00%3A00%3A00Z&Signature=x"
	presigned := stop + "&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=ana%2F20260101%2Fus-east-1%2Fec2%2Faws4_request&X-Amz-Date=20260101T000000Z" +
		"&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature=0"
	const mozilla = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"
	send := func(method, query, body string, header ...string) answered {
		t.Helper()
		r, err := http.NewRequestWithContext(patient(t), method, srv.EC2()+"/?"+query, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for n := 0; n < len(header); n += 2 {
			r.Header.Set(header[n], header[n+1])
		}
		response, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		return read(t, response)
	}
	for name, got := range map[string]answered{
		"a link":                        send("GET", stop, "", "User-Agent", mozilla),
		"a link, read":                  send("GET", "Action=DescribeInstances"+versioned, "", "User-Agent", mozilla),
		"a link of any user agent":      send("GET", stop, ""),
		"a link with a referrer":        send("GET", stop, "", "Referer", "http://example.com/", "Amz-Sdk-Request", "x"),
		"a picture":                     send("GET", stop, "", "Sec-Fetch-Dest", "image", "Amz-Sdk-Request", "x"),
		"a form":                        send("POST", "", stop, "User-Agent", mozilla, "Content-Type", "application/x-www-form-urlencoded"),
		"a form of any user agent":      send("POST", "", stop, "Content-Type", "application/x-www-form-urlencoded"),
		"a form from an origin":         send("POST", "", stop, "Content-Type", "application/x-www-form-urlencoded", "Origin", "null", "Amz-Sdk-Request", "x"),
		"a form of plain text":          send("POST", "", stop, "User-Agent", mozilla, "Content-Type", "text/plain"),
		"a form of several parts":       send("POST", stop, "--x--", "User-Agent", mozilla, "Content-Type", "multipart/form-data; boundary=x"),
		"a script that sends no type":   send("POST", "", stop, "User-Agent", mozilla),
		"a password in the address":     send("POST", "", stop, "User-Agent", mozilla, "Authorization", "Basic YW5hOng="),
		"a form signed by version 2":    send("POST", "", version2, "User-Agent", mozilla, "Content-Type", "application/x-www-form-urlencoded"),
		"a form of no user agent":       send("POST", "", version2, "User-Agent", "", "Content-Type", "application/x-www-form-urlencoded"),
		"a link that is signed":         send("GET", presigned, "", "User-Agent", mozilla),
		"a question whether it may ask": send("OPTIONS", stop, "", "User-Agent", mozilla, "Access-Control-Request-Headers", "authorization"),
	} {
		if got.status != 403 && got.status != 405 || got.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: %d %s: %s", name, got.status, got.code, got.message)
		}
	}
	events, err := srv.Instances().ListEvents(patient(t), &instancedv1.ListEventsRequest{InstanceIds: []string{"i-0a000000000000001"}})
	if err != nil || len(events.GetEvents()) != 1 {
		t.Errorf("something was changed anyway: %v, %v", events.GetEvents(), err)
	}
	for name, got := range map[string]answered{
		"a signature in a header":                   send("POST", "", stop, "Authorization", "AWS4-HMAC-SHA256 Credential=ana/x"),
		"a SDK that does not sign":                  send("POST", "", stop, "Amz-Sdk-Invocation-Id", "x"),
		"a program that signs by version 2":         send("POST", "", version2, "User-Agent", "Boto/2.49.0 Python/2.7.18 Linux/6.1"),
		"VM::EC2":                                   send("POST", "", version2, "User-Agent", "Mozilla/5.0 (compatible; U; AnyEvent-HTTP/2.25; +http://software.schmorp.de/pkg/AnyEvent)"),
		"a program that signs by version 2, a link": send("GET", version2, "", "User-Agent", "libcloud/2.0.0"),
		"a signed link in a program":                send("GET", presigned, "", "User-Agent", "curl/8.5.0"),
	} {
		if got.status != 200 {
			t.Errorf("%s: %d %s: %s", name, got.status, got.code, got.message)
		}
	}
}

func TestEveryByteOfATagComesBackWellFormed(t *testing.T) {
	srv := servertest.New(t, servertest.Options{})
	client := httpClient(t)
	var all []rune
	for c := range rune(0x180) {
		all = append(all, c)
	}
	hostile := string(slices.Concat(all[:200], []rune("]]></tagSet><script>\u2028\ufffe")))
	got := post(t, client, srv.EC2(), "Action=CreateTags"+versioned+"&ResourceId.1="+documented+"&Tag.1.Key=hostile&Tag.1.Value="+url.QueryEscape(hostile))
	if got.status != 200 {
		t.Fatal(got)
	}
	form := url.Values{"Action": {"DescribeTags"}, "Version": {"2016-11-15"}, "Filter.1.Name": {"key"}, "Filter.1.Value.1": {"hostile"}}
	got = post(t, client, srv.EC2(), form.Encode())
	if got.status != 200 || strings.Contains(got.body, "<script>") || strings.Count(got.body, "<tagSet>") != 1 {
		t.Errorf("%d %s", got.status, got.body)
	}
	var tags struct {
		Values []string `xml:"tagSet>item>value"`
	}
	if err := xml.Unmarshal([]byte(got.body), &tags); err != nil || len(tags.Values) != 1 || !strings.HasSuffix(tags.Values[0], "]]></tagSet><script>\u2028\ufffd") {
		t.Errorf("%q, %v", tags.Values, err)
	}
}

// TestASlowClientIsCutOff sends the header of a request a byte at a time.
func TestASlowClientIsCutOff(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{})
	conn, err := net.Dial("tcp", strings.TrimPrefix(srv.EC2(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	begun := time.Now()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, bufio.NewReader(conn)) // ends when the server has had enough
	}()
	for n := 0; ; n++ {
		select {
		case <-gone:
			if took := time.Since(begun); took < 5*time.Second {
				t.Errorf("it was cut off after %v already", took)
			}
			return
		case <-time.After(100 * time.Millisecond):
		}
		_, _ = conn.Write([]byte("POST / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 1000))[n : n+1]) // fails in the end
		if time.Since(begun) > time.Minute {
			t.Fatal("it is still listened to")
		}
	}
}
