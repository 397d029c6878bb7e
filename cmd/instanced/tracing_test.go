package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/cli"
)

// otlpReceiver is a collector that keeps the spans that it gets.
type otlpReceiver struct {
	collector.UnimplementedTraceServiceServer
	address string
	stop    func()

	mu       sync.Mutex
	spans    []*tracepb.Span
	services []string // the service.name of each export
}

func newOTLPReceiver(t *testing.T) *otlpReceiver {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	r := &otlpReceiver{address: lis.Addr().String(), stop: srv.Stop}
	collector.RegisterTraceServiceServer(srv, r)
	go func() { _ = srv.Serve(lis) }() // until it is stopped
	t.Cleanup(srv.Stop)
	return r
}

// Export keeps spans.
func (r *otlpReceiver) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rs := range req.GetResourceSpans() {
		r.services = append(r.services, textOf(rs.GetResource().GetAttributes(), "service.name"))
		for _, ss := range rs.GetScopeSpans() {
			r.spans = append(r.spans, ss.GetSpans()...)
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// environment has the service send its spans here, soon after they end.
func (r *otlpReceiver) environment(more ...string) []string {
	return append([]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + r.address, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "OTEL_BSP_SCHEDULE_DELAY=20",
	}, more...)
}

// trace returns the spans of a trace by name.
func (r *otlpReceiver) trace(id []byte) map[string][]*tracepb.Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	spans := make(map[string][]*tracepb.Span)
	for _, s := range r.spans {
		if string(s.GetTraceId()) == string(id) {
			spans[s.GetName()] = append(spans[s.GetName()], s)
		}
	}
	return spans
}

// textOf returns an attribute, "" if there is none.
func textOf(attributes []*commonpb.KeyValue, key string) string {
	for _, kv := range attributes {
		if kv.GetKey() != key {
			continue
		}
		switch v := kv.GetValue().GetValue().(type) {
		case *commonpb.AnyValue_StringValue:
			return v.StringValue
		case *commonpb.AnyValue_ArrayValue:
			var texts []string
			for _, e := range v.ArrayValue.GetValues() {
				texts = append(texts, e.GetStringValue())
			}
			return strings.Join(texts, ",")
		default:
			return fmt.Sprint(kv.GetValue().GetIntValue())
		}
	}
	return ""
}

func linksTo(s, to *tracepb.Span) bool {
	return slices.ContainsFunc(s.GetLinks(), func(l *tracepb.Span_Link) bool { return string(l.GetSpanId()) == string(to.GetSpanId()) })
}

// tracedCaller is a client whose calls are traced to a receiver.
func tracedCaller(t *testing.T, r *otlpReceiver, s *service) (*client.Client, *sdktrace.TracerProvider) {
	t.Helper()
	exporter, err := otlptracegrpc.New(t.Context(), otlptracegrpc.WithEndpoint(r.address), otlptracegrpc.WithInsecure())
	if err != nil {
		t.Fatal(err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
	t.Cleanup(func() { _ = provider.Shutdown(context.Background()) })
	c, err := client.Dial(s.address, client.Options{DialOptions: []grpc.DialOption{grpc.WithStatsHandler(otelgrpc.NewClientHandler(
		otelgrpc.WithTracerProvider(provider), otelgrpc.WithPropagators(propagation.TraceContext{}),
	))}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, provider
}

func TestOneTraceShowsAStartFromTheCallerToTheDisk(t *testing.T) {
	t.Parallel()
	_, endpoint := simulated(t, `
instances: [{instance_id: i-0000000000000000a}]
faults: [{kind: request-limit-exceeded, match: {verbs: [StartInstances]}, remaining: 1}]
`, "--sim-speed", "20")
	r := newOTLPReceiver(t)
	s := runServiceIn(t, r.environment("OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=test"),
		"--backend", "ec2", "--aws-region", "us-east-1", "--aws-endpoint-url", "http://"+endpoint, "--log-format", "json")
	c, provider := tracedCaller(t, r, s)
	const id = "i-0000000000000000a"
	ctx, root := provider.Tracer("test").Start(patient(t), "the caller's work")
	started, err := c.Start(ctx, &instancedv1.StartInstancesRequest{InstanceIds: []string{id}})
	if err != nil {
		t.Fatal(err)
	}
	root.End()
	if _, err := c.Wait(patient(t), &instancedv1.WaitInstancesRequest{
		InstanceIds: []string{id}, States: []instancedv1.InstanceStateName{stateRunning}, AfterCursor: started.GetCursor(),
	}); err != nil {
		t.Fatal(err)
	}
	trace := root.SpanContext().TraceID()
	method := "instanced.v1.InstanceService/StartInstances"
	var spans map[string][]*tracepb.Span
	parent := func(child, parent string) bool {
		return slices.ContainsFunc(spans[child], func(c *tracepb.Span) bool {
			return slices.ContainsFunc(spans[parent], func(p *tracepb.Span) bool { return string(c.GetParentSpanId()) == string(p.GetSpanId()) })
		})
	}
	eventually(t, "the trace is whole", func() bool {
		spans = r.trace(trace[:])
		return parent(method, "the caller's work") && parent(method, method) && parent("command", method) && parent("ec2.queue", "command") &&
			parent("ec2.batch", "command") && parent("EC2/StartInstances", "ec2.batch") && parent("journal.update", "command") &&
			parent("journal.commit", "journal.update") && parent("state change", "command")
	})
	command, batch, commit := spans["command"][0], spans["ec2.batch"][0], spans["journal.commit"][0]
	if !linksTo(spans["ec2.queue"][0], batch) {
		t.Error("the command's time in the queue is not linked to its batch")
	}
	if !linksTo(spans["journal.update"][0], commit) {
		t.Error("the update of the journal is not linked to the write")
	}
	if change := spans["state change"][0]; !linksTo(change, command) || textOf(change.GetAttributes(), "instanced.state.to") != "running" {
		t.Errorf("the later change to running is not linked to the command: %v", change)
	}
	answered := slices.IndexFunc(spans["EC2/StartInstances"], func(s *tracepb.Span) bool { return textOf(s.GetAttributes(), "error.type") == "" })
	if answered < 0 {
		t.Fatalf("no attempt was answered: %v", spans["EC2/StartInstances"])
	}
	attempt := spans["EC2/StartInstances"][answered].GetAttributes()
	for key, want := range map[string]string{
		"rpc.system.name": "aws-api", "rpc.method": "EC2/StartInstances", "cloud.region": "us-east-1",
		"instanced.instance.ids": id, "instanced.instance.count": "1", "http.response.status_code": "200",
	} {
		if got := textOf(attempt, key); got != want {
			t.Errorf("the attempt has %s %q; want %q", key, got, want)
		}
	}
	if textOf(attempt, "aws.request_id") == "" {
		t.Error("the attempt has no request id of EC2")
	}
	if !slices.ContainsFunc(spans["EC2/StartInstances"], func(s *tracepb.Span) bool {
		return textOf(s.GetAttributes(), "error.type") == "RequestLimitExceeded" && s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR
	}) {
		t.Errorf("no attempt has EC2's error: %v", spans["EC2/StartInstances"])
	}
	if !slices.Contains(r.services, "instanced") {
		t.Errorf("the spans are of the services %q", r.services)
	}

	for _, message := range []string{"call", "state change"} {
		ids := make(map[string]bool)
		for line := range strings.Lines(s.log()) {
			var l struct {
				Msg     string
				Method  string
				TraceID string `json:"trace_id"`
				SpanID  string `json:"span_id"`
			}
			if json.Unmarshal([]byte(line), &l) == nil && l.Msg == message && l.TraceID == trace.String() && len(l.SpanID) == 16 {
				ids[l.SpanID] = true
			}
		}
		want := []*tracepb.Span{command, spans["state change"][0]}
		if message == "call" {
			want = spans[method][:0:0]
			for _, s := range spans[method] {
				if s.GetKind() == tracepb.Span_SPAN_KIND_SERVER {
					want = append(want, s)
				}
			}
		}
		for _, span := range want {
			if !ids[hex.EncodeToString(span.GetSpanId())] {
				t.Errorf("no line %q has the ids of the span %s:\n%s", message, span.GetName(), s.log())
			}
		}
	}
}

// TestACollectorThatDoesNotAnswerDelaysNothing has a collector that accepts connections and
// never answers, one that refuses them, and one that ends before the service does.
func TestACollectorThatDoesNotAnswerDelaysNothing(t *testing.T) {
	t.Parallel()
	refusing, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = refusing.Close()
	hanging, err := net.Listen("tcp", "127.0.0.1:0") // accepted by the kernel, and never read from
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hanging.Close() })
	for name, address := range map[string]string{"refuses": refusing.Addr().String(), "hangs": hanging.Addr().String()} {
		for _, protocol := range []string{otlpGRPC, otlpHTTP} {
			t.Run(name+" "+protocol, func(t *testing.T) {
				t.Parallel()
				s := runServiceIn(t, []string{
					"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + address, "OTEL_EXPORTER_OTLP_PROTOCOL=" + protocol,
					"OTEL_BSP_SCHEDULE_DELAY=20", "OTEL_BSP_MAX_QUEUE_SIZE=64", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE=16", "OTEL_EXPORTER_OTLP_TIMEOUT=300", "OTEL_BSP_EXPORT_TIMEOUT=1000",
				})
				// Far more calls than spans fit into the queue.
				api, ctx := s.instances(), patient(t)
				for range 300 {
					if _, err := api.GetServerInfo(ctx, &instancedv1.GetServerInfoRequest{}); err != nil {
						t.Fatal(err)
					}
				}
				eventually(t, "the log says that spans are lost", func() bool { return strings.Contains(s.log(), "traces cannot be exported") })
				s.stopsInTime()
				if n := strings.Count(s.log(), "traces cannot be exported"); n != 1 {
					t.Errorf("the log says %d times that traces cannot be exported:\n%s", n, s.log())
				}
			})
		}
	}
	t.Run("absent at shutdown", func(t *testing.T) {
		t.Parallel()
		r := newOTLPReceiver(t)
		s := runServiceIn(t, []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + r.address, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"})
		if _, err := s.instances().GetServerInfo(patient(t), &instancedv1.GetServerInfoRequest{}); err != nil {
			t.Fatal(err)
		}
		r.stop()
		s.stopsInTime()
		if !strings.Contains(s.log(), "the last spans could not be exported") {
			t.Errorf("the log does not say that the last spans are lost:\n%s", s.log())
		}
	})
}

// stopsInTime ends the service by a signal, and fails the test unless it ends soon and well.
func (s *service) stopsInTime() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	select {
	case <-s.ended:
	case <-time.After(storyTimeout / 2): // no drain here takes any time, and the flush at most 2 s
		s.t.Fatal("the service does not end")
	}
	if status := s.cmd.ProcessState.ExitCode(); status != cli.ExitOK {
		s.t.Errorf("the service ended with %d:\n%s", status, s.log())
	}
}

func TestTracesAreExportedOverHTTPByDefault(t *testing.T) {
	t.Parallel()
	r := &otlpReceiver{}
	paths := make(chan string, 1000)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		var export collector.ExportTraceServiceRequest
		if err := proto.Unmarshal(body, &export); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		_, _ = r.Export(req.Context(), &export) // it never fails
		paths <- req.URL.Path + " of " + req.Header.Get("Tenant")
	}))
	t.Cleanup(srv.Close)
	s := runServiceIn(t, []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT=" + srv.URL, "OTEL_EXPORTER_OTLP_HEADERS=tenant=blue", "OTEL_SERVICE_NAME=instanced-blue", "OTEL_BSP_SCHEDULE_DELAY=20",
	})
	if _, err := s.instances().GetServerInfo(patient(t), &instancedv1.GetServerInfoRequest{}); err != nil {
		t.Fatal(err)
	}
	if got := <-paths; got != "/v1/traces of blue" {
		t.Errorf("spans are sent to %s", got)
	}
	s.stopsInTime()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.spans) != 1 || r.spans[0].GetName() != "instanced.v1.InstanceService/GetServerInfo" || r.services[0] != "instanced-blue" {
		t.Errorf("the spans of %v are %v", r.services, r.spans)
	}
}

func TestTracesAreExportedOnlyIfTheEnvironmentAsksForThem(t *testing.T) {
	t.Parallel()
	r := newOTLPReceiver(t)
	for _, off := range []string{"OTEL_SDK_DISABLED=true", "OTEL_TRACES_EXPORTER=none", "OTEL_TRACES_SAMPLER=always_off"} {
		s := runServiceIn(t, r.environment(off))
		if _, err := s.instances().GetServerInfo(patient(t), &instancedv1.GetServerInfoRequest{}); err != nil {
			t.Fatal(err)
		}
		s.stopsInTime() // which exports what there is
		if r.mu.Lock(); len(r.spans) > 0 {
			t.Errorf("with %s there are spans: %v", off, r.spans)
		}
		r.mu.Unlock()
	}
}

func TestAWrongVariableOfOpenTelemetryIsAnErrorAtTheStart(t *testing.T) {
	t.Parallel()
	for _, wrong := range []struct{ variable, says string }{
		{"OTEL_SDK_DISABLED=yes", "want true or false"},
		{"OTEL_TRACES_EXPORTER=zipkin", "want otlp or none"},
		{"OTEL_EXPORTER_OTLP_PROTOCOL=http/json", "want grpc or http/protobuf"},
		{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=localhost:4317", "want a URL such as http://127.0.0.1:4318"},
		{"OTEL_EXPORTER_OTLP_COMPRESSION=zip", "want gzip or none"},
		{"OTEL_EXPORTER_OTLP_TIMEOUT=10s", "want a whole number above 0"},
		{"OTEL_EXPORTER_OTLP_HEADERS=secret", "missing '="},
		{"OTEL_EXPORTER_OTLP_CERTIFICATE=/does/not/exist", "no such file"},
		{"OTEL_TRACES_SAMPLER=sometimes", "unsupported sampler: sometimes"},
		{"OTEL_BSP_MAX_QUEUE_SIZE=0", "want a whole number above 0"},
		{"OTEL_RESOURCE_ATTRIBUTES=nothing", "OTEL_RESOURCE_ATTRIBUTES"},
	} {
		t.Run(wrong.variable, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(patient(t), "instanced", "serve", "--listen", "127.0.0.1:0", "--data-dir", t.TempDir())
			cmd.Env = append(awsEnvironment(), "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318", wrong.variable)
			said, _ := cmd.CombinedOutput() // the status says how it ended
			name, _, _ := strings.Cut(wrong.variable, "=")
			if cmd.ProcessState.ExitCode() != cli.ExitUsage || !strings.Contains(string(said), wrong.says) {
				t.Errorf("it ends with %d and says:\n%s", cmd.ProcessState.ExitCode(), said)
			}
			if strings.Contains(name, "HEADERS") && strings.Contains(string(said), "secret") {
				t.Errorf("it repeats the header:\n%s", said)
			}
		})
	}
}
