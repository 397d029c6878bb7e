package journal

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/metricstest"
)

// measured returns a configuration with a registry.
func measured(c Config) (Config, *prometheus.Registry) {
	registry := prometheus.NewRegistry()
	c.Metrics = registry
	return c, registry
}

func TestMetricsTellWhatIsKeptAndWhatIsTrimmed(t *testing.T) {
	config, registry := measured(testConfig(t))
	j, term := own(t, config)
	const written, kept = 150, 90
	j.maxBatches = 100
	for n := range written {
		set(t, term, id(1), instance.States()[n%2])
	}
	metricstest.Expect(t, registry, map[string]float64{
		"instanced_journal_oldest_revision":               1,
		"instanced_journal_checkpoint_lag_revisions":      written,
		"instanced_journal_checkpoint_lag_bytes":          float64(j.Stats().Bytes),
		"instanced_journal_commit_duration_seconds_count": written,
		"instanced_journal_batch_changes_count":           written,
	})
	all := float64(j.Stats().Bytes)
	if err := term.checkpointer.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := term.trim(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := term.compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	set(t, term, id(1), instance.StateStopped)
	batches := readAll(t, j, j.Oldest(), j.Head())
	first, last := batches[0], batches[len(batches)-1]
	spans := map[string]float64{
		"instanced_journal_revision":                        written + 1,
		"instanced_journal_oldest_revision":                 written - kept + 1,
		"instanced_journal_history_batches":                 kept + 1,
		"instanced_journal_history_max_batches":             100,
		"instanced_journal_history_bytes":                   float64(j.Stats().Bytes),
		"instanced_journal_history_max_bytes":               1 << 30,
		"instanced_journal_oldest_change_timestamp_seconds": seconds(first.RecordedAt),
		"instanced_journal_newest_change_timestamp_seconds": seconds(last.RecordedAt),
	}
	metricstest.Expect(t, registry, spans)
	got := metricstest.Samples(t, registry)
	if total := got["instanced_journal_log_bytes_total"]; total <= all || total <= got["instanced_journal_history_bytes"] {
		t.Errorf("%v bytes were ever recorded, want more than the %v before", total, all)
	}
	metricstest.Expect(t, registry, map[string]float64{
		"instanced_journal_checkpoint_lag_revisions":          1,
		"instanced_journal_checkpoint_duration_seconds_count": 1,
		"instanced_journal_compactions_total":                 1,
	})

	closeJournal(t, j)
	config, registry = measured(config)
	j = openJournal(t, config)
	j.maxBatches = 100
	metricstest.Expect(t, registry, spans)
}

func TestMetricsCountInstancesByState(t *testing.T) {
	config, registry := measured(testConfig(t))
	j, term := own(t, config)
	check := func() {
		t.Helper()
		want := make(map[string]float64)
		for _, state := range instance.States() {
			want[fmt.Sprintf("instanced_journal_instances{state=%q}", state.String())] = 0
		}
		for _, r := range j.Snapshot().Records {
			want[fmt.Sprintf("instanced_journal_instances{state=%q}", r.Instance.State.String())]++
		}
		metricstest.Expect(t, registry, want)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		n := random.IntN(20)
		if random.IntN(5) == 0 {
			remove(t, term, id(n))
		} else {
			set(t, term, id(n), instance.States()[random.IntN(6)])
		}
		check()
	}
	if err := term.checkpointer.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	set(t, term, id(1), instance.StateRunning)
	remove(t, term, id(2))
	closeJournal(t, j)
	config, registry = measured(config)
	j = openJournal(t, config)
	check()
}

func remove(t *testing.T, term *Term, id instance.ID) {
	t.Helper()
	if _, err := term.Update(t.Context(), func(tx *Tx) error {
		tx.Append(instance.Change{Before: &instance.Instance{ID: id}})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestMetricsTellWhoOwnsTheJournalAndWhetherItCanBeWritten(t *testing.T) {
	var free atomic.Int64
	free.Store(10 << 30)
	config, registry := measured(testConfig(t))
	j, err := openWith(t.Context(), config, func(string) (int64, error) { return free.Load(), nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeJournal(t, j) })
	metricstest.Expect(t, registry, map[string]float64{
		"instanced_journal_owner": 0, "instanced_journal_writable": 0, "instanced_journal_reachable": 1,
		"instanced_journal_terms_total": 0, "instanced_journal_lease_remaining_seconds": 0,
	})
	term := campaign(t, j)
	metricstest.Expect(t, registry, map[string]float64{
		"instanced_journal_owner": 1, "instanced_journal_writable": 1, "instanced_journal_terms_total": 1,
		"instanced_journal_owner_since_timestamp_seconds": seconds(j.view.listEpochs().last().startedAt),
		"instanced_journal_disk_free_bytes":               10 << 30,
		"instanced_journal_disk_min_free_bytes":           diskFloor,
	})
	free.Store(diskFloor - 1)
	j.disk.measured.Store(nil)
	metricstest.Expect(t, registry, map[string]float64{"instanced_journal_owner": 1, "instanced_journal_writable": 0, "instanced_journal_disk_free_bytes": diskFloor - 1})
	free.Store(10 << 30)
	j.disk.measured.Store(nil)
	_ = term.end(errNotOwner(errLost))
	metricstest.Expect(t, registry, map[string]float64{"instanced_journal_owner": 0, "instanced_journal_writable": 0})
	campaign(t, j)
	metricstest.Expect(t, registry, map[string]float64{"instanced_journal_owner": 1, "instanced_journal_terms_total": 2})
}

func TestMetricsTellThatTheDatabaseIsFull(t *testing.T) {
	config, registry := measured(testConfig(t))
	_, term := own(t, config)
	limit := metricstest.Samples(t, registry)["instanced_journal_database_max_bytes"]
	if limit != 2<<30 {
		t.Errorf("the limit is %v", limit)
	}
	term.limit.Store(1)
	got := metricstest.Samples(t, registry)
	if inUse, limit := got["instanced_journal_database_in_use_bytes"], got["instanced_journal_database_max_bytes"]; limit != 1 || inUse < limit || inUse > got["instanced_journal_database_bytes"] {
		t.Errorf("%v bytes of at most %v are in use", inUse, limit)
	}
	term.limit.Store(int64(limit))
}

// What is counted while a batch is written costs no allocation once a transition was seen.
func TestCountingABatchAllocatesNothing(t *testing.T) {
	config, _ := measured(testConfig(t))
	j, term := own(t, config)
	set(t, term, id(1), instance.StatePending)
	set(t, term, id(1), instance.StateRunning)
	batches := readAll(t, j, j.Oldest(), j.Head())
	now := time.Now()
	if n := testing.AllocsPerRun(100, func() {
		for _, b := range batches {
			j.metrics.committed(b, now)
		}
		j.metrics.commitDuration.Observe(0.001)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkCountingAChange is what the metrics add to a batch of one change: run it with
// go test ./internal/journal -run '^$' -bench CountingAChange -benchmem.
func BenchmarkCountingAChange(b *testing.B) {
	m := newMetrics(prometheus.NewRegistry())
	batch := newBatch(Position{Seq: 1}, 1)
	c := change(id(1), instance.StatePending)
	c.Type, c.Before, c.Source = instance.ChangeState, change(id(1), instance.StateStopped).After, instance.SourceAnswer
	batch.add(newEntry(c))
	b.ReportAllocs()
	for b.Loop() {
		began := time.Now()
		now := time.Now()
		m.commitDuration.Observe(now.Sub(began).Seconds())
		m.committed(batch, now)
	}
}

// A scrape waits neither for what is being written nor for maintenance, however long etcd takes.
func TestAScrapeWaitsForNoWorkOfTheJournal(t *testing.T) {
	config, registry := measured(testConfig(t))
	j, term := own(t, config)
	set(t, term, id(1), instance.StateRunning)
	for name, hold := range map[string]*mutex{"maintenance": &term.maintenance, "refresh": &j.refreshMu, "campaign": &j.campaign} {
		if err := hold.lock(t.Context()); err != nil {
			t.Fatal(name, err)
		}
		defer hold.unlock()
	}
	release, entered := make(chan struct{}), make(chan struct{})
	updated := make(chan error, 1)
	go func() {
		_, err := term.Update(t.Context(), func(*Tx) error { close(entered); <-release; return nil })
		updated <- err
	}()
	<-entered
	gathered := make(chan map[string]float64, 1)
	go func() { gathered <- metricstest.Samples(t, registry) }()
	select {
	case got := <-gathered:
		if got["instanced_journal_revision"] != 1 {
			t.Errorf("the scrape shows %v", got)
		}
	case <-time.After(10 * time.Second):
		t.Error("the scrape waits")
	}
	close(release)
	if err := <-updated; err != nil {
		t.Error(err)
	}
}

// A scrape costs the same for one instance as for a thousand.
func TestAScrapeDoesNotGoThroughTheFleet(t *testing.T) {
	config, registry := measured(testConfig(t))
	_, term := own(t, config)
	cost := func() float64 {
		return testing.AllocsPerRun(20, func() {
			if _, err := registry.Gather(); err != nil {
				t.Error(err)
			}
		})
	}
	set(t, term, id(0), instance.StateRunning)
	one := cost()
	if _, err := term.Update(t.Context(), func(tx *Tx) error {
		for n := range 1000 {
			tx.Append(change(id(n), instance.States()[n%6]))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if thousand := cost(); thousand > one+one/10 {
		t.Errorf("%v allocations for one instance, %v for a thousand", one, thousand)
	}
}

func TestAWriteOfAFormerOwnerIsCounted(t *testing.T) {
	config, registry := measured(testConfig(t))
	j, term := own(t, config)
	if _, err := j.store.client.Delete(t.Context(), j.store.keys.owner); err != nil {
		t.Fatal(err)
	}
	_, err := term.Update(t.Context(), func(tx *Tx) error { tx.Append(change(id(1), instance.StateRunning)); return nil })
	wantReason(t, err, instance.KindUnavailable, instance.ReasonNotOwner)
	metricstest.Expect(t, registry, map[string]float64{
		`instanced_journal_write_errors_total{reason="fenced"}`: 1,
		"instanced_journal_owner":                               0,
		`instanced_journal_changes_total{type="added"}`:         0,
		"instanced_journal_commit_duration_seconds_count":       0,
	})
}
