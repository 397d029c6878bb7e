package journal

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/instanced/instanced/internal/instance"
)

// metrics are what the journal counts. What it keeps anyway is read when it is scraped, by a
// [collector].
type metrics struct {
	commitDuration, batchChanges, checkpointDuration prometheus.Histogram
	terms, compactions, defragmentations             prometheus.Counter
	// writeErrors has the reason as its label, maintenanceErrors the task.
	writeErrors, maintenanceErrors *prometheus.CounterVec

	changes   [instance.ChangeRemoved + 1]prometheus.Counter
	changeAge [instance.SourceSimulator + 1]prometheus.Observer
	// stateChanges has a counter for each transition that was recorded. It belongs to the
	// goroutine that commits batches.
	stateChanges    map[transition]prometheus.Counter
	stateChangesVec *prometheus.CounterVec
}

// transition is what state changes are counted by.
type transition struct {
	from, to instance.State
	cause    causeLabel
	source   instance.Source
	inferred bool
}

// causeLabel is the place of a cause in causeLabels.
type causeLabel uint8

const (
	externalCause causeLabel = iota
	startCause
	stopCause
	rebootCause
	terminateCause
	otherCause
)

var causeLabels = [...]string{
	externalCause:  "external",
	startCause:     string(instance.VerbStart),
	stopCause:      string(instance.VerbStop),
	rebootCause:    string(instance.VerbReboot),
	terminateCause: string(instance.VerbTerminate),
	otherCause:     "other",
}

// The reasons for which a write fails.
const (
	writeUnavailable = "unavailable" // etcd does not respond; the write is repeated
	writeNoSpace     = "no_space"    // etcd's quota is used up; the write is repeated
	writeRefused     = "refused"     // etcd refuses it, which ends the term
	writeFenced      = "fenced"      // another process owns the log, or the log went back, which ends the term
)

// The tasks of a term's maintenance.
const (
	taskCheckpoint   = "checkpoint"
	taskTrim         = "trim"
	taskExpireTokens = "expire_tokens"
	taskCompact      = "compact"
	taskMakeRoom     = "make_room"
)

func newMetrics(reg prometheus.Registerer) *metrics {
	factory := promauto.With(reg)
	m := &metrics{
		commitDuration: factory.NewHistogram(prometheus.HistogramOpts{
			Name:    "instanced_journal_commit_duration_seconds",
			Help:    "How long it took to write a batch to etcd and have it on disk, retries included.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15),
		}),
		batchChanges: factory.NewHistogram(prometheus.HistogramOpts{
			Name:    "instanced_journal_batch_changes",
			Help:    "Changes written as one batch.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 12),
		}),
		checkpointDuration: factory.NewHistogram(prometheus.HistogramOpts{
			Name:    "instanced_journal_checkpoint_duration_seconds",
			Help:    "How long it took to write a checkpoint.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 9),
		}),
		terms: factory.NewCounter(prometheus.CounterOpts{
			Name: "instanced_journal_terms_total",
			Help: "How often this process became the owner of the journal.",
		}),
		compactions: factory.NewCounter(prometheus.CounterOpts{
			Name: "instanced_journal_compactions_total",
			Help: "How often this process compacted etcd.",
		}),
		defragmentations: factory.NewCounter(prometheus.CounterOpts{
			Name: "instanced_journal_defragmentations_total",
			Help: "How often this process made the file of the embedded etcd's database smaller.",
		}),
		writeErrors: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "instanced_journal_write_errors_total",
			Help: "Failed attempts to write a batch.",
		}, []string{"reason"}),
		maintenanceErrors: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "instanced_journal_maintenance_errors_total",
			Help: "Failed tasks of maintenance. They are retried.",
		}, []string{"task"}),
		stateChangesVec: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "instanced_journal_state_changes_total",
			Help: "State changes recorded by this process.",
		}, []string{"from", "to", "cause", "source", "inferred"}),
		stateChanges: make(map[transition]prometheus.Counter),
	}
	for _, reason := range []string{writeUnavailable, writeNoSpace, writeRefused, writeFenced} {
		m.writeErrors.WithLabelValues(reason)
	}
	for _, task := range []string{taskCheckpoint, taskTrim, taskExpireTokens, taskCompact, taskMakeRoom} {
		m.maintenanceErrors.WithLabelValues(task)
	}
	changes := factory.NewCounterVec(prometheus.CounterOpts{
		Name: "instanced_journal_changes_total",
		Help: "Changes of instances recorded by this process.",
	}, []string{"type"})
	for t := instance.ChangeAdded; t <= instance.ChangeRemoved; t++ {
		m.changes[t] = changes.WithLabelValues(t.String())
	}
	ages := factory.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "instanced_journal_change_age_seconds",
		Help:    "Time from when a change happened, as far as is known, until it was on disk.",
		Buckets: []float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300},
	}, []string{"source"})
	for s := instance.SourceAnswer; s <= instance.SourceSimulator; s++ {
		m.changeAge[s] = ages.WithLabelValues(s.String())
	}
	return m
}

// committed counts a batch that is on disk.
func (m *metrics) committed(b *Batch, now time.Time) {
	m.batchChanges.Observe(float64(len(b.Events)))
	for i := range b.Events {
		c := b.Events[i].Change
		m.changes[c.Type].Inc()
		if age := m.changeAge[c.Source]; age != nil {
			age.Observe(max(now.Sub(c.OccurredAt), 0).Seconds())
		}
		if c.Type == instance.ChangeState {
			m.countStateChange(transition{c.Before.State, c.After.State, labelOf(c.Cause), c.Source, c.Inferred})
		}
	}
}

func (m *metrics) countStateChange(t transition) {
	counter := m.stateChanges[t]
	if counter == nil {
		inferred := "false"
		if t.inferred {
			inferred = "true"
		}
		counter = m.stateChangesVec.WithLabelValues(t.from.String(), t.to.String(), causeLabels[t.cause], t.source.String(), inferred)
		m.stateChanges[t] = counter
	}
	counter.Inc()
}

func labelOf(c instance.Cause) causeLabel {
	switch {
	case c.External():
		return externalCause
	case c.Verb == instance.VerbStart:
		return startCause
	case c.Verb == instance.VerbStop:
		return stopCause
	case c.Verb == instance.VerbReboot:
		return rebootCause
	case c.Verb == instance.VerbTerminate:
		return terminateCause
	}
	return otherCause
}
