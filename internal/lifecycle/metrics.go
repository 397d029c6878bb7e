package lifecycle

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics are what the service layer counts; see the observer's for commands.
type metrics struct {
	waits  prometheus.Gauge
	tokens [len(tokenLabels)]prometheus.Counter
}

// tokenUse is what a client token meant for a command.
type tokenUse uint8

const (
	// tokenNew: the token was recorded, and the command carried out.
	tokenNew tokenUse = iota
	// tokenRecorded: the command was answered from the record.
	tokenRecorded
	// tokenJoined: the command is in flight already, and has the same response.
	tokenJoined
	// tokenResumed: an earlier attempt under the token was interrupted; what it did not reach is
	// carried out.
	tokenResumed
	// tokenReused: the token was used with another request, so the command is rejected.
	tokenReused
	// tokenRefused: the token cannot be recorded, as with too many of them, or an earlier attempt
	// may not be repeated.
	tokenRefused
)

var tokenLabels = [...]string{
	tokenNew:      "new",
	tokenRecorded: "recorded",
	tokenJoined:   "joined",
	tokenResumed:  "resumed",
	tokenReused:   "reused",
	tokenRefused:  "refused",
}

func newMetrics(reg prometheus.Registerer) *metrics {
	factory := promauto.With(reg)
	m := &metrics{waits: factory.NewGauge(prometheus.GaugeOpts{
		Name: "instanced_lifecycle_waits_in_flight",
		Help: "Callers that wait for instances to reach a state.",
	})}
	tokens := factory.NewCounterVec(prometheus.CounterOpts{
		Name: "instanced_lifecycle_client_tokens_total",
		Help: "Commands with client tokens, by what the token meant for them.",
	}, []string{"use"})
	for use, label := range tokenLabels {
		m.tokens[use] = tokens.WithLabelValues(label)
	}
	return m
}
