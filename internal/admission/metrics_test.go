package admission_test

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/instanced/instanced/internal/admission"
)

func TestTheFirstPrincipalsHaveMetricsOfTheirOwn(t *testing.T) {
	registry := prometheus.NewRegistry()
	a := admission.New(admission.Config{
		Logger: slog.New(slog.DiscardHandler), Metrics: registry, Endpoint: "grpc", MetricsPrincipals: 2,
	})
	for n := range 10_000 {
		a.CountCall(fmt.Sprintf("principal-%d", n), "OK")
	}
	a.CountCall("principal-1", "NOT_FOUND")
	a.CountCall("principal-9999", "NOT_FOUND")
	if err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP instanced_calls_by_principal_total Calls that have ended, by principal and status code. Principals beyond --metrics-principals are _OTHER.
# TYPE instanced_calls_by_principal_total counter
instanced_calls_by_principal_total{code="NOT_FOUND",endpoint="grpc",principal="_OTHER"} 1
instanced_calls_by_principal_total{code="NOT_FOUND",endpoint="grpc",principal="principal-1"} 1
instanced_calls_by_principal_total{code="OK",endpoint="grpc",principal="_OTHER"} 9998
instanced_calls_by_principal_total{code="OK",endpoint="grpc",principal="principal-0"} 1
instanced_calls_by_principal_total{code="OK",endpoint="grpc",principal="principal-1"} 1
`), "instanced_calls_by_principal_total"); err != nil {
		t.Error(err)
	}
	if allocs := testing.AllocsPerRun(100, func() {
		a.CountCall("principal-1", "OK")
		a.CountCall("principal-9999", "OK")
	}); allocs != 0 {
		t.Errorf("counting a call allocates %v times", allocs)
	}
}

func TestRefusalsAreCountedByReason(t *testing.T) {
	registry := prometheus.NewRegistry()
	s := &server{t: t, Admission: admission.New(admission.Config{
		Logger: slog.New(slog.DiscardHandler), Metrics: registry, Endpoint: "grpc",
		Limits: admission.Limits{Requests: 2, Streams: 2, Connections: 2},
	})}
	first := s.connect("first")
	ticket, err := first.Admit("a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Admit("a"); err == nil {
		t.Fatal("a caller has all places")
	}
	if err := ticket.Promote(); err != nil {
		t.Fatal(err)
	}
	second, err := first.Admit("a")
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Promote(); err == nil {
		t.Fatal("a caller has all places of streams")
	}
	s.connect("second")
	s.connect("third")
	if _, err := s.Connect(nil); err != nil {
		t.Fatal(err)
	}
	s.Drain()
	if _, err := first.Admit("b"); err == nil {
		t.Fatal("a call is admitted while the server drains")
	}
	if err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP instanced_admission_calls_in_flight Calls that were admitted and have not ended, by kind.
# TYPE instanced_admission_calls_in_flight gauge
instanced_admission_calls_in_flight{endpoint="grpc",kind="long_lived"} 1
instanced_admission_calls_in_flight{endpoint="grpc",kind="unary"} 1
# HELP instanced_admission_closed_connections_total Idle connections that were closed to make room for others.
# TYPE instanced_admission_closed_connections_total counter
instanced_admission_closed_connections_total{endpoint="grpc"} 2
# HELP instanced_admission_connections Open connections.
# TYPE instanced_admission_connections gauge
instanced_admission_connections{endpoint="grpc"} 2
# HELP instanced_admission_refused_calls_total Calls that were refused before any work, by reason.
# TYPE instanced_admission_refused_calls_total counter
instanced_admission_refused_calls_total{endpoint="grpc",reason="DRAINING"} 1
instanced_admission_refused_calls_total{endpoint="grpc",reason="TOO_MANY_CONNECTIONS"} 0
instanced_admission_refused_calls_total{endpoint="grpc",reason="TOO_MANY_REQUESTS"} 1
instanced_admission_refused_calls_total{endpoint="grpc",reason="TOO_MANY_STREAMS"} 1
`), "instanced_admission_calls_in_flight", "instanced_admission_closed_connections_total", "instanced_admission_connections", "instanced_admission_refused_calls_total"); err != nil {
		t.Error(err)
	}
}
