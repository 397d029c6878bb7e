package ec2

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/backend/sqstest"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/server/ec2query"
	"github.com/instanced/instanced/server/servertest"
)

// exchange is an AWS with all that is looked at: SQS and STS in the test's process, and
// EC2 at an endpoint of its own.
type exchange struct {
	queue *sqstest.Queue
	sts   bool // STS answers
	ec2   http.Client
}

func (e *exchange) Do(req *http.Request) (*http.Response, error) {
	if strings.HasPrefix(req.Header.Get("X-Amz-Target"), "AmazonSQS.") {
		return e.queue.Do(req)
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	if e.sts && strings.Contains(string(body), "Action=GetCallerIdentity") {
		return &http.Response{
			StatusCode: 200, Header: http.Header{"Content-Type": {"text/xml"}}, Request: req,
			Body: io.NopCloser(strings.NewReader(document("<GetCallerIdentityResponse><GetCallerIdentityResult>" +
				"<Arn>arn:aws:iam::123456789012:user/ana</Arn></GetCallerIdentityResult></GetCallerIdentityResponse>"))),
		}, nil
	}
	req.Body = io.NopCloser(strings.NewReader(string(body)))
	return e.ec2.Do(req)
}

const (
	queueARN     = "arn:aws:sqs:us-east-1:123456789012:changes"
	mayBeSent    = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"events.amazonaws.com"},"Action":"sqs:SendMessage","Resource":"` + queueARN + `","Condition":{"ArnEquals":{"aws:SourceArn":"arn:aws:events:us-east-1:123456789012:rule/changes"}}}]}`
	givenUpAfter = `{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:123456789012:dead","maxReceiveCount":`
)

// rightQueue is a queue without findings. It has a message, for which no finding
// has to wait.
func rightQueue() *sqstest.Queue {
	q := &sqstest.Queue{Attributes: map[string]string{
		"QueueArn": queueARN, "ApproximateNumberOfMessages": "0",
		"Policy": mayBeSent, "RedrivePolicy": givenUpAfter + `5}`,
	}}
	q.Send(event(1, id(1), "stopped"))
	return q
}

// examined returns what is found, in order, with everything right that adjust leaves alone.
func examined(t *testing.T, opts servertest.Options, adjust func(*Config, *exchange)) []Finding {
	t.Helper()
	srv := servertest.New(t, opts)
	e := &exchange{queue: rightQueue(), sts: true}
	t.Cleanup(e.ec2.CloseIdleConnections)
	cfg := Config{
		AWS: aws.Config{
			Region:       "us-east-1",
			Credentials:  credentials.NewStaticCredentialsProvider("AKID", "secret", ""),
			BaseEndpoint: new(srv.EC2()),
			HTTPClient:   e,
		},
		QueueURL: sqstest.URL,
	}
	if adjust != nil {
		adjust(&cfg, e)
	}
	var findings []Finding
	for f := range Examine(t.Context(), cfg) {
		findings = append(findings, f)
	}
	return findings
}

// wantFindings compares levels: ok but for those that are named, each as
// "check: level: part of the text or of the advice".
func wantFindings(t *testing.T, got []Finding, others ...string) {
	t.Helper()
	left := make(map[string]bool)
	for _, o := range others {
		left[o] = true
	}
	for _, f := range got {
		said := false
		for _, o := range others {
			check, rest, _ := strings.Cut(o, ": ")
			level, part, _ := strings.Cut(rest, ": ")
			if check == f.Check && level == string(f.Level) && strings.Contains(f.Text+"; "+f.Advice, part) {
				said = true
				delete(left, o)
			}
		}
		if !said && f.Level != LevelOK {
			t.Errorf("unexpected: %+v", f)
		}
		if f.Text == "" || (f.Level == LevelOK) != (f.Advice == "") {
			t.Errorf("a finding without text, or with advice on what is right, or without on what is not: %+v", f)
		}
	}
	for o := range left {
		t.Errorf("not found: %s", o)
	}
	if t.Failed() {
		for _, f := range got {
			t.Logf("%+v", f)
		}
	}
}

func TestExamineFindsNothingWrong(t *testing.T) {
	got := examined(t, servertest.Options{Throttle: true}, func(_ *Config, e *exchange) { e.queue.Purge() })
	wantFindings(t, got)
	var checks []string
	for _, f := range got {
		checks = append(checks, f.Check)
	}
	const want = "Region, credentials, identity, DescribeInstances, DescribeInstances by id, StartInstances, StopInstances, RebootInstances, TerminateInstances, " +
		"queue, queue policy, dead-letter queue, ReceiveMessage, DeleteMessage, ChangeMessageVisibility"
	if s := strings.Join(checks, ", "); s != want {
		t.Errorf("looked at %s, want %s", s, want)
	}
}

func TestExamineFindsWhatIsWrongWithEC2(t *testing.T) {
	known, err := ec2query.ParseCredentials(strings.NewReader(`{"credentials":[{"access_key_id":"AKID","secret_access_key":"other","principal":"ana"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	none, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = none.Close()
	untried := []string{
		"StartInstances: problem: cannot be tried", "StopInstances: problem: cannot be tried",
		"RebootInstances: problem: cannot be tried", "TerminateInstances: problem: cannot be tried",
	}
	tests := []struct {
		name   string
		opts   servertest.Options
		adjust func(*Config, *exchange)
		want   []string
	}{
		{
			"no Region",
			servertest.Options{},
			func(c *Config, _ *exchange) { c.AWS.Region = "" },
			[]string{"Region: problem: AWS_REGION"},
		},
		{
			"no credentials",
			servertest.Options{},
			func(c *Config, _ *exchange) {
				c.AWS.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
					return aws.Credentials{}, errors.New("no EC2 IMDS role found")
				})
			},
			[]string{"credentials: problem: no EC2 IMDS role found"},
		},
		{
			"STS is not there",
			servertest.Options{},
			func(_ *Config, e *exchange) { e.sts = false },
			[]string{"identity: warning: StatusCode: 400"},
		},
		{
			"the secret is wrong",
			servertest.Options{EC2Credentials: known},
			nil,
			append(untried, "DescribeInstances: problem: check the access key"),
		},
		{
			"the access key is not known",
			servertest.Options{EC2Credentials: known},
			func(c *Config, _ *exchange) {
				c.AWS.Credentials = credentials.NewStaticCredentialsProvider("AKIDX", "other", "")
			},
			append(untried, "DescribeInstances: problem: (AuthFailure)"),
		},
		{
			"EC2 cannot be reached",
			servertest.Options{},
			func(c *Config, _ *exchange) { c.AWS.BaseEndpoint = new("http://" + none.Addr().String()) },
			append(untried, "DescribeInstances: problem: connection refused; check the endpoint"),
		},
		{
			"nothing is there",
			servertest.Options{Fleet: &instancedv1.CreateInstancesRequest{}},
			nil,
			append(untried, "DescribeInstances: warning: check the Region"),
		},
		{
			"nothing is managed",
			servertest.Options{},
			func(c *Config, _ *exchange) { c.Manage = map[string][]string{"fleet": {"unused"}} },
			append(untried, "DescribeInstances: warning: --manage-filter"),
		},
		{
			"the verbs are denied on what has a tag",
			servertest.Options{},
			func(c *Config, _ *exchange) { c.Manage = map[string][]string{"access": {"denied"}} },
			[]string{
				"StartInstances: problem: grant ec2:StartInstances on arn:aws:ec2:us-east-1:123456789012:instance/*",
				"StopInstances: problem: grant ec2:StopInstances on",
				"RebootInstances: problem: grant ec2:RebootInstances on",
				"TerminateInstances: problem: i-0a0000000000000de",
			},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			wantFindings(t, examined(t, test.opts, test.adjust), test.want...)
		})
	}
}

func TestExamineFindsWhatIsWrongWithTheQueue(t *testing.T) {
	attribute := func(name, value string) func(*Config, *exchange) {
		return func(_ *Config, e *exchange) { e.queue.Attributes[name] = value }
	}
	denied := func(action string) func(*Config, *exchange) {
		return func(_ *Config, e *exchange) { e.queue.Denied = action }
	}
	tests := []struct {
		name   string
		adjust func(*Config, *exchange)
		want   string
	}{
		{"there is none", func(c *Config, _ *exchange) { c.QueueURL = "" }, "queue: warning: --sqs-queue-url"},
		{"no policy", attribute("Policy", ""), "queue policy: problem: allow sqs:SendMessage on " + queueARN},
		{"a policy for others", attribute("Policy", strings.ReplaceAll(mayBeSent, "events.", "sns.")), "queue policy: problem: events.amazonaws.com"},
		{"a policy that denies", attribute("Policy", strings.ReplaceAll(mayBeSent, "Allow", "Deny")), "queue policy: problem: EventBridge"},
		{"a policy that allows to receive", attribute("Policy", strings.ReplaceAll(mayBeSent, "SendMessage", "ReceiveMessage")), "queue policy: problem: EventBridge"},
		{"a policy for any rule", attribute("Policy", strings.ReplaceAll(mayBeSent, "aws:SourceArn", "aws:SecureTransport")), "queue policy: warning: SourceArn"},
		{"a policy for everybody", attribute("Policy", `{"Statement":[{"Effect":"Allow","Principal":"*","Action":["SQS:*"]}]}`), "queue policy: warning: anybody"},
		{"a policy that cannot be read", attribute("Policy", `{"Statement":7}`), "queue policy: warning: cannot be read"},
		{"no dead-letter queue", attribute("RedrivePolicy", ""), "dead-letter queue: warning: maxReceiveCount of 3"},
		{"few receives", attribute("RedrivePolicy", givenUpAfter+`"1"}`), "dead-letter queue: warning: after 1 receives"},
		{"a redrive policy that cannot be read", attribute("RedrivePolicy", `{}`), "dead-letter queue: warning: cannot be read"},
		{"AWS's key", attribute("KmsMasterKeyId", "alias/aws/sqs"), "queue key: problem: EventBridge cannot use"},
		{"a key", attribute("KmsMasterKeyId", "arn:aws:kms:us-east-1:123456789012:key/k"), "queue key: warning: kms:GenerateDataKey*"},
		{"attributes denied", denied("GetQueueAttributes"), "queue: problem: grant sqs:GetQueueAttributes on the queue"},
		{"receiving denied", denied("ReceiveMessage"), "ReceiveMessage: problem: grant sqs:ReceiveMessage on the queue"},
		{"deleting denied", denied("DeleteMessageBatch"), "DeleteMessage: problem: grant sqs:DeleteMessage on the queue"},
		{"hiding denied", denied("ChangeMessageVisibilityBatch"), "ChangeMessageVisibility: problem: grant sqs:ChangeMessageVisibility on the queue"},
		{"no long polling", func(_ *Config, e *exchange) {
			e.queue.Hasty = true
			e.queue.Purge()
		}, "ReceiveMessage: warning: asked to wait 2s"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			wantFindings(t, examined(t, servertest.Options{}, test.adjust), test.want)
		})
	}
	t.Run("it is not there", func(t *testing.T) {
		got := examined(t, servertest.Options{}, func(c *Config, _ *exchange) { c.QueueURL += "x" })
		const why = ": problem: the queue has to be in the Region us-east-1"
		wantFindings(t, got, "queue"+why, "ReceiveMessage"+why, "DeleteMessage"+why, "ChangeMessageVisibility"+why)
	})
}

func TestTheDocumentedPoliciesPassTheExamination(t *testing.T) {
	text, err := os.ReadFile("../../../docs/aws.md")
	if err != nil {
		t.Fatal(err)
	}
	policies, limits := 0, 0
	for _, block := range regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		switch example := block[1]; {
		case strings.Contains(example, eventBridge):
			policies++
			if f := queuePolicy(example, queueARN); f.Level != LevelOK {
				t.Errorf("of the queue's policy: %+v", f)
			}
		case strings.Contains(example, "refill"):
			limits++
			if _, err := ParseLimits([]byte(example)); err != nil {
				t.Error(err)
			}
		case !json.Valid([]byte(example)):
			t.Errorf("not JSON:\n%s", example)
		}
	}
	if policies != 1 || limits != 1 {
		t.Errorf("%d policies of a queue, %d limits", policies, limits)
	}
}

func TestExamineLeavesMessagesForTheService(t *testing.T) {
	q := rightQueue()
	got := examined(t, servertest.Options{}, func(_ *Config, e *exchange) { e.queue = q })
	wantFindings(t, got)
	for deadline := time.Now().Add(30 * time.Second); q.Visible() == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the message does not come again")
		}
	}
}

// changedAnswers changes the answers of an endpoint to an action.
type changedAnswers struct {
	http.RoundTripper
	action string
	change func(string) string
}

func (c *changedAnswers) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	req.Body = io.NopCloser(strings.NewReader(string(body)))
	resp, err := c.RoundTripper.RoundTrip(req)
	if err != nil || !strings.Contains(string(body), "Action="+c.action) {
		return resp, err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	resp.Body = io.NopCloser(strings.NewReader(c.change(string(answer))))
	resp.StatusCode, resp.ContentLength = http.StatusOK, -1
	return resp, err
}

func TestExamineSaysThatAnAnswerCannotBeUnderstood(t *testing.T) {
	with := func(change func(string) string) func(*Config, *exchange) {
		return func(_ *Config, e *exchange) {
			e.ec2.Transport = &changedAnswers{http.DefaultTransport, "DescribeInstances", change}
		}
	}
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	const odd = instance.ID("i-1234567890abcdef0")
	got := examined(t, servertest.Options{}, with(func(answer string) string {
		return mangle(answer, odd, "instanceState", oddities["an unknown state"])
	}))
	wantFindings(t, got, "DescribeInstances: warning: "+string(odd)+" is described in a way that cannot be understood: its state is 96 (\"rebooting\")")
	got = examined(t, servertest.Options{}, with(func(string) string { return "<html><body><br></body></html>" }))
	wantFindings(t, got, "DescribeInstances: problem: check the endpoint: what answers there is not EC2",
		"StartInstances: problem: without a managed instance", "StopInstances: problem: without", "RebootInstances: problem: without", "TerminateInstances: problem: without")
	got = examined(t, servertest.Options{Fleet: &instancedv1.CreateInstancesRequest{}}, with(func(string) string { return described(nil, "again").body }))
	wantFindings(t, got, "DescribeInstances: problem: the pages of DescribeInstances do not end", "StartInstances: problem: without", "StopInstances: problem: without", "RebootInstances: problem: without", "TerminateInstances: problem: without")
}
