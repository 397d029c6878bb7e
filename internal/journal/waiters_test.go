package journal

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal/codec"
)

// next is what Next of a reader returned.
type next struct {
	batch *Batch
	err   error
}

// nextOf calls Next, and returns once the reader waits at the end of the log.
func nextOf(ctx context.Context, j *Journal, r *Reader) <-chan next {
	came := make(chan next, 1)
	go func() {
		b, err := r.Next(ctx)
		came <- next{b, err}
	}()
	for waits := false; !waits; runtime.Gosched() {
		j.view.waiters.mu.Lock()
		waits = r.waiter.waiting
		j.view.waiters.mu.Unlock()
	}
	return came
}

func TestAReaderOfSomeInstancesPassesOverTheChangesOfOthers(t *testing.T) {
	j, term := own(t, testConfig(t))
	r := j.ReadOf([]instance.ID{id(1), id(3)}, j.Head())
	defer r.Close()
	for range 3 {
		came := nextOf(t.Context(), j, r)
		for range 5 {
			set(t, term, id(2), instance.StatePending)
		}
		select {
		case n := <-came:
			t.Fatalf("it was woken for %v, %v", n.batch, n.err)
		default:
		}
		p := set(t, term, id(3), instance.StatePending)
		set(t, term, id(2), instance.StateRunning)
		if n := <-came; n.err != nil || n.batch.Position != p || r.Position() != p {
			t.Fatalf("it came to %v, %v; want %v", r.Position(), n.err, p)
		}
		// Where it does not wait it gets what there is.
		if b, err := r.Next(t.Context()); err != nil || b.Position.Seq != p.Seq+1 {
			t.Fatalf("then came %v, %v", b, err)
		}
	}
}

func TestAReaderOfSomeInstancesWhoseTimeIsOverHasPassedOverAllThatWasRecorded(t *testing.T) {
	j, term := own(t, testConfig(t))
	r := j.ReadOf([]instance.ID{id(1)}, j.Head())
	defer r.Close()
	ctx, cancel := context.WithCancel(t.Context())
	came := nextOf(ctx, j, r)
	head := set(t, term, id(2), instance.StatePending)
	cancel()
	if n := <-came; !errors.Is(n.err, context.Canceled) || r.Position() != head {
		t.Errorf("it ended at %v with %v, want %v", r.Position(), n.err, head)
	}
}

// What is in the log that is read anew, and was never published, is not passed over.
func TestAReaderOfSomeInstancesHearsOfALogThatIsReadAnew(t *testing.T) {
	j, term := own(t, testConfig(t))
	set(t, term, id(2), instance.StatePending)
	r := j.ReadOf([]instance.ID{id(1)}, j.Head())
	defer r.Close()
	came := nextOf(t.Context(), j, r)
	c := change(id(1), instance.StatePending)
	tip, k := j.view.tip(), j.store.keys
	value := codec.AppendHeader(codec.AppendChange(j.store.reserveSeal(nil), &c), tip.head.Epoch, tip.recordedAt, tip.bytes)
	value = j.store.seal(value, 0, k.logKey(tip.head.Seq+1))
	if _, err := j.store.client.Txn(t.Context()).Then(
		putBytes(k.logKey(tip.head.Seq+1), value), j.store.putHead(tip.head.Seq+1),
	).Commit(); err != nil {
		t.Fatal(err)
	}
	if err := j.refreshMu.lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := j.loadLocked(t.Context())
	j.refreshMu.unlock()
	if err != nil {
		t.Fatal(err)
	}
	if n := <-came; n.err != nil || n.batch.Position.Seq != tip.head.Seq+1 {
		t.Errorf("then came %v, %v; want what follows %v", n.batch, n.err, tip.head)
	}
}

func TestReadersOfSomeInstancesEndWhenTheJournalIsClosed(t *testing.T) {
	j, err := Open(t.Context(), testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	r := j.ReadOf([]instance.ID{id(1)}, j.Head())
	defer r.Close()
	came := nextOf(t.Context(), j, r)
	closeJournal(t, j)
	wantReason(t, (<-came).err, instance.KindUnavailable, instance.ReasonJournalUnavailable)
}

func TestAReaderThatIsClosedIsNoLongerKept(t *testing.T) {
	j := openJournal(t, testConfig(t))
	a, b := j.ReadOf([]instance.ID{id(1), id(2)}, j.Head()), j.ReadOf([]instance.ID{id(2)}, j.Head())
	a.Close()
	b.Close()
	if n := len(j.view.waiters.of); n != 0 {
		t.Errorf("%d instances have waiters, want none", n)
	}
}

// Each reads of its instances what the whole log has of them, whether it is woken, gives up
// and comes back, or falls behind what is held in memory.
func TestReadersOfSomeInstancesMissNothingWhileTheLogGrows(t *testing.T) {
	const readers, changes = 12, 400
	config := testConfig(t)
	config.RingBytes = 20_000
	j, term := own(t, config)
	from := j.Head()
	last := set(t, term, id(99), instance.StateStopped) // it ends every reader
	var writing, reading sync.WaitGroup
	got := make([][]string, readers)
	wanted := make([][]instance.ID, readers)
	for n := range readers {
		wanted[n] = []instance.ID{id(n % 5), id(rand.IntN(8)), id(99)}
		r := j.ReadOf(wanted[n], last)
		reading.Go(func() {
			defer r.Close()
			for {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+rand.IntN(30))*time.Millisecond)
				b, err := r.Next(ctx)
				cancel()
				if errors.Is(err, context.DeadlineExceeded) {
					continue
				}
				if err != nil {
					t.Errorf("reader %d: %v", n, err)
					return
				}
				lines := linesOf(b, wanted[n])
				got[n] = append(got[n], lines...)
				if len(linesOf(b, []instance.ID{id(99)})) > 0 {
					return
				}
			}
		})
	}
	for writer := range 4 {
		writing.Go(func() {
			for n := range changes / 4 {
				set(t, term, id(writer*2+n%2), instance.States()[n%6])
				if n%10 == 0 {
					time.Sleep(time.Millisecond) // so that some readers wait
				}
			}
		})
	}
	writing.Wait()
	set(t, term, id(99), instance.StateRunning)
	reading.Wait()
	all := readAll(t, j, from, j.Head())
	for n := range readers {
		var want []string
		for _, b := range all {
			if b.Position.Seq > last.Seq {
				want = append(want, linesOf(b, wanted[n])...)
			}
		}
		if diff := cmp.Diff(want, got[n]); diff != "" {
			t.Errorf("reader %d of %v (-log +reader):\n%s", n, wanted[n], diff)
		}
	}
}

// linesOf writes down the changes of some instances in a batch.
func linesOf(b *Batch, ids []instance.ID) (lines []string) {
	for i := range b.Events {
		if c := b.Events[i].Change; slices.Contains(ids, c.ID()) {
			lines = append(lines, fmt.Sprint(b.Position, i, c.ID(), c.After.State))
		}
	}
	return lines
}
