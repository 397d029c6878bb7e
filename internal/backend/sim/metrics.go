package sim

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/instanced/instanced/internal/instance"
)

// outcomeOther is the label of what has no name of its own.
const outcomeOther = "_OTHER"

// metrics are what a [Backend] counts.
type metrics struct {
	commands  *prometheus.CounterVec               // by verb and outcome
	carried   map[instance.Verb]prometheus.Counter // the commands that succeeded
	throttled map[instance.Verb]prometheus.Counter // by action
	other     prometheus.Counter                   // throttled requests of other actions
}

func newMetrics(reg prometheus.Registerer) *metrics {
	factory := promauto.With(reg)
	m := &metrics{
		commands: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "instanced_sim_commands_total",
			Help: "Commands that the simulator was given, by outcome: ok, partial or failed if each instance has a result of its own, an error code of EC2, unknown_outcome, canceled, or _OTHER.",
		}, []string{"verb", "outcome"}),
		carried:   make(map[instance.Verb]prometheus.Counter),
		throttled: make(map[instance.Verb]prometheus.Counter),
	}
	throttled := factory.NewCounterVec(prometheus.CounterOpts{
		Name: "instanced_sim_throttled_requests_total",
		Help: "Requests that the simulator throttled, because a bucket was empty or a fault said so.",
	}, []string{"action"})
	m.other = throttled.WithLabelValues(outcomeOther)
	for _, verb := range []instance.Verb{instance.VerbStart, instance.VerbStop, instance.VerbReboot, instance.VerbTerminate} {
		m.carried[verb] = m.commands.WithLabelValues(string(verb), "ok")
		m.throttled[verb] = throttled.WithLabelValues(string(verb))
	}
	for _, action := range []instance.Verb{verbDescribe, verbDescribeStatus, verbRun} {
		m.throttled[action] = throttled.WithLabelValues(string(action))
	}
	return m
}

// countCommand counts a command that ended.
func (m *metrics) countCommand(verb instance.Verb, result instance.Result, err error) {
	carried, known := m.carried[verb]
	switch {
	case !known:
		m.commands.WithLabelValues(outcomeOther, outcomeOf(result, err)).Inc()
	case err == nil && len(result.Failures) == 0:
		carried.Inc()
	default:
		m.commands.WithLabelValues(string(verb), outcomeOf(result, err)).Inc()
	}
}

// outcomeOf is the label of a command that did not succeed as a whole. All codes are constants of
// this package and of package instance.
func outcomeOf(result instance.Result, err error) string {
	e, ok := errors.AsType[*instance.Error](err)
	switch {
	case err == nil && len(result.Changes) == 0:
		return "failed"
	case err == nil:
		return "partial"
	case !ok:
		return "canceled"
	case e.Code != "":
		return e.Code
	case e.OutcomeUnknown:
		return "unknown_outcome"
	}
	return outcomeOther
}

// countThrottled counts a throttled request.
func (m *metrics) countThrottled(action instance.Verb) {
	if counter, known := m.throttled[action]; known {
		counter.Inc()
		return
	}
	m.other.Inc()
}
