package ec2

import (
	"bytes"
	"cmp"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"go.uber.org/goleak"

	"github.com/instanced/instanced/internal/instance"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// call is one request that an endpoint got.
type call struct {
	action string
	ids    []instance.ID
	form   url.Values
	at     time.Time
}

// reply is what an endpoint answers.
type reply struct {
	status int
	body   string
}

// errLost is what the transport says when EC2's answer is lost.
var errLost = fmt.Errorf("read: %w", syscall.ECONNRESET)

// endpoint is an EC2 endpoint in the test's process: the SDK's requests are encoded,
// signed, and their answers decoded, as over a network. With latency it takes its time.
type endpoint struct {
	answer  func(context.Context, call) (reply, error)
	latency func(call) time.Duration

	mu    sync.Mutex
	calls []call
}

// Do makes the endpoint an HTTP client of the SDK.
func (e *endpoint) Do(req *http.Request) (*http.Response, error) {
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	r, err := e.serve(req.Context(), string(body))
	if err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: r.status,
		Header:     http.Header{"Content-Type": {"text/xml;charset=UTF-8"}},
		Body:       io.NopCloser(strings.NewReader(r.body)),
		Request:    req,
	}, nil
}

// ServeHTTP makes it a server.
func (e *endpoint) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, _ := io.ReadAll(req.Body)
	r, err := e.serve(req.Context(), string(body))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "text/xml;charset=UTF-8")
	w.WriteHeader(r.status)
	_, _ = io.WriteString(w, r.body)
}

func (e *endpoint) serve(ctx context.Context, body string) (reply, error) {
	form, err := url.ParseQuery(body)
	if err != nil {
		return reply{}, err
	}
	c := call{action: form.Get("Action"), form: form, at: time.Now()}
	for n := 1; form.Has(fmt.Sprintf("InstanceId.%d", n)); n++ {
		c.ids = append(c.ids, instance.ID(form.Get(fmt.Sprintf("InstanceId.%d", n))))
	}
	for n := 1; form.Has(fmt.Sprintf("Filter.%d.Name", n)); n++ {
		if form.Get(fmt.Sprintf("Filter.%d.Name", n)) == "instance-id" {
			for _, v := range filterValues(form, n) {
				c.ids = append(c.ids, instance.ID(v))
			}
		}
	}
	e.mu.Lock()
	e.calls = append(e.calls, c)
	e.mu.Unlock()
	if e.latency != nil {
		if !pause(ctx, e.latency(c)) {
			return reply{}, ctx.Err()
		}
	}
	return e.answer(ctx, c)
}

func filterValues(form url.Values, n int) (values []string) {
	for i := 1; form.Has(fmt.Sprintf("Filter.%d.Value.%d", n, i)); i++ {
		values = append(values, form.Get(fmt.Sprintf("Filter.%d.Value.%d", n, i)))
	}
	return values
}

// of returns the calls of an action so far.
func (e *endpoint) of(action instance.Verb) []call {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []call
	for _, c := range e.calls {
		if c.action == string(action) {
			list = append(list, c)
		}
	}
	return list
}

func document(format string, args ...any) string {
	return xml.Header + fmt.Sprintf(format, args...)
}

func escape(s string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(s))
	return b.String()
}

func refusal(status int, code, message string) reply {
	return reply{status, document("<Response><Errors><Error><Code>%s</Code><Message>%s</Message></Error></Errors><RequestID>r-1</RequestID></Response>", code, escape(message))}
}

func stateXML(element string, s instance.State) string {
	// EC2 uses the high byte for itself.
	return fmt.Sprintf("<%[1]s><code>%d</code><name>%s</name></%[1]s>", element, s.Code()|0x2300, s)
}

func changed(action string, changes []instance.StateChange) reply {
	var b strings.Builder
	for _, c := range changes {
		fmt.Fprintf(&b, "<item><instanceId>%s</instanceId>%s%s</item>", c.ID, stateXML("currentState", c.Current), stateXML("previousState", c.Previous))
	}
	return reply{200, document("<%[1]sResponse><requestId>r-1</requestId><instancesSet>%[2]s</instancesSet></%[1]sResponse>", action, b.String())}
}

func described(instances []*instance.Instance, next string) reply {
	var b strings.Builder
	for _, i := range instances {
		fmt.Fprintf(&b, "<item><reservationId>r-0</reservationId><ownerId>%s</ownerId><instancesSet><item><instanceId>%s</instanceId>%s<instanceType>%s</instanceType><reason>%s</reason>",
			i.AccountID, i.ID, stateXML("instanceState", i.State), i.Type, escape(i.StateTransitionReason))
		if i.StateReason != nil {
			fmt.Fprintf(&b, "<stateReason><code>%s</code><message>%s</message></stateReason>", escape(i.StateReason.Code), escape(i.StateReason.Message))
		}
		fmt.Fprintf(&b, "<launchTime>%s</launchTime><placement><availabilityZone>%s</availabilityZone><tenancy>%s</tenancy></placement>",
			i.LaunchTime.UTC().Format("2006-01-02T15:04:05.000Z"), i.AvailabilityZone, i.Tenancy)
		fmt.Fprintf(&b, "<amiLaunchIndex>%d</amiLaunchIndex><rootDeviceType>%s</rootDeviceType>", i.AMILaunchIndex, i.RootDeviceType)
		for element, text := range map[string]string{
			"imageId": i.ImageID, "privateDnsName": i.PrivateDNSName, "dnsName": i.PublicDNSName,
			"privateIpAddress": i.PrivateIPAddress, "ipAddress": i.PublicIPAddress, "instanceLifecycle": i.Lifecycle,
		} {
			if text != "" {
				fmt.Fprintf(&b, "<%[1]s>%[2]s</%[1]s>", element, text)
			}
		}
		b.WriteString("<tagSet>")
		for key, value := range i.Tags {
			fmt.Fprintf(&b, "<item><key>%s</key><value>%s</value></item>", escape(key), escape(value))
		}
		b.WriteString("</tagSet></item></instancesSet></item>")
	}
	if next != "" {
		next = "<nextToken>" + next + "</nextToken>"
	}
	return reply{200, document("<DescribeInstancesResponse><requestId>r-1</requestId><reservationSet>%s</reservationSet>%s</DescribeInstancesResponse>", b.String(), next)}
}

// connect returns a backend on an endpoint, closed when the test ends.
func connect(t testing.TB, e *endpoint, adjust ...func(*Config)) *Backend {
	t.Helper()
	cfg := Config{AWS: aws.Config{
		Region:       "us-east-1",
		Credentials:  credentials.NewStaticCredentialsProvider("AKID", "secret", ""),
		HTTPClient:   e,
		BaseEndpoint: new("http://ec2.test"),
	}}
	for _, a := range adjust {
		a(&cfg)
	}
	b := New(cfg)
	t.Cleanup(b.Close)
	return b
}

// id returns the n-th id of a test.
func id(n int) instance.ID { return instance.ID(fmt.Sprintf("i-0%016x", n)) }

func ids(from, to int) (list []instance.ID) {
	for n := from; n < to; n++ {
		list = append(list, id(n))
	}
	return list
}

// outcome is what Execute returned.
type outcome struct {
	result instance.Result
	err    error
}

// refusedAs returns the error of EC2's words, or of ours.
func (o outcome) refusedAs(t testing.TB) *instance.Error {
	t.Helper()
	e, ok := errors.AsType[*instance.Error](o.err)
	if !ok {
		t.Fatalf("error is %v, result %+v; want an instance.Error", o.err, o.result)
	}
	return e
}

// execute runs commands at once, each in a goroutine of its own, in their order, and
// returns their outcomes. Several need a bubble.
func execute(ctx context.Context, b *Backend, cmds ...instance.Command) []outcome {
	outcomes := make([]outcome, len(cmds))
	var all sync.WaitGroup
	for i, cmd := range cmds {
		all.Go(func() {
			result, err := b.Execute(ctx, cmd)
			outcomes[i] = outcome{result, err}
		})
		if len(cmds) > 1 {
			synctest.Wait()
		}
	}
	all.Wait()
	return outcomes
}

func start(list ...instance.ID) instance.Command {
	return instance.Command{Verb: instance.VerbStart, IDs: list}
}

func each(cmd instance.Command) instance.Command {
	cmd.PerInstance = true
	return cmd
}

// fleet answers like EC2 would for stopped instances that start, unless refuse says
// otherwise. Instances start once.
type fleet struct {
	refuse func(call) (reply, bool)
	types  map[instance.ID]string // t3.micro where there is none

	mu      sync.Mutex
	started map[instance.ID]time.Time
}

func (f *fleet) answer(_ context.Context, c call) (reply, error) {
	if f.refuse != nil {
		if r, bad := f.refuse(c); bad {
			return r, nil
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch c.action {
	case "DescribeInstances":
		var list []*instance.Instance
		for _, id := range c.ids {
			inst := &instance.Instance{ID: id, State: instance.StateStopped, Type: cmp.Or(f.types[id], "t3.micro"), AvailabilityZone: "us-east-1a", RootDeviceType: "ebs", Tenancy: "default"}
			if at, ok := f.started[id]; ok {
				inst.State, inst.LaunchTime = instance.StatePending, at
			}
			list = append(list, inst)
		}
		return described(list, ""), nil
	case "StartInstances":
		return changed(c.action, f.startLocked(c.ids)), nil
	}
	return refusal(400, "InvalidAction", "The action "+c.action+" is not valid for this web service."), nil
}

func (f *fleet) start(ids []instance.ID) []instance.StateChange {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.startLocked(ids)
}

func (f *fleet) startLocked(ids []instance.ID) (changes []instance.StateChange) {
	for _, id := range slices.Compact(slices.Sorted(slices.Values(ids))) {
		change := instance.StateChange{ID: id, Previous: instance.StateStopped, Current: instance.StatePending}
		if _, again := f.started[id]; again {
			change.Previous = instance.StatePending
		}
		if f.started == nil {
			f.started = make(map[instance.ID]time.Time)
		}
		f.started[id] = time.Now()
		changes = append(changes, change)
	}
	return changes
}
