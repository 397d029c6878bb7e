package journal

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/instanced/instanced/internal/instance"
)

func TestAnUpdateFillsInWhatIsKnown(t *testing.T) {
	j, term := own(t, testConfig(t))
	steps := []struct {
		name   string
		change instance.Change
		want   instance.ChangeType
		before *instance.Instance
	}{
		{"the first record", change(id(1), instance.StateStopped), instance.ChangeAdded, nil},
		{"another state", change(id(1), instance.StatePending), instance.ChangeState, machine(id(1), instance.StateStopped)},
		{"the same state", change(id(1), instance.StatePending), instance.ChangeAttributes, machine(id(1), instance.StatePending)},
		{"no longer there", instance.Change{Before: &instance.Instance{ID: id(1)}}, instance.ChangeRemoved, machine(id(1), instance.StatePending)},
	}
	r := j.Read(j.Head())
	for _, step := range steps {
		t.Run(step.name, func(t *testing.T) {
			p, err := term.Update(t.Context(), func(tx *Tx) error {
				tx.Append(step.change)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			b, err := r.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got := b.Events[0].Change
			if b.Position != p || got.Type != step.want || !got.Before.Equal(step.before) {
				t.Errorf("at %v, type %d, before %+v; want %v, %d, %+v", b.Position, got.Type, got.Before, p, step.want, step.before)
			}
			record, ok := j.Get(id(1))
			if ok != (step.change.After != nil) {
				t.Fatalf("known: %v", ok)
			}
			if ok && (record.Position != p || record.Instance != got.After || record.Previous != got.Before || record.Cause != got.Cause || !record.ChangedAt.Equal(launch)) {
				t.Errorf("known is %+v", record)
			}
		})
	}
}

// Whether the change is read from memory, from the log or from the checkpoint.
func TestAChangeOfAttributesLeavesWhoBroughtTheStateAbout(t *testing.T) {
	config := testConfig(t)
	outside := change(id(1), instance.StatePending)
	outside.Cause, outside.After.Tags = instance.Cause{}, map[string]string{"team": "other"}
	j, term := own(t, config)
	want := change(id(1), instance.StatePending).Cause
	wantCause := func(j *Journal) {
		t.Helper()
		if record, _ := j.Get(id(1)); record.Cause != want || record.Instance.Tags["team"] != "other" {
			t.Errorf("brought about by %+v, want %+v", record.Cause, want)
		}
	}
	set(t, term, id(1), instance.StatePending)
	for range 2 {
		_, err := term.Update(t.Context(), func(tx *Tx) error {
			tx.Append(outside)
			if known, _ := tx.Get(id(1)); known.Cause != want {
				t.Errorf("within the update by %+v, want %+v", known.Cause, want)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	wantCause(j)
	replayed, _, err := j.read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if record, _ := replayed.get(id(1)); record.Cause != want {
		t.Errorf("replayed as brought about by %+v, want %+v", record.Cause, want)
	}
	closeJournal(t, j) // writes the checkpoint
	wantCause(openJournal(t, config))
}

func TestRemovingWhatIsNotKnownRecordsNothing(t *testing.T) {
	j, term := own(t, testConfig(t))
	head := j.Head()
	p, err := term.Update(t.Context(), func(tx *Tx) error {
		tx.Append(instance.Change{Before: machine(id(9), instance.StateStopped)})
		return nil
	})
	if err != nil || p != head || j.Head() != head {
		t.Errorf("position %v, %v, head %v; want %v", p, err, j.Head(), head)
	}
}

func TestAFailedUpdateRecordsNothingOfItself(t *testing.T) {
	j, term := own(t, testConfig(t))
	head := j.Head()
	refusal := errors.New("not now")
	_, err := term.Update(t.Context(), func(tx *Tx) error {
		tx.Append(change(id(1), instance.StateStopped))
		tx.PutToken(Token{Key: "once"})
		return refusal
	})
	if !errors.Is(err, refusal) {
		t.Errorf("error %v, want the function's own", err)
	}
	if _, ok := j.Get(id(1)); ok || j.Head() != head || j.Stats().ClientTokens != 0 {
		t.Error("something of it was recorded")
	}
}

func TestAPanickingUpdateFailsAlone(t *testing.T) {
	_, term := own(t, testConfig(t))
	_, err := term.Update(t.Context(), func(*Tx) error { panic("a bug") })
	wantReason(t, err, instance.KindInternal, "")
	if !strings.Contains(err.Error(), "a bug") {
		t.Errorf("the cause is lost: %v", err)
	}
	set(t, term, id(1), instance.StateStopped)
}

// Many callers want to start the same instance: one of them finds it stopped.
func TestAnUpdateSeesThoseBeforeIt(t *testing.T) {
	j, term := own(t, testConfig(t))
	set(t, term, id(1), instance.StateStopped)
	var wg sync.WaitGroup
	var mu sync.Mutex
	found := map[instance.State]int{}
	for range 100 {
		wg.Go(func() {
			var state instance.State
			p, err := term.Update(t.Context(), func(tx *Tx) error {
				record, _ := tx.Get(id(1))
				if state = record.Instance.State; state == instance.StateStopped {
					tx.Append(change(id(1), instance.StatePending))
				}
				if again, _ := tx.Get(id(1)); again.Instance.State != instance.StatePending {
					return fmt.Errorf("it is %s after the update", again.Instance.State)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
				return
			}
			// What it saw is visible and on disk when it returns.
			if record, _ := j.Get(id(1)); record.Instance.State != instance.StatePending || record.Position != p {
				t.Errorf("returned at %v; %s at %v is known", p, record.Instance.State, record.Position)
			}
			mu.Lock()
			defer mu.Unlock()
			found[state]++
		})
	}
	wg.Wait()
	if want := map[instance.State]int{instance.StateStopped: 1, instance.StatePending: 99}; !cmp.Equal(want, found) {
		t.Errorf("found %v, want %v", found, want)
	}
}

func TestTheChangesOfAnUpdateAreOneBatch(t *testing.T) {
	j, term := own(t, testConfig(t))
	r := j.Read(j.Head())
	p, err := term.Update(t.Context(), func(tx *Tx) error {
		for n := range 500 {
			tx.Append(change(id(n), instance.StateStopped))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.Next(t.Context())
	if err != nil || b.Position != p || len(b.Events) != 500 || j.Head() != p {
		t.Fatalf("a batch of %d at %v, %v; want all 500 at %v", len(b.Events), b.Position, err, p)
	}
	for i := range b.Events {
		if e := &b.Events[i]; e.Change.ID() != id(i) || e.Index != uint32(i) {
			t.Fatalf("event %d is %d, of %s", i, e.Index, e.Change.ID())
		}
	}
}

func TestALargeUpdateIsSplitInOrder(t *testing.T) {
	j, term := own(t, testConfig(t))
	const changes = 9000 // of about 400 bytes
	r := j.Read(j.Head())
	var end Position
	p, err := term.Update(t.Context(), func(tx *Tx) error {
		for n := range changes {
			tx.Append(change(id(n), instance.StateStopped))
		}
		end = tx.Position()
		tx.PutToken(Token{Key: "once", Answer: &Answer{EndCursor: j.Cursor(end)}})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if p != end || p != j.Head() || p.Seq < 3 {
		t.Errorf("it ends at %v, and said %v; the head is %v", p, end, j.Head())
	}
	seen := 0
	for r.Position() != p {
		b, err := r.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if b.Bytes > maxRequestBytes+64 {
			t.Errorf("a batch of %d bytes", b.Bytes)
		}
		for i := range b.Events {
			if got := b.Events[i].Change.ID(); got != id(seen) {
				t.Fatalf("event %d is of %s", seen, got)
			}
			seen++
		}
	}
	if seen != changes {
		t.Errorf("%d changes, want %d", seen, changes)
	}
	if record, _ := j.Get(id(changes - 1)); record.Position != p {
		t.Errorf("the last change is known at %v, want %v", record.Position, p)
	}
	token, ok, err := term.Token(t.Context(), "once")
	if !ok || err != nil || token.Answer.EndCursor != j.Cursor(p) {
		t.Errorf("the token is %+v, %v, %v", token, ok, err)
	}
}

func TestAnUpdateKnowsThePositionItWillReturn(t *testing.T) {
	j, term := own(t, testConfig(t))
	empty := j.Head()
	for _, c := range []struct {
		name    string
		changes int
	}{{"without changes", 0}, {"with one", 1}, {"with more than a batch takes", 4000}} {
		t.Run(c.name, func(t *testing.T) {
			head := j.Head()
			var said, saw Position
			got, err := term.Update(t.Context(), func(tx *Tx) error {
				said, saw = tx.Position(), tx.Head()
				for n := range c.changes {
					tx.Append(change(id(n), instance.StateStopped))
				}
				return nil
			})
			if err != nil || said != got || saw != head || got != j.Head() {
				t.Errorf("said %v, returned %v, %v; saw %v, the head was %v", said, got, err, saw, head)
			}
			if c.changes == 0 && got != empty {
				t.Errorf("nothing was recorded, and the position is %v", got)
			}
		})
	}
}

func TestAnUpdateWhoseCallerLeavesIsWritten(t *testing.T) {
	j, term := own(t, testConfig(t))
	ctx, cancel := context.WithCancel(t.Context())
	_, err := term.Update(ctx, func(tx *Tx) error {
		cancel()
		tx.Append(change(id(1), instance.StateStopped))
		return nil
	})
	if err != nil { // else it was written before the caller noticed
		e := wantError(t, err, instance.KindUnavailable, instance.ReasonJournalUnavailable)
		if !e.OutcomeUnknown || !errors.Is(err, context.Canceled) {
			t.Errorf("error %v does not say that the outcome is unknown", err)
		}
	}
	set(t, term, id(2), instance.StateStopped) // waits for the batch before
	if _, ok := j.Get(id(1)); !ok {
		t.Error("the update is not written")
	}
}

func TestTheOutcomeOfAnUpdateThatHasNotBegunIsKnown(t *testing.T) {
	_, term := own(t, testConfig(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := term.Update(ctx, func(*Tx) error { return nil }); !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "unknown") {
		t.Errorf("error %v, want the context's", err)
	}
	started, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = term.Update(t.Context(), func(*Tx) error { close(started); <-release; return nil })
	})
	<-started
	ctx, cancel = context.WithCancel(t.Context())
	wg.Go(func() {
		_, err := term.Update(ctx, func(*Tx) error { t.Error("it was run"); return nil })
		if !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "unknown") {
			t.Errorf("error %v, want the context's", err)
		}
		close(release)
	})
	cancel()
	wg.Wait()
}

func TestTimesInTheLogNeverDecrease(t *testing.T) {
	j, term := own(t, testConfig(t))
	ahead := launch.AddDate(100, 0, 0)
	j.view.mu.Lock()
	j.view.recordedAt = ahead // as after the clock was put back
	j.view.mu.Unlock()
	r := j.Read(j.Head())
	set(t, term, id(1), instance.StateStopped)
	b, err := r.Next(t.Context())
	if err != nil || !b.RecordedAt.Equal(ahead) {
		t.Errorf("recorded at %v, %v; the record before is of %v", b.RecordedAt, err, ahead)
	}
}

// etcd counts its fsyncs. With one write at a time, each must come after one.
func TestAWALFsyncLiesBetweenAWriteAndItsReply(t *testing.T) {
	_, term := own(t, testConfig(t))
	for n := range 20 {
		before := fsyncs(t)
		set(t, term, id(n), instance.StateStopped)
		if after := fsyncs(t); after <= before {
			t.Fatalf("write %d was acknowledged without an fsync: %d before, %d after", n, before, after)
		}
	}
}

func fsyncs(t *testing.T) uint64 {
	t.Helper()
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "etcd_disk_wal_fsync_duration_seconds" {
			return f.GetMetric()[0].GetHistogram().GetSampleCount()
		}
	}
	t.Fatal("etcd does not count its fsyncs")
	return 0
}
