package journal

import (
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/instanced/instanced/internal/instance"
)

// collector reads what the journal keeps when it is scraped. It takes each lock once, for a
// few loads, and does not ask etcd.
type collector struct {
	journal   *Journal
	values    []collected
	instances *prometheus.Desc
}

// collected is a metric without labels, and how its value follows from a reading. A value
// that is not a number is left out.
type collected struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*reading) float64
}

// reading is what is known at one scrape.
type reading struct {
	journal *Journal
	Stats
	// term is that of this process, nil if it is not the owner.
	term *Term
}

func newCollector(j *Journal) *collector {
	c := &collector{
		journal:   j,
		instances: prometheus.NewDesc("instanced_journal_instances", "Instances by their recorded state.", []string{"state"}, nil),
	}
	add := func(kind prometheus.ValueType, name, help string, value func(*reading) float64) {
		c.values = append(c.values, collected{prometheus.NewDesc("instanced_journal_"+name, help, nil, nil), kind, value})
	}
	gauge := func(name, help string, value func(*reading) float64) { add(prometheus.GaugeValue, name, help, value) }

	gauge("revision", "Revision of the newest change that this process knows.", func(r *reading) float64 { return float64(r.Head) })
	gauge("newest_change_timestamp_seconds", "When the newest change was recorded; 0 without changes.", func(r *reading) float64 { return seconds(r.NewestAt) })
	gauge("oldest_revision", "Revision of the oldest change that is kept; 0 without changes.", func(r *reading) float64 { return float64(r.Oldest) })
	gauge("oldest_change_timestamp_seconds", "When the oldest change that is kept was recorded; 0 without changes.", func(r *reading) float64 { return seconds(r.OldestAt) })
	add(prometheus.CounterValue, "log_bytes_total", "Size of all history that was ever recorded, whether or not it is kept.", func(r *reading) float64 { return float64(r.Written) })
	gauge("history_bytes", "Size of the history that is kept.", func(r *reading) float64 { return float64(r.Bytes) })
	gauge("history_max_bytes", "Size of the history beyond which it is trimmed.", func(r *reading) float64 { return float64(r.journal.config.MaxBytes) })
	gauge("history_batches", "Batches of history that are kept.", func(r *reading) float64 { return float64(r.Batches) })
	gauge("history_max_batches", "Number of batches of history beyond which it is trimmed.", func(r *reading) float64 { return float64(r.journal.maxBatches) })
	gauge("retention_seconds", "Age beyond which changes are trimmed from the history.", func(r *reading) float64 { return r.journal.config.Retention.Seconds() })
	gauge("ring_bytes", "Memory for the end of the log that readers share.", func(r *reading) float64 { return float64(r.RingBytes) })
	gauge("ring_max_bytes", "Maximum memory for the end of the log that readers share.", func(r *reading) float64 { return float64(r.journal.config.RingBytes) })
	gauge("client_tokens", "Client tokens that are kept; 0 unless this process is the owner.", func(r *reading) float64 { return float64(r.ClientTokens) })
	gauge("max_client_tokens", "Maximum number of client tokens that are kept.", func(r *reading) float64 { return float64(r.journal.config.MaxClientTokens) })
	gauge("client_token_bytes", "Size of the client tokens in etcd; 0 unless this process is the owner.", func(r *reading) float64 { return float64(r.ClientTokenBytes) })
	gauge("client_token_max_bytes", "Maximum size of the client tokens in etcd.", func(r *reading) float64 { return float64(r.journal.budget.tokens()) })
	gauge("checkpoint_lag_revisions", "Revisions that the checkpoint does not reflect; 0 unless this process is the owner.", func(r *reading) float64 { return r.checkpointLag().revisions })
	gauge("checkpoint_lag_bytes", "Size of the history that the checkpoint does not reflect; 0 unless this process is the owner.", func(r *reading) float64 { return r.checkpointLag().bytes })
	gauge("owner", "1 if this process owns the journal, else 0.", func(r *reading) float64 { return bit(r.term != nil) })
	gauge("owner_since_timestamp_seconds", "When the present or last owner began its term, as far as this process knows.", func(r *reading) float64 { return seconds(r.OwnerSince) })
	gauge("lease_remaining_seconds", "How long the term of this process is certain to last; 0 unless it is the owner, +Inf with an embedded etcd.", (*reading).leaseRemaining)
	gauge("writable", "1 if this process can record changes now, else 0.", func(r *reading) float64 { return bit(r.term != nil && r.term.Writable() == nil) })
	gauge("reachable", "1 if etcd has answered recently, else 0.", func(r *reading) float64 { return bit(r.journal.Reachable() == nil) })
	if j.store.embedded {
		gauge("database_bytes", "Size of the file of the embedded etcd's database.", func(r *reading) float64 { return float64(r.journal.server.Server.Backend().Size()) })
		gauge("database_in_use_bytes", "Size of the part of the embedded etcd's database that is in use.", func(r *reading) float64 { return float64(r.journal.inUse()) })
		gauge("database_max_bytes", "Size in use at which changes wait for room in the embedded etcd's database.", (*reading).databaseLimit)
		gauge("disk_free_bytes", "Free space on the file system of the data directory.", (*reading).diskFree)
		gauge("disk_min_free_bytes", "Free space below which commands are refused.", func(r *reading) float64 { return float64(r.journal.disk.minFree) })
	}
	return c
}

func (r *reading) leaseRemaining() float64 {
	switch {
	case r.term == nil:
		return 0
	case r.term.lease == 0:
		return math.Inf(1)
	}
	return max(r.term.Remaining(), 0).Seconds()
}

func (r *reading) databaseLimit() float64 {
	if r.term != nil {
		return float64(r.term.limit.Load())
	}
	return float64(r.journal.budget)
}

func (r *reading) diskFree() float64 {
	if m := r.journal.disk.measure(checkAge); m.err == nil {
		return float64(m.free)
	}
	return math.NaN()
}

type checkpointLag struct{ revisions, bytes float64 }

func (r *reading) checkpointLag() (lag checkpointLag) {
	if r.term == nil {
		return lag
	}
	saved := r.term.checkpointer.saved.Load()
	// A checkpoint may have been written since the reading began.
	lag.revisions = max(float64(r.Head)-float64(saved.seq), 0)
	lag.bytes = max(float64(r.Written)-float64(saved.bytes), 0)
	return lag
}

// Describe is for package prometheus.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	out <- c.instances
	for i := range c.values {
		out <- c.values[i].desc
	}
}

// Collect is for package prometheus.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	r := &reading{journal: c.journal, Stats: c.journal.Stats(), term: c.journal.currentTerm()}
	for _, state := range instance.States() {
		out <- prometheus.MustNewConstMetric(c.instances, prometheus.GaugeValue, float64(r.InstancesIn[state]), state.String())
	}
	for i := range c.values {
		v := &c.values[i]
		if value := v.value(r); !math.IsNaN(value) {
			out <- prometheus.MustNewConstMetric(v.desc, v.kind, value)
		}
	}
}

// seconds returns a time as metrics have it; 0 for none.
func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixNano()) / 1e9
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
