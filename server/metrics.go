package server

import (
	"context"
	"errors"
	"path"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.opentelemetry.io/otel/trace"
	rpccode "google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/admission"
	"github.com/instanced/instanced/internal/series"
)

// maxReasons bounds the reasons of the metrics: EC2 may introduce new codes, and the simulator's
// faults may have any.
const maxReasons = 100

// metrics are the metrics of calls. The durations are named by OpenTelemetry's semantic
// conventions for RPC, as Prometheus writes them.
type metrics struct {
	admission *admission.Admission
	durations *prometheus.HistogramVec
	inFlight  *prometheus.GaugeVec
	failures  *prometheus.CounterVec
	reasons   *series.Bound
	// methods are the registered methods by full name. It is not changed once the server
	// serves.
	methods map[string]*methodMetrics
	unknown *methodMetrics
}

// methodMetrics are the metrics of the calls of one method.
type methodMetrics struct {
	metrics *metrics
	// counted is whether the calls count for their principals: the calls of probes and tools
	// do not.
	counted   bool
	inFlight  prometheus.Gauge
	durations *series.Table[codes.Code, prometheus.Observer]
	failures  *series.Table[string, prometheus.Counter] // by reason
}

func newMetrics(reg prometheus.Registerer, admission *admission.Admission) *metrics {
	factory := promauto.With(reg)
	m := &metrics{
		admission: admission,
		durations: factory.NewHistogramVec(prometheus.HistogramOpts{
			Name:        "rpc_server_call_duration_seconds",
			Help:        "Duration of calls, by method and status code. Methods that do not exist are _OTHER.",
			ConstLabels: prometheus.Labels{"rpc_system_name": "grpc"},
			Buckets:     series.CallBuckets(),
		}, []string{"rpc_method", "rpc_response_status_code"}),
		inFlight: factory.NewGaugeVec(prometheus.GaugeOpts{
			Name: "instanced_server_calls_in_flight", Help: "Calls whose request has arrived and that have not ended, by method.",
		}, []string{"rpc_method"}),
		failures: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "instanced_server_failed_calls_total", Help: "Calls that have failed, by method and reason.",
		}, []string{"rpc_method", "reason"}),
		reasons: series.NewBound(maxReasons),
		methods: make(map[string]*methodMetrics),
	}
	m.unknown = m.method(series.Other)
	return m
}

// register adds a method by its full name.
func (m *metrics) register(method string) {
	name := strings.TrimPrefix(method, "/")
	of := m.method(name)
	of.counted = worthLogging(path.Dir(name))
	m.methods[method] = of
	if path.Dir(name) == instancedv1.InstanceService_ServiceDesc.ServiceName {
		of.durations.Get(codes.OK)
	}
}

func (m *metrics) method(label string) *methodMetrics {
	return &methodMetrics{
		metrics:  m,
		inFlight: m.inFlight.WithLabelValues(label),
		durations: series.NewTable(func(c codes.Code) prometheus.Observer {
			return m.durations.WithLabelValues(label, codeName(c))
		}),
		failures: series.NewTable(func(reason string) prometheus.Counter { return m.failures.WithLabelValues(label, reason) }),
	}
}

// codeName returns the name of a status code, such as NOT_FOUND.
func codeName(c codes.Code) string {
	if c > codes.Unauthenticated {
		c = codes.Unknown
	}
	return rpccode.Code(c).String()
}

// unknownMethod counts a call that the transport rejects, since its method does not exist.
func (m *metrics) unknownMethod() {
	m.unknown.durations.Get(codes.Unimplemented).Observe(0)
}

// begin counts a call as in flight. Methods that are not registered have no calls.
func (m *metrics) begin(method string) *methodMetrics {
	of := m.methods[method]
	of.inFlight.Inc()
	return of
}

// end counts a call as ended with an error as its caller sees it. The span is nil if the call is
// not traced; the trace of a sampled one is the exemplar of the duration.
func (m *methodMetrics) end(ctx context.Context, span trace.Span, took time.Duration, err error) {
	m.inFlight.Dec()
	code := status.Code(err)
	duration := m.durations.Get(code)
	if span != nil && span.SpanContext().IsSampled() {
		duration.(prometheus.ExemplarObserver).ObserveWithExemplar(took.Seconds(), prometheus.Labels{"trace_id": span.SpanContext().TraceID().String()})
	} else {
		duration.Observe(took.Seconds())
	}
	if m.counted {
		m.metrics.admission.CountCall(callerOf(ctx).Principal, codeName(code))
	}
	if err == nil {
		return
	}
	reason := codeName(code)
	if e, ok := errors.AsType[*statusError](err); ok {
		if e.success {
			return
		}
		reason = e.reason
	}
	m.failures.Get(m.metrics.reasons.Value(reason)).Inc()
}
