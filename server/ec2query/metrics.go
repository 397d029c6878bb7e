package ec2query

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/instanced/instanced/internal/series"
)

// maxCodes bounds the codes of the metrics: EC2 may introduce new ones, and the simulator's
// faults may have any.
const maxCodes = 100

// metrics are the metrics of the endpoint.
type metrics struct {
	durations *series.Table[actionCode, prometheus.Observer]
	codes     *series.Bound
}

type actionCode struct{ action, code string }

func newMetrics(reg prometheus.Registerer) *metrics {
	durations := promauto.With(reg).NewHistogramVec(prometheus.HistogramOpts{
		Name:    "instanced_ec2query_request_duration_seconds",
		Help:    "Time to answer requests at the EC2 endpoint, by action and EC2's error code.",
		Buckets: series.CallBuckets(),
	}, []string{"action", "code"})
	m := &metrics{
		durations: series.NewTable(func(l actionCode) prometheus.Observer { return durations.WithLabelValues(l.action, l.code) }),
		codes:     series.NewBound(maxCodes),
	}
	for action := range actions {
		m.durations.Get(actionCode{action, codeOK})
	}
	return m
}

// ended counts a request that was answered.
func (s *Server) ended(c *call, code string, took time.Duration) {
	action := series.Other
	if s.action(c.action) != nil {
		action = c.action
	}
	code = s.metrics.codes.Value(code)
	s.metrics.durations.Get(actionCode{action, code}).Observe(took.Seconds())
	s.admission.CountCall(c.caller.Principal, code)
}
