package observer

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.opentelemetry.io/otel/trace"

	"github.com/instanced/instanced/internal/instance"
)

// metrics are what the observer counts. What it keeps anyway is read when it is scraped.
type metrics struct {
	commands *prometheus.CounterVec
	verbs    [len(verbs)]verbMetrics
	reasons  map[string]bool

	notices       [needsRefresh + 1]prometheus.Counter
	noticeErrors  prometheus.Counter
	polls         prometheus.Counter
	refreshes     attempts
	lastRefresh   atomic.Pointer[time.Time]
	reconciles    attempts
	disagreements [instance.ChangeRemoved + 1]prometheus.Counter
}

// attempts are the metrics of what succeeds or fails, and is tried again.
type attempts struct {
	ok, failed prometheus.Observer
}

func newAttempts(factory promauto.Factory, name, help string) attempts {
	durations := factory.NewHistogramVec(prometheus.HistogramOpts{
		Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(0.001, 4, 10),
	}, []string{"outcome"})
	return attempts{ok: durations.WithLabelValues("ok"), failed: durations.WithLabelValues("failed")}
}

// observe counts an attempt that began at a time, unless it was given up with its context.
func (a attempts) observe(ctx context.Context, began time.Time, err error) {
	switch {
	case err == nil:
		a.ok.Observe(time.Since(began).Seconds())
	case ctx.Err() == nil:
		a.failed.Observe(time.Since(began).Seconds())
	}
}

var noticeLabels = [...]string{
	duplicate:       "duplicate",
	late:            "late",
	followsDirectly: "recorded",
	needsRefresh:    "described",
}

// verbMetrics are for the commands of one verb.
type verbMetrics struct {
	inFlight prometheus.Gauge
	ok       prometheus.Counter
	duration [len(outcomeLabels)]prometheus.Observer
}

var verbs = [...]instance.Verb{instance.VerbStart, instance.VerbStop, instance.VerbReboot, instance.VerbTerminate}

// outcome is what became of a command as a whole.
type outcome uint8

const (
	// outcomeOK: it was carried out on all of its instances.
	outcomeOK outcome = iota
	// outcomePartial: it was carried out on some of its instances.
	outcomePartial
	// outcomeFailed: it was rejected, and changed nothing.
	outcomeFailed
	// outcomeNotSent: its deadline came before its turn. It changed nothing.
	outcomeNotSent
	// outcomeCanceled: its caller left.
	outcomeCanceled
	// outcomeUnsure: the caller was told that the outcome is unknown.
	outcomeUnsure
)

var outcomeLabels = [...]string{
	outcomeOK:       "ok",
	outcomePartial:  "partial",
	outcomeFailed:   "failed",
	outcomeNotSent:  "not_sent",
	outcomeCanceled: "canceled",
	outcomeUnsure:   "unknown",
}

// kindLabels are for errors whose code or reason is not in reasons.
var kindLabels = [...]string{
	instance.KindInternal:     "internal",
	instance.KindInvalid:      "invalid",
	instance.KindNotFound:     "not_found",
	instance.KindPrecondition: "precondition",
	instance.KindDryRun:       "dry_run",
	instance.KindPermission:   "permission",
	instance.KindExhausted:    "exhausted",
	instance.KindConflict:     "conflict",
	instance.KindOutOfRange:   "out_of_range",
	instance.KindUnavailable:  "unavailable",

	instance.KindUnauthenticated: "unauthenticated",
}

// reasons are the error codes and reasons that commands are counted by. Of EC2's other codes,
// which it may add to, only the kind is.
var reasons = []string{
	instance.CodeNotFound, instance.CodeIncorrectInstanceState, instance.CodeUnsupportedOperation,
	instance.CodeUnsupportedHibernation, instance.CodeOperationNotPermitted, instance.CodeUnauthorized,
	instance.CodeInsufficientCapacity, instance.CodeInstanceLimitExceeded, instance.CodeRequestLimitExceeded,
	instance.CodeServiceUnavailable, instance.CodeInternalError,

	instance.ReasonTooManyClientTokens, instance.ReasonTooManyLookUps, instance.ReasonJournalFull,
	instance.ReasonJournalUnavailable, instance.ReasonNotOwner, instance.ReasonNotRecorded,
	instance.ReasonRequestLimitExceeded, instance.ReasonNotSentInTime, instance.ReasonBackendUnavailable,
	instance.ReasonAnswerLost, instance.ReasonCredentialsRefused, instance.ReasonBackendClosing,
}

func newMetrics(reg prometheus.Registerer) *metrics {
	factory := promauto.With(reg)
	m := &metrics{
		commands: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "instanced_observer_commands_total",
			Help: "Commands given to the backend, by what became of them.",
		}, []string{"verb", "outcome", "reason"}),
		reasons: make(map[string]bool, len(reasons)),
		noticeErrors: factory.NewCounter(prometheus.CounterOpts{
			Name: "instanced_observer_notice_errors_total",
			Help: "Failures to receive notices from the backend.",
		}),
		polls: factory.NewCounter(prometheus.CounterOpts{
			Name: "instanced_observer_polls_total",
			Help: "Instances in transition that were described because no notice had come.",
		}),
		refreshes: newAttempts(factory, "instanced_observer_refresh_duration_seconds",
			"How long it took to have some instances described and to record the differences."),
		reconciles: newAttempts(factory, "instanced_observer_reconcile_duration_seconds",
			"How long it took to have all instances described and to record the differences."),
	}
	notices := factory.NewCounterVec(prometheus.CounterOpts{
		Name: "instanced_observer_notices_total",
		Help: "Notices received from the backend, by what followed from them.",
	}, []string{"class"})
	for class, label := range noticeLabels {
		m.notices[class] = notices.WithLabelValues(label)
	}
	disagreements := factory.NewCounterVec(prometheus.CounterOpts{
		Name: "instanced_observer_disagreements_total",
		Help: "Instances that a full comparison found to differ from what was recorded.",
	}, []string{"type"})
	for t := instance.ChangeAdded; t <= instance.ChangeRemoved; t++ {
		m.disagreements[t] = disagreements.WithLabelValues(t.String())
	}
	for _, reason := range reasons {
		m.reasons[reason] = true
	}
	inFlight := factory.NewGaugeVec(prometheus.GaugeOpts{
		Name: "instanced_observer_commands_in_flight",
		Help: "Commands that wait for the backend, or to be recorded.",
	}, []string{"verb"})
	durations := factory.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "instanced_observer_command_duration_seconds",
		Help:    "How long a command took, from when it was accepted until its outcome was recorded.",
		Buckets: []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60},
	}, []string{"verb", "outcome"})
	for i, verb := range verbs {
		v := &m.verbs[i]
		v.inFlight = inFlight.WithLabelValues(string(verb))
		v.ok = m.commands.WithLabelValues(string(verb), outcomeLabels[outcomeOK], "")
		for outcome, label := range outcomeLabels {
			v.duration[outcome] = durations.WithLabelValues(string(verb), label)
		}
	}
	return m
}

// verb returns the metrics of a verb.
func (m *metrics) verb(verb instance.Verb) *verbMetrics {
	for i := range verbs {
		if verbs[i] == verb {
			return &m.verbs[i]
		}
	}
	return nil
}

// commandEnded counts a command, and how long it took. If it is traced, the trace is the exemplar
// of that.
func (m *metrics) commandEnded(span trace.Span, verb instance.Verb, took time.Duration, result Result, err error) {
	v := m.verb(verb)
	outcome, cause := outcomeOf(result, err)
	duration := v.duration[outcome]
	if traced, ok := duration.(prometheus.ExemplarObserver); ok && span.SpanContext().IsSampled() {
		traced.ObserveWithExemplar(took.Seconds(), prometheus.Labels{"trace_id": span.SpanContext().TraceID().String()})
	} else {
		duration.Observe(took.Seconds())
	}
	if outcome == outcomeOK {
		v.ok.Inc()
		return
	}
	m.commands.WithLabelValues(string(verb), outcomeLabels[outcome], m.reasonOf(cause)).Inc()
}

// outcomeOf returns what became of a command, and the error that says why it was not carried out
// on all of its instances.
func outcomeOf(result Result, err error) (o outcome, cause error) {
	cause = err
	if err == nil {
		if len(result.Failures) == 0 {
			return outcomeOK, nil
		}
		for _, f := range result.Failures {
			if cause == nil || f.Err.OutcomeUnknown {
				cause = f.Err
			}
		}
	}
	e, classified := errors.AsType[*instance.Error](cause)
	switch {
	case classified && e.OutcomeUnknown:
		return outcomeUnsure, cause
	case len(result.Changes) > 0:
		return outcomePartial, cause
	case classified && e.Reason == instance.ReasonNotSentInTime:
		return outcomeNotSent, cause
	case !classified && errors.Is(cause, context.Canceled):
		return outcomeCanceled, cause
	case !classified && errors.Is(cause, context.DeadlineExceeded):
		return outcomeUnsure, cause
	}
	return outcomeFailed, cause
}

// reasonOf returns the label of an error: one of few.
func (m *metrics) reasonOf(err error) string {
	e, classified := errors.AsType[*instance.Error](err)
	switch {
	case classified && m.reasons[e.Code]:
		return e.Code
	case classified && m.reasons[e.Reason]:
		return e.Reason
	case classified && int(e.Kind) < len(kindLabels):
		return kindLabels[e.Kind]
	case errors.Is(err, context.Canceled):
		return instance.ReasonCanceled
	case errors.Is(err, context.DeadlineExceeded):
		return instance.ReasonDeadlineExceeded
	}
	return kindLabels[instance.KindInternal]
}

// registerState registers what is read when it is scraped: no lock is held for more than a few
// loads.
func (o *Observer) registerState(reg prometheus.Registerer) {
	factory := promauto.With(reg)
	gauge := func(name, help string, labels prometheus.Labels, value func() float64) {
		factory.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, value)
	}
	for state, label := range map[commandState]string{outcomeUnknown: "unknown", unrecorded: "unrecorded"} {
		gauge("instanced_observer_unresolved_commands",
			"Commands on an instance that have ended and whose outcome is unknown, or not recorded.", prometheus.Labels{"state": label},
			func() float64 {
				o.tracker.mu.Lock()
				defer o.tracker.mu.Unlock()
				return float64(o.tracker.unresolved[state])
			})
	}
	gauge("instanced_observer_notices_held", "Instances with notices that are held back for a command in flight.", nil,
		func() float64 {
			o.tracker.mu.Lock()
			defer o.tracker.mu.Unlock()
			return float64(len(o.tracker.holding))
		})
	gauge("instanced_observer_refreshes_waiting", "Instances that wait to be described.", nil,
		func() float64 {
			o.refresher.mu.Lock()
			defer o.refresher.mu.Unlock()
			return float64(len(o.refresher.wanted))
		})
	gauge("instanced_observer_unreadable_instances", "Instances that the backend describes in a way that cannot be understood.", nil,
		func() float64 {
			o.unreadable.mu.Lock()
			defer o.unreadable.mu.Unlock()
			return float64(len(o.unreadable.instances))
		})
	if reg != nil {
		reg.MustRegister(lastTimes{
			prometheus.NewDesc("instanced_observer_refresh_last_success_timestamp_seconds",
				"When instances were last described and the differences recorded; absent before the first time.", nil, nil): func() time.Time {
				if at := o.metrics.lastRefresh.Load(); at != nil {
					return *at
				}
				return time.Time{}
			},
			prometheus.NewDesc("instanced_observer_reconcile_last_success_timestamp_seconds",
				"When the last full comparison that succeeded began; absent before the first.", nil, nil): func() time.Time { return o.Reconciled().Succeeded },
			prometheus.NewDesc("instanced_observer_backend_contact_timestamp_seconds",
				"When the backend last answered, whether with success or not; absent before the first time.", nil, nil): func() time.Time { return o.BackendContact().Succeeded },
		})
	}
}

// lastTimes collects when something last happened; nothing for what never did, since the age of
// a zero time would be half a century.
type lastTimes map[*prometheus.Desc]func() time.Time

// Describe implements [prometheus.Collector].
func (l lastTimes) Describe(to chan<- *prometheus.Desc) {
	for desc := range l {
		to <- desc
	}
}

// Collect implements [prometheus.Collector].
func (l lastTimes) Collect(to chan<- prometheus.Metric) {
	for desc, last := range l {
		if at := last(); !at.IsZero() {
			to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(at.UnixNano())/1e9)
		}
	}
}
