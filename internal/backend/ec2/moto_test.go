package ec2

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awsec2 "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	sqstypes "github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/instanced/instanced/internal/instance"
)

// moto is an AWS that somebody else wrote. It says whether both of us read EC2's and SQS's
// protocols alike, not how EC2 behaves: it is never between two states, and revives what
// is terminated.
type moto struct {
	*testing.T
	aws aws.Config
	api *awsec2.Client
}

var motoRunsOn = regexp.MustCompile(`Running on (http://127\.0\.0\.1:\d+)`)

// runMoto runs moto's server on a port of its choice until the test ends.
func runMoto(t *testing.T) *moto {
	t.Helper()
	if exec.Command("python3", "-c", "import moto.server").Run() != nil {
		fmt.Fprintln(os.Stderr, "\n*** SKIPPED: moto is not installed (pip install 'moto[ec2,events,sqs,server]'), so the backend is not tried on it")
		t.Skip("moto is not installed")
	}
	ctx, cancel := context.WithCancel(context.Background())
	server := exec.CommandContext(ctx, "python3", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0")
	said, err := server.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	found, ended := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(said); lines.Scan(); {
			if at := motoRunsOn.FindStringSubmatch(lines.Text()); at != nil {
				select {
				case found <- at[1]:
				default: // it was said before
				}
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		_ = server.Wait() // it was killed
	})
	var endpoint string
	select {
	case endpoint = <-found:
	case <-ended:
		t.Fatal("moto does not come up")
	case <-time.After(time.Minute):
		t.Fatal("moto does not come up within a minute")
	}
	client := awshttp.NewBuildableClient()
	t.Cleanup(func() { client.GetTransport().CloseIdleConnections() })
	m := &moto{T: t, aws: aws.Config{
		Region:       "us-east-1",
		Credentials:  credentials.NewStaticCredentialsProvider("AKIAINSTANCED", "secret", ""),
		BaseEndpoint: &endpoint,
		HTTPClient:   client,
	}}
	m.api = awsec2.NewFromConfig(m.aws)
	return m
}

// launch returns new instances, which run at once. Each has a reservation of its own: moto
// never divides one between pages.
func (m *moto) launch(n int, tags ...types.Tag) (list []instance.ID) {
	m.Helper()
	in := &awsec2.RunInstancesInput{ImageId: new("ami-12c6146b"), InstanceType: types.InstanceTypeT3Micro, MinCount: new(int32(1)), MaxCount: new(int32(1))}
	if len(tags) > 0 {
		in.TagSpecifications = []types.TagSpecification{{ResourceType: types.ResourceTypeInstance, Tags: tags}}
	}
	for range n {
		out, err := m.api.RunInstances(m.Context(), in)
		if err != nil {
			m.Fatal(err)
		}
		list = append(list, instance.ID(*out.Instances[0].InstanceId))
	}
	return list
}

func (m *moto) backend(adjust func(*Config)) *Backend {
	cfg := Config{AWS: m.aws}
	if adjust != nil {
		adjust(&cfg)
	}
	b := New(cfg)
	m.Cleanup(b.Close)
	return b
}

// post makes a call of the JSON protocol, for the service that the SDK is not here for.
func (m *moto) post(target string, in any) {
	m.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		m.Fatal(err)
	}
	req, err := http.NewRequestWithContext(m.Context(), http.MethodPost, *m.aws.BaseEndpoint, strings.NewReader(string(body)))
	if err != nil {
		m.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-amz-json-1.1")
	req.Header.Set("X-Amz-Target", target)
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKIAINSTANCED/20260101/us-east-1/events/aws4_request, SignedHeaders=host, Signature=00")
	resp, err := m.aws.HTTPClient.Do(req)
	if err != nil {
		m.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var out struct{ FailedEntryCount int }
	if err := json.NewDecoder(resp.Body).Decode(&out); resp.StatusCode != http.StatusOK || out.FailedEntryCount > 0 {
		m.Fatalf("%s: status %d, %d entries failed, %v", target, resp.StatusCode, out.FailedEntryCount, err)
	}
}

// described returns what a backend says of instances, by id, in pages of a size.
func describedBy(t *testing.T, b *Backend, query instance.DescribeQuery) (found map[instance.ID]*instance.Instance, pages int) {
	t.Helper()
	found = make(map[instance.ID]*instance.Instance)
	for pages = 1; ; pages++ {
		page, err := b.Describe(t.Context(), query)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range page.Instances {
			if found[i.ID] != nil {
				t.Errorf("%s is described twice", i.ID)
			}
			found[i.ID] = i
		}
		if query.PageToken = page.NextPageToken; query.PageToken == "" {
			return found, pages
		}
	}
}

func TestMotoAndTheBackendReadEC2sProtocolAlike(t *testing.T) {
	m := runMoto(t)
	ours := m.launch(8, types.Tag{Key: new("fleet"), Value: new("build")}, types.Tag{Key: new("Name"), Value: new("<ours> & others")})
	theirs := m.launch(4)
	const missing = instance.ID("i-0fffffffffffffff0")
	b := m.backend(nil)
	states := func(ids ...instance.ID) (list []instance.State) {
		found, _ := describedBy(t, b, instance.DescribeQuery{IDs: ids})
		for _, id := range ids {
			list = append(list, found[id].State)
		}
		return list
	}
	carryOut := func(verb instance.Verb, from, to, end instance.State, ids ...instance.ID) {
		t.Helper()
		result, err := b.Execute(t.Context(), instance.Command{Verb: verb, IDs: ids})
		if err != nil || len(result.Changes) != len(ids) {
			t.Fatalf("%s: %+v, %v", verb, result, err)
		}
		for i, c := range result.Changes {
			if c.ID != ids[i] || c.Previous != from || c.Current != to {
				t.Errorf("%s of %s: %+v", verb, ids[i], c)
			}
		}
		for i, s := range states(ids...) {
			if s != end {
				t.Errorf("%s is %v after %s", ids[i], s, verb)
			}
		}
	}

	t.Run("Describe returns everything once, page by page", func(t *testing.T) {
		found, pages := describedBy(t, b, instance.DescribeQuery{All: true, PageSize: 5})
		if len(found) != 12 || pages != 3 {
			t.Errorf("%d instances on %d pages", len(found), pages)
		}
		i := found[ours[0]]
		if i == nil || i.State != instance.StateRunning || i.Type != "t3.micro" || i.AccountID != "123456789012" || i.Region != "us-east-1" ||
			!strings.HasPrefix(i.AvailabilityZone, "us-east-1") || time.Since(i.LaunchTime) > time.Hour || i.PrivateIPAddress == "" || i.ImageID != "ami-12c6146b" || i.PrivateDNSName == "" ||
			i.RootDeviceType != "ebs" || i.Tenancy != "default" || i.Tags["Name"] != "<ours> & others" {
			t.Errorf("described as %+v", i)
		}
	})
	t.Run("Describe by ids leaves missing ones out", func(t *testing.T) {
		found, _ := describedBy(t, b, instance.DescribeQuery{IDs: []instance.ID{ours[0], missing, theirs[0]}})
		if len(found) != 2 || found[ours[0]] == nil || found[theirs[0]] == nil {
			t.Errorf("%d instances", len(found))
		}
	})
	t.Run("what is not managed does not exist", func(t *testing.T) {
		for _, filter := range []map[string][]string{{"fleet": {"build", "test"}}, {"fleet": nil, "Name": {"<ours> & others"}}} {
			managed := m.backend(func(c *Config) { c.Manage = filter })
			if found, _ := describedBy(t, managed, instance.DescribeQuery{All: true}); len(found) != len(ours) || found[theirs[0]] != nil {
				t.Errorf("%d instances are managed by %v", len(found), filter)
			}
			o := execute(t.Context(), managed, instance.Command{Verb: instance.VerbStop, IDs: []instance.ID{ours[0], theirs[0]}})[0]
			if e := o.refusedAs(t); e.Kind != instance.KindNotFound || !slices.Equal(e.InstanceIDs, theirs[:1]) {
				t.Errorf("refused with %+v", e)
			}
		}
	})
	t.Run("the verbs", func(t *testing.T) {
		carryOut(instance.VerbReboot, instance.StateRunning, instance.StateRunning, instance.StateRunning, ours[:2]...)
		carryOut(instance.VerbStop, instance.StateRunning, instance.StateStopping, instance.StateStopped, ours...)
		carryOut(instance.VerbStart, instance.StateStopped, instance.StatePending, instance.StateRunning, ours[:6]...)
		carryOut(instance.VerbTerminate, instance.StateRunning, instance.StateShuttingDown, instance.StateTerminated, theirs[3])
	})
	t.Run("callers at once share calls", func(t *testing.T) {
		outcomes := make([]outcome, 6)
		var all sync.WaitGroup
		for n := range outcomes {
			all.Go(func() {
				result, err := b.Execute(t.Context(), instance.Command{Verb: instance.VerbStop, IDs: ours[n : n+1]})
				outcomes[n] = outcome{result, err}
			})
		}
		all.Wait()
		for n, o := range outcomes {
			if o.err != nil || len(o.result.Changes) != 1 || o.result.Changes[0].ID != ours[n] || o.result.Changes[0].Previous != instance.StateRunning {
				t.Errorf("caller %d got %+v, %v", n, o.result, o.err)
			}
		}
	})
	t.Run("a dry run", func(t *testing.T) {
		for _, verb := range []instance.Verb{instance.VerbStart, instance.VerbStop, instance.VerbReboot, instance.VerbTerminate} {
			o := execute(t.Context(), b, instance.Command{Verb: verb, IDs: theirs[:1], DryRun: true})[0]
			if e := o.refusedAs(t); e.Kind != instance.KindDryRun || e.Code != instance.CodeDryRun {
				t.Errorf("%s: %+v", verb, e)
			}
		}
		if s := states(theirs[0])[0]; s != instance.StateRunning {
			t.Errorf("it is %v afterwards", s)
		}
	})
	t.Run("a missing instance", func(t *testing.T) {
		cmd := instance.Command{Verb: instance.VerbStop, IDs: []instance.ID{theirs[0], missing}}
		o := execute(t.Context(), b, cmd)[0]
		if e := o.refusedAs(t); e.Kind != instance.KindNotFound || e.Code != instance.CodeNotFound || !slices.Equal(e.InstanceIDs, []instance.ID{missing}) {
			t.Errorf("a whole call is refused with %+v", e)
		}
		if s := states(theirs[0])[0]; s != instance.StateRunning {
			t.Errorf("the other one is %v", s)
		}
		o = execute(t.Context(), b, each(cmd))[0]
		if o.err != nil || len(o.result.Changes) != 1 || len(o.result.Failures) != 1 || o.result.Failures[0].Err.Kind != instance.KindNotFound {
			t.Errorf("a per-instance call ends with %+v, %v", o.result, o.err)
		}
	})
	t.Run("state changes from EventBridge through SQS", func(t *testing.T) { m.notices(t, ours) })
}

// notices feeds state changes to a queue as docs/aws.md sets it up. moto makes none itself.
func (m *moto) notices(t *testing.T, ids []instance.ID) {
	ctx := t.Context()
	api := sqs.NewFromConfig(m.aws)
	made, err := api.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: new("changes")})
	if err != nil {
		t.Fatal(err)
	}
	counts := func() (waiting, hidden string) {
		out, err := api.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: made.QueueUrl, AttributeNames: []sqstypes.QueueAttributeName{"All"}})
		if err != nil {
			t.Fatal(err)
		}
		return out.Attributes["ApproximateNumberOfMessages"], out.Attributes["ApproximateNumberOfMessagesNotVisible"]
	}
	m.post("AWSEvents.PutRule", map[string]string{
		"Name": "instanced", "EventPattern": `{"source":["aws.ec2"],"detail-type":["EC2 Instance State-change Notification"]}`,
	})
	m.post("AWSEvents.PutTargets", map[string]any{
		"Rule": "instanced", "Targets": []map[string]string{{"Id": "instanced", "Arn": "arn:aws:sqs:us-east-1:123456789012:changes"}},
	})
	if _, err := api.SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: made.QueueUrl, MessageBody: new("hello")}); err != nil {
		t.Fatal(err)
	}
	var entries []map[string]string
	for _, id := range ids {
		detail := fmt.Sprintf(`{"instance-id":%q,"state":"running"}`, id)
		entries = append(entries, map[string]string{"Source": "aws.ec2", "DetailType": "EC2 Instance State-change Notification", "Detail": detail})
	}
	m.post("AWSEvents.PutEvents", map[string]any{"Entries": entries})

	b := m.backend(func(c *Config) { c.QueueURL = *made.QueueUrl })
	listening, stop := context.WithCancel(ctx)
	defer stop()
	left := slices.Clone(ids)
	for n, err := range b.Notices(listening) {
		if err != nil {
			t.Fatal(err)
		}
		if n.State != instance.StateRunning || n.Source != instance.SourceEventBridge || time.Since(n.OccurredAt) > time.Hour || !slices.Contains(left, n.ID) {
			t.Errorf("notice is %+v", n)
		}
		left = slices.DeleteFunc(left, func(id instance.ID) bool { return id == n.ID })
		n.Ack()
		if len(left) == 0 {
			break
		}
	}
	// Ending the notices deletes what was acknowledged; what cannot be read is hidden, and
	// SQS counts how often.
	if waiting, hidden := counts(); waiting != "0" || hidden != "1" {
		t.Errorf("%s messages wait and %s are hidden, want 0 and the one that cannot be read", waiting, hidden)
	}
}
