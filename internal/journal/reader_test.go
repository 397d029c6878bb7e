package journal

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal/codec"
)

// readAll reads up to a position, and checks that nothing is missing or doubled.
func readAll(t *testing.T, j *Journal, from, to Position) []*Batch {
	t.Helper()
	var batches []*Batch
	for r := j.Read(from); r.Position() != to; {
		before := r.Position()
		b, err := r.Next(t.Context())
		if err != nil {
			t.Fatalf("after %v: %v", before, err)
		}
		if b.Position.Seq != before.Seq+1 || b.Position != r.Position() {
			t.Fatalf("after %v came %v", before, b.Position)
		}
		batches = append(batches, b)
	}
	return batches
}

func TestAReaderSeesTheSameFromTheRingAndFromTheLog(t *testing.T) {
	for name, ring := range map[string]int64{
		"all from the ring":        1 << 20,
		"from both":                4000,
		"all but one from the log": 1,
	} {
		t.Run(name, func(t *testing.T) {
			config := testConfig(t)
			config.RingBytes = ring
			j, term := own(t, config)
			from := j.Head()
			var want []string
			for n := range 300 {
				p := set(t, term, id(n%7), instance.States()[n%6])
				want = append(want, fmt.Sprint(p, id(n%7), instance.States()[n%6]))
			}
			var got []string
			for _, b := range readAll(t, j, from, j.Head()) {
				e := &b.Events[0]
				got = append(got, fmt.Sprint(b.Position, e.Change.ID(), e.Change.After.State))
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if s := j.Stats(); s.RingBytes > ring && s.RingBatches > 1 {
				t.Errorf("the ring has %d bytes in %d batches, more than %d", s.RingBytes, s.RingBatches, ring)
			}
		})
	}
}

func TestAgainReadsABatchThatIsNoLongerHeld(t *testing.T) {
	config := testConfig(t)
	config.RingBytes = 1
	j, term := own(t, config)
	r := j.Read(j.Head())
	for n := range 20 {
		set(t, term, id(n), instance.StateStopped)
	}
	b, err := r.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := r.Again(t.Context()); again != b || err != nil {
		t.Errorf("it is read again although it is there: %v", err)
	}
	want, at := b.Events[0].Change, b.Position
	b = nil
	runtime.GC()
	if r.last.Value() != nil {
		t.Fatal("the reader holds the batch")
	}
	again, err := r.Again(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, again.Events[0].Change); diff != "" || again.Position != at || r.Position() != at {
		t.Errorf("at %v and %v, want %v:\n%s", again.Position, r.Position(), at, diff)
	}
	if next, err := r.Next(t.Context()); err != nil || next.Position.Seq != at.Seq+1 {
		t.Errorf("then comes %v, %v", next, err)
	}

	j.view.setOldest(at.Seq+1, codec.Header{})
	runtime.GC()
	_, err = r.Again(t.Context())
	wantReason(t, err, instance.KindOutOfRange, instance.ReasonCursorExpired)
}

// Readers begin anywhere, while the log grows and the ring moves on under them.
func TestReadersMissNothingWhileTheLogGrows(t *testing.T) {
	config := testConfig(t)
	config.RingBytes = 2000
	j, term := own(t, config)
	from := j.Head()
	const batches = 400
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			r := j.Read(from)
			for r.Position().Seq < batches {
				before := r.Position().Seq
				b, err := r.Next(t.Context())
				if err != nil || b.Position.Seq != before+1 {
					t.Errorf("after %d: %v", before, err)
					return
				}
			}
		})
	}
	for n := range batches {
		set(t, term, id(n), instance.StateStopped)
	}
	wg.Wait()
}

func TestAReaderAtTheHeadWaits(t *testing.T) {
	j, term := own(t, testConfig(t))
	r := j.Read(j.Head())
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := r.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want that of the context", err)
	}
	got := make(chan Position)
	go func() {
		b, err := r.Next(t.Context())
		if err != nil {
			t.Error(err)
		}
		got <- b.Position
	}()
	if p := set(t, term, id(1), instance.StateStopped); p != <-got {
		t.Error("it was woken by something else")
	}
}

func TestReadersEndWhenTheJournalIsClosed(t *testing.T) {
	j, err := Open(t.Context(), testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		_, err := j.Read(j.Head()).Next(context.Background())
		ended <- err
	}()
	closeJournal(t, j)
	wantReason(t, <-ended, instance.KindUnavailable, instance.ReasonJournalUnavailable)
	if _, err := j.Campaign(t.Context()); err == nil {
		t.Error("a closed journal can be owned")
	}
}

func TestAnEncodingIsMadeOnceForAllReaders(t *testing.T) {
	j, term := own(t, testConfig(t))
	from := j.Head()
	set(t, term, id(1), instance.StateStopped)
	var mu sync.Mutex
	made := 0
	encode := func() []byte {
		mu.Lock()
		defer mu.Unlock()
		made++
		return []byte("encoded")
	}
	encodeAll := func() [][]byte { return [][]byte{encode()} }
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			b, err := j.Read(from).Next(t.Context())
			if err != nil || string(b.Memo(encodeAll)[0]) != "encoded" || string(b.Events[0].Memo(encode)) != "encoded" {
				t.Errorf("%v", err)
			}
		})
	}
	wg.Wait()
	if made != 2 {
		t.Errorf("made %d times, want once for the batch and once for the event", made)
	}
}

// fold is what a snapshot has to be, found the slow way.
func fold(batches []*Batch) map[instance.ID]string {
	known := map[instance.ID]string{}
	for _, b := range batches {
		for i := range b.Events {
			e := &b.Events[i]
			if e.Change.After == nil {
				delete(known, e.Change.ID())
			} else {
				known[e.Change.ID()] = fmt.Sprint(e.Change.After.State, b.Position, e.Index)
			}
		}
	}
	return known
}

func contents(s Snapshot) map[instance.ID]string {
	known := map[instance.ID]string{}
	for _, r := range s.Records {
		known[r.Instance.ID] = fmt.Sprint(r.Instance.State, r.Position, r.Index)
	}
	return known
}

// churn records random additions, changes and removals, in batches of many.
func churn(t testing.TB, term *Term, seed uint64, updates int) {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 0))
	for range updates {
		_, err := term.Update(t.Context(), func(tx *Tx) error {
			for range 1 + random.IntN(10) {
				id := id(random.IntN(50))
				if random.IntN(4) == 0 {
					tx.Append(instance.Change{Before: &instance.Instance{ID: id}})
				} else {
					tx.Append(change(id, instance.States()[random.IntN(6)]))
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestASnapshotIsTheFoldUpToItsPosition(t *testing.T) {
	j, term := own(t, testConfig(t))
	from := j.Head()
	for round := range uint64(20) {
		churn(t, term, round, 10)
		s := j.Snapshot()
		if s.Position != j.Head() {
			t.Fatalf("a snapshot at %v, and the head is %v", s.Position, j.Head())
		}
		if diff := cmp.Diff(fold(readAll(t, j, from, s.Position)), contents(s)); diff != "" {
			t.Fatalf("round %d (-fold +snapshot):\n%s", round, diff)
		}
		for i := range s.Records[1:] {
			if s.Records[i].Instance.ID >= s.Records[i+1].Instance.ID {
				t.Fatal("the snapshot is not sorted by id")
			}
		}
	}
	if a, b := j.Snapshot(), j.Snapshot(); &a.Records[0] != &b.Records[0] {
		t.Error("two snapshots at one position are not shared")
	}
}

func TestSnapshotsWhileTheLogGrowsAreFolds(t *testing.T) {
	j, term := own(t, testConfig(t))
	from := j.Head()
	var wg sync.WaitGroup
	snapshots := make([][]Snapshot, 4)
	done := make(chan struct{})
	for i := range snapshots {
		wg.Go(func() {
			for len(snapshots[i]) < 2000 {
				select {
				case <-done:
					return
				default:
					snapshots[i] = append(snapshots[i], j.Snapshot())
				}
			}
		})
	}
	churn(t, term, 1, 100)
	close(done)
	wg.Wait()
	folds := map[Position]map[instance.ID]string{from: {}}
	batches := readAll(t, j, from, j.Head())
	for i, b := range batches {
		folds[b.Position] = fold(batches[:i+1])
	}
	for _, s := range snapshots {
		for n := range s {
			if n > 0 && s[n].Position == s[n-1].Position {
				continue
			}
			if diff := cmp.Diff(folds[s[n].Position], contents(s[n])); diff != "" {
				t.Fatalf("at %v (-fold +snapshot):\n%s", s[n].Position, diff)
			}
		}
	}
}

func TestHistoryIsInPages(t *testing.T) {
	j, term := own(t, testConfig(t))
	from := j.Head()
	var want []string
	for n := range 60 {
		p := set(t, term, id(n%3), instance.States()[n%6])
		if n%3 != 1 {
			want = append(want, fmt.Sprint(p, id(n%3)))
		}
	}
	var got []string
	pages := 0
	for after, done := from, false; !done; pages++ {
		page, err := j.History(t.Context(), "", []instance.ID{id(0), id(2)}, after, 7)
		if err != nil {
			t.Fatal(err)
		}
		if len(page.Entries) > 7 {
			t.Errorf("a page of %d, want 7", len(page.Entries))
		}
		for _, e := range page.Entries {
			got = append(got, fmt.Sprint(e.Position, e.Change.ID()))
		}
		after, done = page.Next, page.Done
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if pages < len(want)/7 {
		t.Errorf("%d pages", pages)
	}
	all, err := j.History(t.Context(), "", nil, from, 1000)
	if err != nil || len(all.Entries) != 60 || !all.Done || all.Next != j.Head() {
		t.Errorf("without ids: %d events, done %v at %v, %v", len(all.Entries), all.Done, all.Next, err)
	}
	_, err = j.History(t.Context(), "", nil, Position{from.Epoch + 1, 0}, 10)
	wantReason(t, err, instance.KindOutOfRange, instance.ReasonCursorRolledBack)
}

// Batches of all sizes: a page is limited in bytes, however many batches it has.
func TestPagesAreLimitedInBytes(t *testing.T) {
	j, term := own(t, testConfig(t))
	from := j.Head()
	for n := range 200 {
		_, err := term.Update(t.Context(), func(tx *Tx) error {
			c := change(id(n), instance.StateStopped)
			c.After.Tags["filler"] = strings.Repeat("x", (n%20)*4000)
			tx.Append(c)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	p := pager{store: j.store}
	for seq := from.Seq; seq < j.Head().Seq; {
		page, err := p.next(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		size := 0
		for _, s := range page {
			size += len(s.kv.Value)
			if seq++; s.seq != seq {
				t.Fatalf("batch %d, want %d", s.seq, seq)
			}
		}
		if size > maxPageBytes && len(page) > 1 {
			t.Errorf("a page of %d bytes", size)
		}
	}
}

func TestAGapOfAnyWidthIsNotTheEndOfTheLog(t *testing.T) {
	j, term := own(t, testConfig(t))
	from := j.Head().Seq
	for range 2 * firstPage {
		set(t, term, id(1), instance.StateStopped)
	}
	end := j.Head().Seq
	k := &j.store.keys
	if _, err := j.store.client.Delete(t.Context(), k.logKey(from+1), clientv3.WithRange(k.logKey(end))); err != nil {
		t.Fatal(err)
	}
	p := pager{store: j.store}
	if page, err := p.next(t.Context(), from); !errors.Is(err, errGap) {
		t.Errorf("after a gap of %d batches: %v, %v", end-1-from, page, err)
	}
	if page, err := p.next(t.Context(), end); len(page) != 0 || err != nil {
		t.Errorf("at the end of the log: %v, %v", page, err)
	}
}

// TestManyReadersOfOneCallerLeavePagesForOthers has one caller have far more readers behind
// the ring than pages are read at once, none of which comes back: another's page is read.
func TestManyReadersOfOneCallerLeavePagesForOthers(t *testing.T) {
	config := testConfig(t)
	config.RingBytes = 1
	j, term := own(t, config)
	from := j.Head()
	for n := range 10 {
		set(t, term, id(n), instance.StateStopped)
	}
	// Its reads of pages do not end: each place that it gets is kept.
	ctx, cancel := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	var got atomic.Int64
	for range 50 * maxPageReads {
		flood.Go(func() {
			if leave, err := j.pageReads.Enter(ctx, "flood"); err == nil {
				got.Add(1)
				<-ctx.Done()
				leave()
			}
		})
	}
	for got.Load() < maxPageReads/2 {
		runtime.Gosched()
	}
	for _, caller := range []string{"alice", ""} {
		b, err := j.Read(from).For(caller).Next(t.Context())
		if err != nil || b.Position.Seq != from.Seq+1 {
			t.Errorf("%q: %v, %v", caller, b, err)
		}
		page, err := j.History(t.Context(), caller, nil, from, 5)
		if err != nil || len(page.Entries) != 5 {
			t.Errorf("%q: %d events, %v", caller, len(page.Entries), err)
		}
	}
	if n := got.Load(); n != maxPageReads/2 {
		t.Errorf("the flood has %d places of %d", n, maxPageReads)
	}
	cancel()
	flood.Wait()
}
