package admission

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/series"
)

// DefaultMetricsPrincipals is how many principals have metrics of their own by default.
const DefaultMetricsPrincipals = 50

// metrics are the metrics of an endpoint's admission.
type metrics struct {
	refused            *series.Table[string, prometheus.Counter] // by reason
	refusedConnections prometheus.Counter
	closedConnections  prometheus.Counter
	principals         *series.Bound
	calls              *series.Table[principalCode, prometheus.Counter]
}

type principalCode struct{ principal, code string }

func newMetrics(cfg Config, a *Admission) *metrics {
	reg := promauto.With(cfg.Metrics)
	endpoint := prometheus.Labels{"endpoint": cfg.Endpoint}
	gauge := func(name, help string, labels prometheus.Labels, read func() int) {
		reg.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, func() float64 { return float64(read()) })
	}
	for kind, limit := range map[Kind]int{Unary: cfg.Limits.Requests, LongLived: cfg.Limits.Streams} {
		if limit == 0 {
			continue // the endpoint has no such calls
		}
		labels := prometheus.Labels{"endpoint": cfg.Endpoint, "kind": kind.String()}
		gauge("instanced_admission_calls_in_flight", "Calls that were admitted and have not ended, by kind.", labels, func() int { return a.InFlight(kind) })
		gauge("instanced_admission_max_calls", "Maximum concurrent calls, by kind.", labels, func() int { return limit })
	}
	gauge("instanced_admission_connections", "Open connections.", endpoint, a.connections)
	gauge("instanced_admission_max_connections", "Maximum open connections.", endpoint, func() int { return cfg.Limits.Connections })
	counter := func(name, help string) prometheus.Counter {
		return reg.NewCounter(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: endpoint})
	}
	refused := reg.NewCounterVec(prometheus.CounterOpts{
		Name: "instanced_admission_refused_calls_total", Help: "Calls that were refused before any work, by reason.", ConstLabels: endpoint,
	}, []string{"reason"})
	calls := reg.NewCounterVec(prometheus.CounterOpts{
		Name:        "instanced_calls_by_principal_total",
		Help:        "Calls that have ended, by principal and status code. Principals beyond --metrics-principals are _OTHER.",
		ConstLabels: endpoint,
	}, []string{"principal", "code"})
	m := &metrics{
		refused:            series.NewTable(func(reason string) prometheus.Counter { return refused.WithLabelValues(reason) }),
		refusedConnections: counter("instanced_admission_refused_connections_total", "Connections that were closed at once: there were too many, and none was idle."),
		closedConnections:  counter("instanced_admission_closed_connections_total", "Idle connections that were closed to make room for others."),
		principals:         series.NewBound(cfg.MetricsPrincipals),
		calls: series.NewTable(func(l principalCode) prometheus.Counter {
			return calls.WithLabelValues(l.principal, l.code)
		}),
	}
	for _, reason := range []string{instance.ReasonTooManyRequests, instance.ReasonTooManyStreams, instance.ReasonTooManyConnections, instance.ReasonDraining} {
		if reason != instance.ReasonTooManyStreams || cfg.Limits.Streams > 0 {
			m.refused.Get(reason)
		}
	}
	return m
}

// PrincipalLabel returns the value of the label principal: the principal, or [series.Other] if
// enough of them have metrics of their own.
func (a *Admission) PrincipalLabel(principal string) string {
	return a.metrics.principals.Value(principal)
}

// CountCall counts a call that has ended, admitted or not. The code must be one of few.
func (a *Admission) CountCall(principal, code string) {
	a.metrics.calls.Get(principalCode{a.PrincipalLabel(principal), code}).Inc()
}
