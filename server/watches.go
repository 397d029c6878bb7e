package server

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/admission"
	"github.com/instanced/instanced/internal/lifecycle"
	"github.com/instanced/instanced/internal/series"
)

const (
	// watchLagsAfter is the age of a change that was not delivered, from which on a watch
	// counts as catching up.
	watchLagsAfter = time.Second
	// watchStalledAfter is how long a message must wait for its subscriber to read before the
	// watch counts as stalled.
	watchStalledAfter = 10 * time.Second
)

// watchState is the state of a watch. It is exported as a label.
type watchState int

const (
	watchLive watchState = iota
	watchCatchingUp
	watchStalled
)

var watchStates = [...]string{watchLive: "live", watchCatchingUp: "catching_up", watchStalled: "stalled"}

// watches are the open watches and their metrics. It is safe for concurrent use.
type watches struct {
	head  func() uint64 // the revision of the last change
	label func(principal string) string

	messages *series.Table[string, prometheus.Counter] // by kind
	events   prometheus.Counter
	delay    prometheus.Histogram
	goodbyes *series.Table[instancedv1.GoodbyeReason, prometheus.Counter]
	states   *prometheus.Desc
	lagging  *prometheus.Desc
	behind   *prometheus.Desc

	mu   sync.Mutex
	open map[*delivery]struct{}
}

// delivery is how far a watch has got. One goroutine writes it.
type delivery struct {
	watches   *watches
	caller    string // unverified
	principal string // as a label
	began     time.Time
	// revision is the last one that was delivered.
	revision atomic.Uint64
	// oldest is when the oldest change was recorded that is known to be not delivered, in
	// nanoseconds; 0 if none is known.
	oldest atomic.Int64
	// sending is since when the transport does not take a message, in nanoseconds; 0 while
	// none is sent.
	sending atomic.Int64
}

func newWatches(reg prometheus.Registerer, admission *admission.Admission, svc *lifecycle.Service) *watches {
	factory := promauto.With(reg)
	messages := factory.NewCounterVec(prometheus.CounterOpts{
		Name: "instanced_server_watch_messages_total", Help: "Messages sent to subscribers, by kind.",
	}, []string{"message"})
	goodbyes := factory.NewCounterVec(prometheus.CounterOpts{
		Name: "instanced_server_watch_goodbyes_total", Help: "Watches that the server ended with a goodbye, by reason.",
	}, []string{"reason"})
	w := &watches{
		head:     svc.Revision,
		label:    admission.PrincipalLabel,
		messages: series.NewTable(func(kind string) prometheus.Counter { return messages.WithLabelValues(kind) }),
		events:   factory.NewCounter(prometheus.CounterOpts{Name: "instanced_server_watch_events_total", Help: "Events sent to subscribers."}),
		delay: factory.NewHistogram(prometheus.HistogramOpts{
			Name:    "instanced_server_event_delivery_delay_seconds",
			Help:    "Age of events, since they were recorded, when the transport has taken them. Those from before the watch began do not count. Events that go to a subscriber in one message count once.",
			Buckets: series.CallBuckets(),
		}),
		goodbyes: series.NewTable(func(r instancedv1.GoodbyeReason) prometheus.Counter {
			return goodbyes.WithLabelValues(strings.TrimPrefix(r.String(), "GOODBYE_REASON_"))
		}),
		states: prometheus.NewDesc("instanced_server_watches",
			"Open watches: live; catching_up, with a change of more than a second that is not delivered; stalled, with a message that the subscriber has not read for 10 s.",
			[]string{"state"}, nil),
		lagging: prometheus.NewDesc("instanced_server_watch_lag_seconds",
			"Age of the oldest change that is not delivered, of the watch of a principal that lags most.", []string{"principal"}, nil),
		behind: prometheus.NewDesc("instanced_server_watch_lag_revisions",
			"Revisions not delivered, of the watch of a principal that lags most.", []string{"principal"}, nil),
		open: make(map[*delivery]struct{}),
	}
	for _, kind := range []string{messageSubscribed, messageSnapshot, messageEvents, messageProgress, messageGoodbye} {
		w.messages.Get(kind)
	}
	w.goodbyes.Get(instancedv1.GoodbyeReason_GOODBYE_REASON_DRAIN)
	if reg != nil {
		reg.MustRegister(w)
	}
	return w
}

// The kinds of messages.
const (
	messageSubscribed = "subscribed"
	messageSnapshot   = "snapshot"
	messageEvents     = "events"
	messageProgress   = "progress"
	messageGoodbye    = "goodbye"
)

// begin adds a watch that has delivered everything up to a revision.
func (w *watches) begin(principal string, revision uint64) *delivery {
	d := &delivery{watches: w, caller: principal, principal: w.label(principal), began: time.Now()}
	d.revision.Store(revision)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open[d] = struct{}{}
	return d
}

// end removes a watch.
func (d *delivery) end() {
	d.watches.mu.Lock()
	defer d.watches.mu.Unlock()
	delete(d.watches.open, d)
}

// deliver is called before anything is sent of a batch or snapshot.
func (d *delivery) deliver(recordedAt time.Time) { d.oldest.Store(recordedAt.UnixNano()) }

// delivered is called when everything up to a revision was sent.
func (d *delivery) delivered(revision uint64) { d.revision.Store(revision) }

// idle is called when there was nothing to deliver for a while.
func (d *delivery) idle() { d.oldest.Store(0) }

// sent counts a message with so many events that were recorded at a time.
func (d *delivery) sent(recordedAt time.Time, events int) {
	d.watches.events.Add(float64(events))
	if recordedAt.After(d.began) {
		d.watches.delay.Observe(time.Since(recordedAt).Seconds())
	}
}

// lag returns the state of a watch, how old the oldest change is that was not delivered, and how
// many revisions were not.
func (d *delivery) lag(now time.Time, head uint64) (state watchState, age time.Duration, behind uint64) {
	if delivered := d.revision.Load(); delivered < head {
		behind = head - delivered
		if oldest := d.oldest.Load(); oldest != 0 {
			age = max(0, now.Sub(time.Unix(0, oldest)))
		}
	}
	if since := d.sending.Load(); since != 0 && now.Sub(time.Unix(0, since)) >= watchStalledAfter {
		return watchStalled, age, behind
	}
	if age >= watchLagsAfter {
		return watchCatchingUp, age, behind
	}
	return watchLive, age, behind
}

// Describe implements [prometheus.Collector].
func (w *watches) Describe(descs chan<- *prometheus.Desc) {
	descs <- w.states
	descs <- w.lagging
	descs <- w.behind
}

// Collect implements [prometheus.Collector]. It costs some nanoseconds an open watch.
func (w *watches) Collect(metrics chan<- prometheus.Metric) {
	type lag struct {
		age    time.Duration
		behind uint64
	}
	var states [len(watchStates)]int
	lags := make(map[string]lag)
	now, head := time.Now(), w.head()
	w.mu.Lock()
	for d := range w.open {
		state, age, behind := d.lag(now, head)
		states[state]++
		worst := lags[d.principal]
		lags[d.principal] = lag{max(worst.age, age), max(worst.behind, behind)}
	}
	w.mu.Unlock()
	for state, count := range states {
		metrics <- prometheus.MustNewConstMetric(w.states, prometheus.GaugeValue, float64(count), watchStates[state])
	}
	for principal, worst := range lags {
		metrics <- prometheus.MustNewConstMetric(w.lagging, prometheus.GaugeValue, worst.age.Seconds(), principal)
		metrics <- prometheus.MustNewConstMetric(w.behind, prometheus.GaugeValue, float64(worst.behind), principal)
	}
}
