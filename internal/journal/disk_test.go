package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/instanced/instanced/internal/instance"
)

// onDisk opens a journal on a disk that has as much free space as free says, and
// becomes its owner.
func onDisk(t *testing.T, c Config, free *atomic.Int64) (*Journal, *Term) {
	t.Helper()
	c.MinFreeDisk = 0
	j, err := openWith(t.Context(), c, func(string) (int64, error) { return free.Load(), nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeJournal(t, j) })
	return j, campaign(t, j)
}

func TestAFullDiskIsWrittenToOnceThereIsSpaceAgain(t *testing.T) {
	var free atomic.Int64
	free.Store(1 << 30)
	j, term := onDisk(t, testConfig(t), &free)
	set(t, term, id(1), instance.StateStopped)
	head := j.Head()
	if err := term.checkpointer.write(t.Context()); err != nil {
		t.Fatal(err)
	}

	// An update that is under way waits, because it may have been done already.
	type answer struct {
		position Position
		err      error
	}
	answers := make(chan answer, 1)
	go func() {
		p, err := term.Update(t.Context(), func(tx *Tx) error {
			j.disk.floor.Store(1 << 40)
			tx.Append(change(id(1), instance.StatePending))
			return nil
		})
		answers <- answer{p, err}
	}()
	await(t, func() bool { return term.writer.stalled.Load() != nil })

	wantReason(t, term.Writable(), instance.KindExhausted, instance.ReasonJournalFull)
	_, err := term.Update(t.Context(), func(*Tx) error { t.Error("an update is run"); return nil })
	wantReason(t, err, instance.KindExhausted, instance.ReasonJournalFull)
	if record, ok := j.Get(id(1)); !ok || record.Instance.State != instance.StateStopped || j.Head() != head {
		t.Errorf("known is %v, %t at %v, want what was before", record, ok, j.Head())
	}
	readAll(t, j, j.Oldest(), head)
	wantReason(t, term.makeRoom(t.Context()), instance.KindExhausted, instance.ReasonJournalFull)
	select {
	case a := <-answers:
		t.Fatalf("the update was answered: %v", a)
	default:
	}

	j.disk.floor.Store(0)
	if a := <-answers; a.err != nil || a.position.Seq != head.Seq+1 {
		t.Errorf("the update that waited: %v, after %v", a, head)
	}
	set(t, term, id(1), instance.StateStopped)
	if err := term.Writable(); err != nil {
		t.Error(err)
	}
}

func TestNoCheckpointIsWrittenOnAFullDisk(t *testing.T) {
	var free atomic.Int64
	free.Store(1 << 30)
	config := testConfig(t)
	j, term := onDisk(t, config, &free)
	set(t, term, id(1), instance.StateStopped)
	head := j.Head()
	j.disk.floor.Store(1 << 40)
	wantReason(t, term.checkpointer.write(t.Context()), instance.KindExhausted, instance.ReasonJournalFull)
	closeJournal(t, j)

	j, _ = onDisk(t, config, &free)
	if _, ok := j.Get(id(1)); !ok || j.Head() != head {
		t.Errorf("the head is %v, want %v", j.Head(), head)
	}
}

func TestAnUpdateThatWaitsForSpaceWasNotDoneWhenTheTermEnds(t *testing.T) {
	var free atomic.Int64
	free.Store(1 << 30)
	j, term := onDisk(t, testConfig(t), &free)
	errs := make(chan error, 1)
	go func() {
		_, err := term.Update(t.Context(), func(tx *Tx) error {
			j.disk.floor.Store(1 << 40)
			tx.Append(change(id(1), instance.StatePending))
			return nil
		})
		errs <- err
	}()
	await(t, func() bool { return term.writer.stalled.Load() != nil })
	_ = term.end(errNotOwner(errLost))
	if e := wantError(t, <-errs, instance.KindUnavailable, instance.ReasonNotOwner); e.OutcomeUnknown {
		t.Errorf("the outcome is said to be unknown: %v", e)
	}
}

// Close has no deadline here: it must end by itself.
func TestAWriteThatAFullDiskHoldsUpFailsWhenTheJournalIsClosed(t *testing.T) {
	var free atomic.Int64
	free.Store(1 << 30)
	config := testConfig(t)
	j, term := onDisk(t, config, &free)
	head := set(t, term, id(1), instance.StateStopped)
	errs := make(chan error, 1)
	go func() {
		_, err := term.Update(t.Context(), func(tx *Tx) error {
			j.disk.floor.Store(1 << 40)
			tx.Append(change(id(1), instance.StatePending))
			return nil
		})
		errs <- err
	}()
	await(t, func() bool { return term.writer.stalled.Load() != nil })
	j.Drain()
	if e := wantError(t, <-errs, instance.KindExhausted, instance.ReasonJournalFull); e.OutcomeUnknown {
		t.Errorf("the outcome is said to be unknown: %v", e)
	}
	ctx, cancel := context.WithCancel(t.Context())
	campaigned := make(chan error, 1)
	go func() {
		_, err := j.Campaign(ctx)
		campaigned <- err
	}()
	cancel()
	if err := <-campaigned; err == nil {
		t.Error("a term begins in a journal that is about to be closed")
	}
	if err := j.Close(context.Background()); err != nil {
		t.Error(err)
	}

	j, term = onDisk(t, config, &free)
	if record, _ := j.Get(id(1)); j.Head() != head || record.Instance.State != instance.StateStopped {
		t.Errorf("the log ends at %v with %v, want what was acknowledged, at %v", j.Head(), record.Instance.State, head)
	}
	set(t, term, id(1), instance.StatePending)
}

func TestScarceSpaceIsLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	const mib = 1 << 20
	var free int64
	d := newDisk("/data", 1600*mib, func(string) (int64, error) { return free * mib, nil }, slog.New(slog.NewTextHandler(&log, nil)))
	for _, free = range []int64{2000, 1599, 100, 1600, 1599, 1699, 1700, 5000} {
		d.measure(0)
	}
	wantTold(t, &log, "nearly full", "enough free space again")
}

// wantTold fails the test unless the log has those warnings, and nothing else.
func wantTold(t *testing.T, log *bytes.Buffer, warnings ...string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(lines) != len(warnings) {
		t.Fatalf("it is told:\n%s", log)
	}
	for i, want := range warnings {
		if !strings.Contains(lines[i], want) || !strings.Contains(lines[i], "level=WARN") {
			t.Errorf("it is told %q, want a warning %q", lines[i], want)
		}
	}
}

// Changes are accepted again from the line on, and that is told although it is not far
// above it.
func TestTheEndOfScarceSpaceIsLoggedJustAboveTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		const mib = 1 << 20
		free := int64(1599)
		d := newDisk("/data", 1600*mib, func(string) (int64, error) { return free * mib, nil }, slog.New(slog.NewTextHandler(&log, nil)))
		d.measure(0)
		free = 1601
		d.measure(0)
		wantTold(t, &log, "nearly full")
		time.Sleep(calmFor)
		d.measure(0)
		wantTold(t, &log, "nearly full", "enough free space again")
		if err := d.check(); err != nil {
			t.Errorf("changes are refused: %v", err)
		}
	})
}

// await waits until it is so.
func await(t *testing.T, so func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !so() {
		if time.Now().After(deadline) {
			t.Fatal("it does not happen")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestSomeDiskIsLeftToEtcdHoweverLittleIsAskedFor(t *testing.T) {
	for name, asked := range map[string]int64{"none": -1, "a byte": 1, "less than etcd needs": diskFloor - 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var free atomic.Int64
			config := testConfig(t)
			config.MinFreeDisk = asked
			statfs := func(string) (int64, error) { return free.Load(), nil }
			free.Store(minToCreate - 1)
			j, err := openWith(t.Context(), config, statfs)
			wantSentence(t, j, err, config.DataDir, "304 MiB", "create")
			closeJournal(t, openJournal(t, config))
			free.Store(minToOpen - 1)
			j, err = openWith(t.Context(), config, statfs)
			wantSentence(t, j, err, config.DataDir, "160 MiB", "open")

			free.Store(minToOpen)
			if j, err = openWith(t.Context(), config, statfs); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { closeJournal(t, j) })
			term := campaign(t, j)
			set(t, term, id(1), instance.StateStopped)
			free.Store(diskFloor - 1)
			await(t, func() bool { return term.Writable() != nil })
			wantReason(t, term.Writable(), instance.KindExhausted, instance.ReasonJournalFull)
			_, err = term.Update(t.Context(), func(*Tx) error { t.Error("an update is run"); return nil })
			wantReason(t, err, instance.KindExhausted, instance.ReasonJournalFull)
			free.Store(minToOpen)
			await(t, func() bool { return term.Writable() == nil })
			set(t, term, id(1), instance.StatePending)
		})
	}
}

// What a start takes of a small disk leaves enough to record something.
func TestAJournalThatIsCreatedWithJustEnoughSpaceTakesChanges(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", minToCreate+1<<20)); err != nil {
		t.Skipf("SKIPPED, needs the right to mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	config := testConfig(t)
	config.DataDir, config.MinFreeDisk = filepath.Join(dir, "data"), -1
	for range 2 {
		j, term := own(t, config)
		for n := range 20 {
			set(t, term, id(n), instance.States()[n%6])
			j.disk.measure(0) // reserves space, which is scarce
		}
		if err := term.Writable(); err != nil {
			t.Error(err)
		}
		closeJournal(t, j)
	}
}

// TestAJournalOutlivesAFullDisk fills a real disk up to the part that is reserved for etcd.
func TestAJournalOutlivesAFullDisk(t *testing.T) {
	for name, asked := range map[string]int64{"with a limit": 200 << 20, "with the floor alone": -1} {
		t.Run(name, func(t *testing.T) { outliveAFullDisk(t, asked) })
	}
}

func outliveAFullDisk(t *testing.T, minFreeDisk int64) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=700m"); err != nil {
		t.Skipf("SKIPPED, needs the right to mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	config := testConfig(t)
	config.DataDir, config.MinFreeDisk = filepath.Join(dir, "data"), minFreeDisk
	j, term := own(t, config)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var done atomic.Int64
	var writers sync.WaitGroup
	defer writers.Wait()
	defer cancel()
	for n := range 8 {
		writers.Go(func() { // who do not ask whether it is writable
			for ctx.Err() == nil {
				_, err := term.Update(ctx, func(tx *Tx) error {
					tx.Append(change(id(n), instance.StatePending))
					return nil
				})
				if e, ok := errors.AsType[*instance.Error](err); ok && e.Reason == instance.ReasonJournalFull {
					time.Sleep(time.Millisecond)
				} else if err == nil {
					done.Add(1)
				} else if ctx.Err() == nil {
					t.Errorf("Update: %v", err)
					return
				}
			}
		})
	}
	await(t, func() bool { return done.Load() > 100 })

	hog, err := os.Create(filepath.Join(dir, "hog"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = hog.Close() }()
	for chunk := make([]byte, 1<<20); err == nil; {
		_, err = hog.Write(chunk)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	refused := func(long time.Duration) {
		for begun := time.Now(); time.Since(begun) < long; time.Sleep(10 * time.Millisecond) {
			_, err := term.Update(ctx, func(*Tx) error { t.Error("an update is run on a full disk"); return nil })
			wantReason(t, err, instance.KindExhausted, instance.ReasonJournalFull)
		}
	}
	await(t, func() bool { return term.Writable() != nil })
	refused(300 * time.Millisecond) // what etcd had been handed is done
	before := j.Head()
	readAll(t, j, j.Oldest(), before)
	// That nothing happens takes time to see: etcd commits every second, and survives it.
	refused(1500 * time.Millisecond)
	if j.Head() != before {
		t.Errorf("the log goes on on a full disk: %v, then %v", before, j.Head())
	}

	if err := hog.Truncate(0); err != nil {
		t.Fatal(err)
	}
	written := done.Load()
	await(t, func() bool { return done.Load() > written+100 })
	await(t, func() bool { return term.Writable() == nil })
}
