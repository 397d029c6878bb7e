package ec2

import (
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/instanced/instanced/internal/backend/ec2/dispatch"
	"github.com/instanced/instanced/internal/instance"
)

// mutatingVerbs are the verbs that the dispatcher queues.
var mutatingVerbs = []instance.Verb{instance.VerbStart, instance.VerbStop, instance.VerbReboot, instance.VerbTerminate}

// metrics are what a [Backend] counts; what it keeps anyway is read by a stateCollector.
type metrics struct {
	actions    map[instance.Verb]*actionMetrics
	unreadable prometheus.Counter
	queue      queueMetrics
}

// actionMetrics are the metrics of one action of EC2. From instances on they are nil for
// DescribeInstances.
type actionMetrics struct {
	calls     *prometheus.CounterVec // by outcome
	duration  prometheus.Observer
	throttled prometheus.Counter
	retries   [failAll + 1]prometheus.Counter // nil for what is not retried

	instances, requests prometheus.Observer // of a call
	queueWait           prometheus.Observer
	retrying            prometheus.Gauge
	divided             [len(divisionNames)]prometheus.Counter
	lostAnswers         [len(resolutionNames)]prometheus.Counter
}

// queueMetrics are the metrics of the SQS queue.
type queueMetrics struct {
	calls    *prometheus.CounterVec // by action and outcome
	received [len(receiptNames)]prometheus.Counter
	deleted  prometheus.Counter
	age      prometheus.Observer
}

// division is a way in which a batch is divided.
type division uint8

const (
	bisected division = iota
	searchedForCapacity
	tooLarge
	sentAlone
)

var divisionNames = [...]string{
	bisected:            "bisection",
	searchedForCapacity: "capacity_search",
	tooLarge:            "too_large",
	sentAlone:           "protected_instances",
}

// resolution is what became of an instance of a call whose answer was lost.
type resolution uint8

const (
	carriedOut resolution = iota
	sentAgain
	unresolved
)

var resolutionNames = [...]string{
	carriedOut: "carried_out",
	sentAgain:  "sent_again",
	unresolved: "unresolved",
}

// receipt is what a received message is.
type receipt uint8

const (
	receivedNew receipt = iota
	receivedAgain
	receivedUnreadable
)

var receiptNames = [...]string{
	receivedNew:        "new",
	receivedAgain:      "duplicate",
	receivedUnreadable: "unreadable",
}

// retryReasons are the reactions after which a call is repeated.
var retryReasons = map[reaction]string{
	rejected:       "rejected",
	throttled:      "throttled",
	partial:        "partial",
	unknownOutcome: "unknown_outcome",
}

// Outcomes of calls beside EC2's error codes.
const (
	outcomeOK          = "ok"
	outcomeUnknown     = "unknown_outcome"
	outcomeUnreachable = "unreachable"
	outcomeCredentials = "no_credentials"
	outcomeNotSent     = "not_sent"
	outcomeOther       = "_OTHER"
)

// newMetrics registers the metrics of a backend, and of SQS if it has a queue.
func newMetrics(reg prometheus.Registerer, queue bool) *metrics {
	factory := promauto.With(reg)
	byAction := []string{"action"}
	calls := factory.NewCounterVec(prometheus.CounterOpts{
		Name: "instanced_ec2_calls_total",
		Help: "Calls to EC2 by action and outcome: ok, an error code of EC2, unknown_outcome without an answer, unreachable, no_credentials, not_sent after the term ended, or _OTHER.",
	}, []string{"action", "outcome"})
	duration := factory.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "instanced_ec2_call_duration_seconds",
		Help:    "How long calls to EC2 took, failed ones included.",
		Buckets: prometheus.ExponentialBuckets(0.05, 2, 9),
	}, byAction)
	throttles := factory.NewCounterVec(prometheus.CounterOpts{
		Name: "instanced_ec2_throttled_calls_total",
		Help: "Calls that EC2 throttled.",
	}, byAction)
	retries := factory.NewCounterVec(prometheus.CounterOpts{
		Name: "instanced_ec2_retries_total",
		Help: "Calls that are made again, by why: EC2 throttled, rejected other instances of the call, terminated a part of them, or did not answer.",
	}, []string{"action", "reason"})
	perCall := prometheus.ExponentialBucketsRange(1, 1024, 11)
	instances := factory.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "instanced_ec2_call_instances",
		Help:    "How many instances a call was for.",
		Buckets: perCall,
	}, byAction)
	requests := factory.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "instanced_ec2_call_requests",
		Help:    "How many requests of callers a call was for.",
		Buckets: perCall,
	}, byAction)
	queueWait := factory.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "instanced_ec2_queue_wait_seconds",
		Help:    "How long an instance waited for its first call: for tokens, and for the call before it.",
		Buckets: []float64{0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 20, 60, 300},
	}, byAction)
	retrying := factory.NewGaugeVec(prometheus.GaugeOpts{
		Name: "instanced_ec2_retrying_instances",
		Help: "Instances in batches that wait for tokens to be sent again.",
	}, byAction)
	divided := factory.NewCounterVec(prometheus.CounterOpts{
		Name: "instanced_ec2_divided_batches_total",
		Help: "Parts of batches that are divided after EC2 rejected them, by how: by bisection to find a bad instance, by a search for how many there is capacity for, because EC2 takes fewer instances a call, or to spare those beside protected instances.",
	}, []string{"action", "how"})
	lost := factory.NewCounterVec(prometheus.CounterOpts{
		Name: "instanced_ec2_lost_answers_total",
		Help: "Instances of calls without an answer that can be understood, by what became of them: carried_out, sent_again, or unresolved, which callers are told.",
	}, []string{"action", "resolution"})
	m := &metrics{
		actions: make(map[instance.Verb]*actionMetrics),
		unreadable: factory.NewCounter(prometheus.CounterOpts{
			Name: "instanced_ec2_unreadable_descriptions_total",
			Help: "Descriptions of instances that could not be decoded.",
		}),
	}
	if queue {
		m.queue = newQueueMetrics(factory)
	}
	for _, verb := range append([]instance.Verb{actionDescribe}, mutatingVerbs...) {
		action := string(verb)
		a := &actionMetrics{
			calls:     calls.MustCurryWith(prometheus.Labels{"action": action}),
			duration:  duration.WithLabelValues(action),
			throttled: throttles.WithLabelValues(action),
		}
		a.calls.WithLabelValues(outcomeOK)
		m.actions[verb] = a
		if verb == actionDescribe {
			a.retries[throttled] = retries.WithLabelValues(action, retryReasons[throttled])
			a.retries[unknownOutcome] = retries.WithLabelValues(action, retryReasons[unknownOutcome])
			continue
		}
		for reaction, reason := range retryReasons {
			a.retries[reaction] = retries.WithLabelValues(action, reason)
		}
		a.instances, a.requests = instances.WithLabelValues(action), requests.WithLabelValues(action)
		a.queueWait, a.retrying = queueWait.WithLabelValues(action), retrying.WithLabelValues(action)
		for how, name := range divisionNames {
			a.divided[how] = divided.WithLabelValues(action, name)
		}
		for resolution, name := range resolutionNames {
			a.lostAnswers[resolution] = lost.WithLabelValues(action, name)
		}
	}
	return m
}

func newQueueMetrics(factory promauto.Factory) queueMetrics {
	received := factory.NewCounterVec(prometheus.CounterOpts{
		Name: "instanced_sqs_messages_received_total",
		Help: "Messages received from the queue: new events, duplicates, and unreadable ones.",
	}, []string{"result"})
	q := queueMetrics{
		calls: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "instanced_sqs_calls_total",
			Help: "Calls to SQS by action and outcome, as in instanced_ec2_calls_total.",
		}, []string{"action", "outcome"}),
		deleted: factory.NewCounter(prometheus.CounterOpts{
			Name: "instanced_sqs_messages_deleted_total",
			Help: "Messages deleted from the queue, whose events are recorded.",
		}),
		age: factory.NewHistogram(prometheus.HistogramOpts{
			Name:    "instanced_sqs_event_age_seconds",
			Help:    "How old new events were when they were received. EventBridge dates them to the second.",
			Buckets: []float64{0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3600},
		}),
	}
	for result, name := range receiptNames {
		q.received[result] = received.WithLabelValues(name)
	}
	q.calls.WithLabelValues(actionReceive, outcomeOK)
	return q
}

// Actions of SQS.
const (
	actionReceive = "ReceiveMessage"
	actionDelete  = "DeleteMessageBatch"
	actionRenew   = "ChangeMessageVisibilityBatch"
)

// countCall counts a call that ended; f is nil if it succeeded.
func (a *actionMetrics) countCall(took time.Duration, f *failure) {
	a.calls.WithLabelValues(f.outcome()).Inc()
	a.duration.Observe(took.Seconds())
	if f != nil && f.reaction == throttled {
		a.throttled.Inc()
	}
}

// countCall counts a call of SQS that ended.
func (q *queueMetrics) countCall(action string, err error) {
	outcome := outcomeOK
	if err != nil {
		outcome = failureOf(err, nil).outcome()
	}
	q.calls.WithLabelValues(action, outcome).Inc()
}

// countQueueWait counts how long each instance of a batch waited until now.
func (a *actionMetrics) countQueueWait(items []*dispatch.Item) {
	now := time.Now()
	for _, it := range items {
		wait := now.Sub(it.Enqueued).Seconds()
		for range it.IDs {
			a.queueWait.Observe(wait)
		}
	}
}

// countLostAnswer counts what became of the instances of a call whose answer was lost.
func (a *actionMetrics) countLostAnswer(group []*dispatch.Item, what resolution) {
	a.lostAnswers[what].Add(float64(len(dispatch.DistinctIDs(group))))
}

// outcome is the label of a call that ended with a failure; nil is none. It is bounded: only
// codes of the table are named.
func (f *failure) outcome() string {
	switch {
	case f == nil:
		return outcomeOK
	case f.answered:
		if _, known := codes[f.err.Code]; known {
			return f.err.Code
		}
		return outcomeOther
	case f.fenced:
		return outcomeNotSent
	case f.withoutCredentials():
		return outcomeCredentials
	case f.reaction == unknownOutcome:
		return outcomeUnknown
	case f.unreachable:
		return outcomeUnreachable
	}
	return outcomeOther
}

// stateCollector reads the state of a backend when it is scraped, in a time that does not depend
// on how much waits.
type stateCollector struct{ b *Backend }

var (
	waitingDesc = prometheus.NewDesc("instanced_ec2_waiting_instances",
		"Instances that wait for their first call; dry runs are not counted.", []string{"action"}, nil)
	oldestWaitingDesc = prometheus.NewDesc("instanced_ec2_oldest_waiting_seconds",
		"How long the oldest request has waited for its first call; 0 if none waits.", []string{"action"}, nil)
	inFlightDesc = prometheus.NewDesc("instanced_ec2_batches_in_flight",
		"Batches that are sent, repeated or divided.", []string{"action"}, nil)
	circuitDesc = prometheus.NewDesc("instanced_ec2_circuit_open",
		"1 while commands are rejected at once, because EC2 cannot be reached.", nil, nil)
	lastResponseDesc = prometheus.NewDesc("instanced_ec2_last_response_timestamp_seconds",
		"When EC2 last answered a call, with an error or without. Absent before the first answer.", nil, nil)
	credentialsDesc = prometheus.NewDesc("instanced_ec2_credentials_expiry_timestamp_seconds",
		"When the credentials of the last call expire; +Inf if they do not, and before the first call.", nil, nil)
	lastReceiveDesc = prometheus.NewDesc("instanced_sqs_last_receive_timestamp_seconds",
		"When SQS last answered whether there are messages. Absent before the first answer.", nil, nil)
	unacknowledgedDesc = prometheus.NewDesc("instanced_sqs_unacknowledged_events",
		"Events that were received and are not recorded yet.", nil, nil)
)

// Describe sends the descriptions of all metrics.
func (c stateCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{
		waitingDesc, oldestWaitingDesc, inFlightDesc, circuitDesc, lastResponseDesc, credentialsDesc, lastReceiveDesc, unacknowledgedDesc,
	} {
		descs <- desc
	}
}

// Collect sends the state.
func (c stateCollector) Collect(to chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	timestamp := func(desc *prometheus.Desc, at time.Time) {
		if !at.IsZero() {
			gauge(desc, float64(at.UnixNano())/float64(time.Second))
		}
	}
	now := time.Now()
	for _, verb := range mutatingVerbs {
		load := c.b.dispatcher.Load(verb)
		gauge(waitingDesc, float64(load.WaitingInstances), string(verb))
		oldest := 0.0
		if !load.OldestEnqueued.IsZero() {
			oldest = now.Sub(load.OldestEnqueued).Seconds()
		}
		gauge(oldestWaitingDesc, max(0, oldest), string(verb))
		gauge(inFlightDesc, float64(load.Batches), string(verb))
	}
	open, lastResponse := c.b.client.breaker.state(now)
	if open {
		gauge(circuitDesc, 1)
	} else {
		gauge(circuitDesc, 0)
	}
	timestamp(lastResponseDesc, lastResponse)
	if expiry := c.b.expiry.get(); expiry.IsZero() {
		gauge(credentialsDesc, math.Inf(1))
	} else {
		timestamp(credentialsDesc, expiry)
	}
	if c.b.queue != nil {
		timestamp(lastReceiveDesc, c.b.lastReceive.get())
		gauge(unacknowledgedDesc, float64(c.b.inbox.Load().size()))
	}
}
