package ec2query

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

// must returns a document that can be made.
func must(document []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return document
}

// wellFormed reads a document to its end.
func wellFormed(t testing.TB, document []byte) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(document))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("it is not well formed: %v\n%s", err, document)
		}
	}
}

func TestHostNamesAreMadeUpOnlyForWhatWasRecordedBeforeTheyWereKept(t *testing.T) {
	older := &instance.Instance{Region: "us-east-1", PrivateIPAddress: "10.0.0.1", PublicIPAddress: "198.18.0.1"}
	if i := instanceOf(older); i.PrivateDNSName != "ip-10-0-0-1.ec2.internal" || i.DNSName != "ec2-198-18-0-1.compute-1.amazonaws.com" {
		t.Errorf("the names are %q and %q", i.PrivateDNSName, i.DNSName)
	}
	present := older.Clone()
	present.ImageID = "ami-1"
	if i := instanceOf(present); i.PrivateDNSName != "" || i.DNSName != "" {
		t.Errorf("EC2 gave no names, and they are %q and %q", i.PrivateDNSName, i.DNSName)
	}
}

func TestDocumentsAreInEC2sForm(t *testing.T) {
	launched := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	whole := &instance.Instance{
		ID: "i-1234567890abcdef0", AccountID: "123456789012", Region: "us-east-1", AvailabilityZone: "us-east-1a", Type: "t3.micro",
		State: instance.StateStopped, StateReason: &instance.StateReason{Code: "c", Message: "m"}, StateTransitionReason: "User initiated",
		LaunchTime: launched, PrivateIPAddress: "10.0.0.1", PublicIPAddress: "198.18.0.1", Tenancy: "default", RootDeviceType: "ebs",
		ImageID: "ami-1", AMILaunchIndex: 3, PrivateDNSName: "i-1.ec2.internal", PublicDNSName: "named.example.com",
		Lifecycle: "spot", Tags: map[string]string{"b": "2", "a": "1"},
		Simulator: &instance.SimulatorAttributes{
			HibernationConfigured: true,
			Launched:              &instance.Launched{ReservationID: "r-1", ClientToken: "t"},
		},
	}
	const instanceXML = `<instancesSet><item><instanceId>i-1234567890abcdef0</instanceId><imageId>ami-1</imageId>` +
		`<instanceState><code>80</code><name>stopped</name></instanceState><privateDnsName>i-1.ec2.internal</privateDnsName><dnsName>named.example.com</dnsName>` +
		`<reason>User initiated</reason><amiLaunchIndex>3</amiLaunchIndex><instanceType>t3.micro</instanceType><launchTime>2026-01-02T03:04:05.000Z</launchTime>` +
		`<placement><availabilityZone>us-east-1a</availabilityZone><groupName></groupName><tenancy>default</tenancy></placement>` +
		`<privateIpAddress>10.0.0.1</privateIpAddress><ipAddress>198.18.0.1</ipAddress>` +
		`<stateReason><code>c</code><message>m</message></stateReason><rootDeviceType>ebs</rootDeviceType>` +
		`<instanceLifecycle>spot</instanceLifecycle><clientToken>t</clientToken>` +
		`<tagSet><item><key>a</key><value>1</value></item><item><key>b</key><value>2</value></item></tagSet>` +
		`<hibernationOptions><configured>true</configured></hibernationOptions></item></instancesSet>`
	for _, test := range []struct {
		name, action string
		reply        reply
		want         string
	}{
		{"a start", "StartInstances", &changesReply{Instances: list[changeItem]{[]changeItem{{
			ID: "i-1", Current: stateOf(instance.StatePending), Previous: stateOf(instance.StateStopped),
		}}}}, `<instancesSet><item><instanceId>i-1</instanceId><currentState><code>0</code><name>pending</name></currentState>` +
			`<previousState><code>80</code><name>stopped</name></previousState></item></instancesSet>`},
		{"a reboot", "RebootInstances", &returnReply{Return: true}, `<return>true</return>`},
		{"no instances", "DescribeInstances", &describeInstancesReply{}, `<reservationSet></reservationSet>`},
		{"a whole instance", "DescribeInstances", &describeInstancesReply{
			Reservations: list[*reservationItem]{reservations([]*instance.Instance{whole})}, NextToken: "n",
		}, `<reservationSet><item><reservationId>r-1</reservationId><ownerId>123456789012</ownerId><groupSet></groupSet>` +
			instanceXML + `</item></reservationSet><nextToken>n</nextToken>`},
		{
			"a launch", "RunInstances", &runInstancesReply{reservationItem: *reservations([]*instance.Instance{whole})[0]},
			`<reservationId>r-1</reservationId><ownerId>123456789012</ownerId><groupSet></groupSet>` + instanceXML,
		},
		{
			"an attribute", "DescribeInstanceAttribute", &attributeReply{ID: "i-1", DisableAPIStop: &attribute[bool]{false}},
			`<instanceId>i-1</instanceId><disableApiStop><value>false</value></disableApiStop>`,
		},
		{
			"tags", "DescribeTags", &describeTagsReply{Tags: list[tagDescription]{[]tagDescription{{"i-1", "instance", "k", "v"}}}},
			`<tagSet><item><resourceId>i-1</resourceId><resourceType>instance</resourceType><key>k</key><value>v</value></item></tagSet>`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := string(must(encode(test.action, version, test.reply, "the-id")))
			want := xml.Header + `<` + test.action + `Response xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>the-id</requestId>` +
				test.want + `</` + test.action + `Response>`
			if got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
	t.Run("an error", func(t *testing.T) {
		got := string(must(encodeError(refusal{code: "A", message: "<b> & 'c'"}, "the-id")))
		want := xml.Header + `<Response><Errors><Error><Code>A</Code><Message>&lt;b&gt; &amp; &#39;c&#39;</Message></Error></Errors><RequestID>the-id</RequestID></Response>`
		if got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	})
}

func TestWhatXMLCannotCarryIsReplaced(t *testing.T) {
	hostile := "]]><x a='\"&#0;\x00\x01\x0b\x1f\u0085\u2028\ufffe\uffff\xff\t\r\n"
	i := &instance.Instance{ID: "i-1", Tags: map[string]string{hostile: hostile}, StateTransitionReason: hostile}
	document := must(encode("DescribeInstances", version, &describeInstancesReply{Reservations: list[*reservationItem]{reservations([]*instance.Instance{i})}}, "id"))
	wellFormed(t, document)
	var read struct {
		Tags []tagItem `xml:"reservationSet>item>instancesSet>item>tagSet>item"`
	}
	if err := xml.Unmarshal(document, &read); err != nil {
		t.Fatal(err)
	}
	const r = "\ufffd"
	want := "]]><x a='\"&#0;" + r + r + r + r + "\u0085\u2028" + r + r + r + "\t\r\n"
	if len(read.Tags) != 1 || read.Tags[0].Key != want || read.Tags[0].Value != want {
		t.Errorf("got  %q\nwant %q", read.Tags, want)
	}
}

func FuzzDocumentsAreWellFormed(f *testing.F) {
	f.Add("]]>", "\x00<a>&", "\xff")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		i := &instance.Instance{
			ID: instance.ID("i-" + a), Type: b, StateTransitionReason: c, AvailabilityZone: a, Tags: map[string]string{a: b, c: a},
			StateReason: &instance.StateReason{Code: b, Message: c}, State: instance.StateRunning,
		}
		wellFormed(t, must(encode("DescribeInstances", version, &describeInstancesReply{Reservations: list[*reservationItem]{reservations([]*instance.Instance{i})}, NextToken: c}, a)))
		wellFormed(t, must(encodeError(refusal{code: a, message: b}, c)))
		if strings.ContainsAny(clip(a), "\x00") && !strings.Contains(a, "\x00") {
			t.Error("clip adds something")
		}
	})
}
