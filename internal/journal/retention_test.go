package journal

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/instanced/instanced/internal/instance"
)

func TestHistoryIsTrimmedByAge(t *testing.T) {
	j, term := own(t, testConfig(t))
	for n := range 50 {
		set(t, term, id(n), instance.StateStopped)
	}
	old := j.Head()
	b := readAll(t, j, j.Oldest(), old)
	between := b[len(b)-1].RecordedAt.Add(time.Nanosecond)
	for n := range 50 {
		set(t, term, id(n), instance.StatePending)
	}
	if err := term.checkpointer.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := term.trim(t.Context(), between.Add(24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if j.Oldest() != old {
		t.Errorf("the oldest is %v, want %v", j.Oldest(), old)
	}
	readAll(t, j, j.Oldest(), j.Head())

	before := old
	before.Seq--
	_, err := j.Resolve(t.Context(), j.Cursor(before))
	e := wantError(t, err, instance.KindOutOfRange, instance.ReasonCursorExpired)
	if got, err := j.Resolve(t.Context(), e.Metadata[MetadataOldestCursor]); err != nil || got != old {
		t.Errorf("the oldest cursor resolves to %v, %v, want %v", got, err, old)
	}
}

func TestHistoryIsTrimmedBySize(t *testing.T) {
	config := testConfig(t)
	config.RingBytes = 1000
	j := openJournal(t, config)
	j.config.MaxBytes = 100_000 // less than can be asked for
	term := campaign(t, j)
	parked := j.Read(j.Head())
	for n := range 500 {
		set(t, term, id(n%5), instance.States()[n%6])
	}
	if err := term.checkpointer.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := term.trim(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	s := j.Stats()
	if s.Bytes > 90_000 || s.Bytes < 85_000 {
		t.Errorf("%d bytes are kept, want just below 90,000", s.Bytes)
	}
	readAll(t, j, j.Oldest(), j.Head())
	resp, err := j.store.client.Get(t.Context(), j.store.keys.log, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	var sum uint64
	for _, kv := range resp.Kvs {
		sum += uint64(len(kv.Value))
	}
	if sum != s.Bytes {
		t.Errorf("%d bytes are kept, and %d are told", sum, s.Bytes)
	}
	_, err = parked.Next(t.Context())
	wantReason(t, err, instance.KindOutOfRange, instance.ReasonCursorExpired)
}

func TestHistoryIsTrimmedByTheNumberOfItsBatches(t *testing.T) {
	j := openJournal(t, testConfig(t))
	if want := uint64(1 << 20); j.maxBatches != want {
		t.Errorf("%d batches are kept of 1 GiB, want %d", j.maxBatches, want)
	}
	j.maxBatches = 100
	term := campaign(t, j)
	for n := range 150 {
		set(t, term, id(1), instance.States()[n%2])
	}
	if err := term.checkpointer.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := term.trim(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if s := j.Stats(); s.Batches != 90 {
		t.Errorf("%d batches are kept, want 90", s.Batches)
	}
	readAll(t, j, j.Oldest(), j.Head())
}

func TestTrimmingKeepsWhatAStartNeeds(t *testing.T) {
	config := testConfig(t)
	j, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	term := campaign(t, j)
	set(t, term, id(1), instance.StateStopped)
	if err := term.checkpointer.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkpoint := j.Head()
	churn(t, term, 1, 10)
	// All of it is too old and too much, but what follows the checkpoint stays.
	trimTo(t, term, time.Now().Add(time.Hour), 0)
	if got := j.Oldest().Seq; got != checkpoint.Seq-1 {
		t.Errorf("oldest is %d, and the checkpoint is at %d", got, checkpoint.Seq)
	}
	if err := term.checkpointer.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	trimTo(t, term, time.Now().Add(time.Hour), 0)
	head, want := j.Head(), contents(j.Snapshot())
	if got := j.Oldest().Seq; got != head.Seq-1 {
		t.Errorf("oldest is %d, and the last batch is %d", got, head.Seq)
	}
	closeJournal(t, j)

	j, term = own(t, config)
	if diff := cmp.Diff(want, contents(j.Snapshot())); j.Head() != head || diff != "" {
		t.Errorf("head %v, want %v; instances (-before +after):\n%s", j.Head(), head, diff)
	}
	if p := set(t, term, id(1), instance.StateStopped); p.Seq != head.Seq+1 {
		t.Errorf("the log goes on at %v", p)
	}
}

func TestSearchFindsTheFirstThatIsKept(t *testing.T) {
	for length := range uint64(20) {
		for cut := uint64(5); cut <= 5+length; cut++ {
			got, err := search(5, 5+length, func(n uint64) (bool, error) { return n < cut, nil })
			if err != nil || got != cut {
				t.Errorf("of %d, %d: %v, %v", length, cut, got, err)
			}
		}
	}
}

// The checkpoint is written at random times; a start from it and the rest of the
// log must know what a fold of the whole log knows.
func TestACheckpointAndTheRestOfTheLogAreTheFold(t *testing.T) {
	config := testConfig(t)
	j, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	from := j.Head()
	for round := range uint64(5) {
		term := campaign(t, j)
		churn(t, term, round, 10)
		if err := term.checkpointer.write(t.Context()); err != nil {
			t.Fatal(err)
		}
		churn(t, term, 100+round, 10)
		if round%2 == 0 {
			// As after a crash: instances were written, but not how far they reach.
			records, head, _ := j.view.collectUnsaved()
			j.view.restoreUnsaved(records)
			ops := []clientv3.Op{j.store.putCheckpoint(term.checkpointer.saved.Load().seq, nil)}
			for id, record := range records {
				key := j.store.keys.instances + string(id)
				if record == nil {
					ops = append(ops, clientv3.OpDelete(key))
				} else {
					ops = append(ops, putBytes(key, j.store.seal(appendRecord(j.store.reserveSeal(nil), record), 0, key)))
				}
			}
			if err := term.change(t.Context(), head, ops...); err != nil {
				t.Fatal(err)
			}
		}
		_ = term.end(errClosed()) // no checkpoint at the end
		term.work.Wait()
		head := j.Head()
		closeJournal(t, j)
		if j, err = Open(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		if j.Head() != head {
			t.Fatalf("round %d: the head was %v, and is %v", round, head, j.Head())
		}
		if diff := cmp.Diff(fold(readAll(t, j, from, head)), contents(j.Snapshot())); diff != "" {
			t.Fatalf("round %d (-fold +known):\n%s", round, diff)
		}
	}
	closeJournal(t, j)
}

// noise is a text that cannot be compressed.
func noise(size int) string {
	letters := make([]byte, size)
	for i := range letters {
		letters[i] = byte('0' + rand.IntN(75))
	}
	return string(letters)
}

// It is used up long before it is looked regularly whether a checkpoint is due, without
// which no history can be trimmed.
func TestWritesGoOnAfterEtcdsQuotaWasUsedUp(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 200 MB")
	}
	config := testConfig(t)
	config.MaxBytes = 20 << 20 // the quota is then the least that there is, 64 MiB
	j, term := own(t, config)
	filler := noise(400_000)
	last := j.Head()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for n := 0; n < 200 || j.Oldest().Seq == 0; { // room is made beside the writes
		p, err := term.Update(ctx, func(tx *Tx) error {
			c := change(id(n%3), instance.States()[n%6])
			c.After.Tags["filler"] = filler
			tx.Append(c)
			return nil
		})
		if err != nil {
			// Refused at once while room is being made: nothing is lost, try again.
			wantReason(t, err, instance.KindExhausted, instance.ReasonJournalFull)
			time.Sleep(time.Millisecond)
			continue
		}
		last = p
		n++
	}
	if j.Head() != last {
		t.Errorf("the head is %v, want %v", j.Head(), last)
	}
	readAll(t, j, j.Oldest(), j.Head())
	if resp, err := j.store.client.AlarmList(t.Context()); err != nil || len(resp.Alarms) > 0 {
		t.Errorf("alarms are on: %v, %v", resp, err)
	}
}

// A process that ended while etcd's quota was used up must be able to start again.
func TestATermBeginsAfterEtcdsQuotaWasUsedUp(t *testing.T) {
	config := testConfig(t)
	j, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	set(t, campaign(t, j), id(1), instance.StateStopped)
	head := j.Head()
	if _, err := j.server.Server.Alarm(t.Context(), &etcdserverpb.AlarmRequest{
		Action: etcdserverpb.AlarmRequest_ACTIVATE,
		Alarm:  etcdserverpb.AlarmType_NOSPACE,
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = j.Close(ctx) // no checkpoint can be written

	_, term := own(t, config)
	if p := set(t, term, id(1), instance.StatePending); p.Seq != head.Seq+1 {
		t.Errorf("the log goes on at %v, after %v", p, head)
	}
}

func TestACheckpointIsDueAfterAWhileAndAfterMuchWasWritten(t *testing.T) {
	config := testConfig(t)
	config.MaxBytes = MinMaxBytes
	_, term := own(t, config)
	written := func(now time.Time) bool {
		before := term.checkpointer.saved.Load()
		if err := term.checkpointer.writeIfDue(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		return term.checkpointer.saved.Load() != before
	}
	set(t, term, id(1), instance.StatePending)
	if err := term.checkpointer.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	set(t, term, id(1), instance.StateRunning)
	if written(time.Now()) {
		t.Error("it was written although hardly anything had changed since the last one")
	}
	if !written(time.Now().Add(checkpointInterval)) {
		t.Error("it was not written after a minute")
	}
	_, err := term.Update(t.Context(), func(tx *Tx) error {
		for n := range MinMaxBytes / 10 / 200 {
			c := change(id(n), instance.StateStopping)
			c.After.Tags["noise"] = noise(200)
			tx.Append(c)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !written(time.Now()) {
		t.Error("it was not written although a tenth of what is kept had been written since the last one")
	}
}

// A reader that retention has passed has the view compared with etcd, while the writer goes on
// and history may be trimmed beyond what was the end of the view when the comparison began.
func TestATermOutlivesHistoryThatIsTrimmedWhileTheViewIsCompared(t *testing.T) {
	j, term := own(t, testConfig(t))
	set(t, term, id(1), instance.StateStopped)
	known := j.view.tip()
	set(t, term, id(1), instance.StatePending)
	set(t, term, id(1), instance.StateRunning)
	if err := term.checkpointer.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	trimTo(t, term, time.Now().Add(time.Hour), 0)
	if j.Oldest().Seq <= known.head.Seq {
		t.Fatalf("batch %d is kept", known.head.Seq)
	}
	if err := j.refreshMu.lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := j.refreshFromLocked(t.Context(), known)
	j.refreshMu.unlock()
	if err != nil {
		t.Errorf("refresh: %v", err)
	}
	if err := term.Err(); err != nil {
		t.Errorf("the term has ended: %v", err)
	}
	set(t, term, id(1), instance.StateStopping)
}
