package server_test

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	oteltrace "go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// The trace and the span of a caller that samples, in W3C's form.
const (
	callersTrace = "0af7651916cd43dd8448eb211c80319c"
	callersSpan  = "b7ad6b7169203331"
	traceparent  = "00-" + callersTrace + "-" + callersSpan + "-01"
)

// traced returns a server whose spans are recorded if the caller samples.
func traced(t *testing.T, opts servertest.Options) (*servertest.Server, *tracetest.SpanRecorder) {
	t.Helper()
	recorder := tracetest.NewSpanRecorder()
	opts.Tracing = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder), sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.NeverSample())))
	return servertest.New(t, opts), recorder
}

// ended waits for spans with a name, and returns them.
func ended(t *testing.T, recorder *tracetest.SpanRecorder, name string, n int) (spans []sdktrace.ReadOnlySpan) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		spans = nil
		for _, s := range recorder.Ended() {
			if s.Name() == name {
				spans = append(spans, s)
			}
		}
		if len(spans) == n {
			return spans
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d spans %q have ended, want %d, among %d", len(spans), name, n, len(recorder.Ended()))
		}
	}
}

func value(s sdktrace.ReadOnlySpan, key attribute.Key) string {
	set := attribute.NewSet(s.Attributes()...)
	v, _ := set.Value(key)
	return v.String()
}

func TestACallIsTracedIfItsCallerSamples(t *testing.T) {
	srv, recorder := traced(t, servertest.Options{})
	for _, header := range []string{"", traceparent[:len(traceparent)-1] + "0", "00-not-a-trace-01", traceparent} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "request-id", "r-1")
		if header != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "traceparent", header)
		}
		if _, err := srv.Instances().StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: []string{"i-00000000000000fff"}}); err == nil {
			t.Fatal("an instance that does not exist was started")
		}
		if _, err := grpc_health_v1.NewHealthClient(srv.Conn()).Check(ctx, &grpc_health_v1.HealthCheckRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	span := ended(t, recorder, "instanced.v1.InstanceService/StartInstances", 1)[0]
	if span.Parent().TraceID().String() != callersTrace || span.Parent().SpanID().String() != callersSpan || span.SpanKind() != oteltrace.SpanKindServer {
		t.Errorf("the span is a %v under %v", span.SpanKind(), span.Parent())
	}
	for key, want := range map[attribute.Key]string{
		"rpc.system.name": "grpc", "rpc.method": "instanced.v1.InstanceService/StartInstances", "rpc.response.status_code": "NOT_FOUND",
		"instanced.request_id": "r-1", "instanced.principal": "anonymous",
	} {
		if got := value(span, key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	if span.Status().Code != otelcodes.Unset {
		t.Errorf("a mistake of the caller counts as the server's: %v", span.Status())
	}
	for _, s := range recorder.Ended() {
		if strings.HasPrefix(s.Name(), "grpc.health") {
			t.Errorf("a health check is traced: %s", s.Name())
		}
	}
}

func TestACallAtTheEC2EndpointIsTracedIfItsCallerSamples(t *testing.T) {
	srv, recorder := traced(t, servertest.Options{})
	for _, action := range []string{"StopInstances", "NoSuch" + strings.Repeat("Action", 100)} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.EC2(),
			strings.NewReader("Action="+action+"&Version=2016-11-15&InstanceId.1=i-00000000000000fff"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Traceparent", traceparent)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
	http.DefaultClient.CloseIdleConnections()
	span := ended(t, recorder, "EC2/StopInstances", 1)[0]
	if span.Parent().SpanID().String() != callersSpan || value(span, "error.type") != "AccessDenied" || value(span, "http.response.status_code") != "403" {
		t.Errorf("the span is under %v and has %v", span.Parent(), span.Attributes())
	}
	ended(t, recorder, "EC2", 1) // what callers make up does not become a name
}

func TestALaterChangeIsLinkedToTheCommandThatCausedIt(t *testing.T) {
	srv, recorder := traced(t, servertest.Options{Speed: 50, Fleet: &instancedv1.CreateInstancesRequest{Instances: []*instancedv1.InstanceSpec{{Count: 2}}}})
	described, err := srv.Instances().DescribeInstances(t.Context(), &instancedv1.DescribeInstancesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	sampled, other := described.GetInstances()[0].GetInstanceId(), described.GetInstances()[1].GetInstanceId()
	if _, err := srv.Instances().StartInstances(t.Context(), &instancedv1.StartInstancesRequest{InstanceIds: []string{other}}); err != nil {
		t.Fatal(err)
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", traceparent)
	if _, err := srv.Instances().StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: []string{sampled}}); err != nil {
		t.Fatal(err)
	}
	if _, err := srv.Instances().WaitInstances(t.Context(), &instancedv1.WaitInstancesRequest{
		InstanceIds: []string{sampled, other}, States: []instancedv1.InstanceStateName{instancedv1.InstanceStateName_INSTANCE_STATE_NAME_RUNNING},
	}); err != nil {
		t.Fatal(err)
	}
	command := ended(t, recorder, "command", 1)[0]
	change := ended(t, recorder, "state change", 1)[0]
	if links := change.Links(); len(links) != 1 || !links[0].SpanContext.Equal(command.SpanContext()) || change.SpanContext().TraceID() != command.SpanContext().TraceID() {
		t.Errorf("the change is linked to %v, want the command %v", links, command.SpanContext())
	}
	if value(change, "instanced.instance.id") != sampled || value(change, "instanced.state.from") != "pending" || value(change, "instanced.state.to") != "running" {
		t.Errorf("the change is %v", change.Attributes())
	}
}

func TestCallersOfOneWriteOfTheJournalAreLinkedToIt(t *testing.T) {
	const n = 64
	srv, recorder := traced(t, servertest.Options{Speed: 0.001, Fleet: &instancedv1.CreateInstancesRequest{Instances: []*instancedv1.InstanceSpec{{Count: n}}}})
	described, err := srv.Instances().DescribeInstances(t.Context(), &instancedv1.DescribeInstancesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var callers sync.WaitGroup
	for _, i := range described.GetInstances() {
		callers.Go(func() {
			ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", traceparent)
			if _, err := srv.Instances().StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: []string{i.GetInstanceId()}}); err != nil {
				t.Error(err)
			}
		})
	}
	callers.Wait()
	updates := ended(t, recorder, "journal.update", n)
	commits := make(map[oteltrace.SpanID]sdktrace.ReadOnlySpan)
	for _, s := range recorder.Ended() {
		if s.Name() == "journal.commit" {
			commits[s.SpanContext().SpanID()] = s
		}
	}
	linked := make(map[oteltrace.SpanID]int)
	for _, u := range updates {
		if links := u.Links(); len(links) != 1 || commits[links[0].SpanContext.SpanID()] == nil {
			t.Fatalf("an update has the links %v, want one to the write with it", links)
		}
		linked[u.Links()[0].SpanContext.SpanID()]++
	}
	for id, commit := range commits {
		if len(commit.Links()) != linked[id]-1 || value(commit, "instanced.journal.updates") == "0" {
			t.Errorf("a write of %d updates has %d links to others", linked[id], len(commit.Links()))
		}
	}
}

func TestCallersWithOneClientTokenAreLinkedToTheOneThatIsCarriedOut(t *testing.T) {
	srv, recorder := traced(t, servertest.Options{Fleet: &instancedv1.CreateInstancesRequest{
		Instances: []*instancedv1.InstanceSpec{{InstanceId: "i-0000000000000000a"}},
		Faults:    []*instancedv1.Fault{{Kind: instancedv1.FaultKind_FAULT_KIND_SLOW_CALL, Delay: durationpb.New(300 * time.Millisecond)}},
	}})
	const n = 3
	var callers sync.WaitGroup
	for range n {
		callers.Go(func() {
			ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", traceparent)
			if _, err := srv.Instances().StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: []string{"i-0000000000000000a"}, ClientToken: "token"}); err != nil {
				t.Error(err)
			}
		})
	}
	callers.Wait()
	command := ended(t, recorder, "command", 1)[0]
	for _, call := range ended(t, recorder, "instanced.v1.InstanceService/StartInstances", n) {
		carriedOut := call.SpanContext().SpanID() == command.Parent().SpanID()
		late := call.StartTime().After(command.EndTime()) // it gets the recorded answer
		if links := call.Links(); !carriedOut && !late && (len(links) != 1 || links[0].SpanContext.SpanID() != command.Parent().SpanID()) {
			t.Errorf("a call has the links %v, want one to the call that is carried out", links)
		}
	}
}
