package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"github.com/instanced/instanced/internal/addrtest"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/metricstest"
)

func TestAnExternalEtcdTakesLargeUpdates(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	j, term := own(t, c.config("a"))
	from := j.Head()
	// More operations, and more bytes, than etcd takes at once by default.
	p, err := term.Update(t.Context(), func(tx *Tx) error {
		for n := range 4000 {
			tx.Append(change(id(n), instance.StateStopped))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for n := range 300 {
		wg.Go(func() {
			_, err := term.Update(t.Context(), func(tx *Tx) error {
				tx.PutToken(Token{Key: fmt.Sprint(n)})
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := term.checkpointer.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	if batches := readAll(t, j, from, p); len(batches) < 2 {
		t.Errorf("%d batches", len(batches))
	}
	other := openJournal(t, c.config("b"))
	if diff := cmp.Diff(contents(j.Snapshot()), contents(other.Snapshot())); diff != "" {
		t.Error(diff)
	}
}

func TestAFollowerSeesWhatTheOwnerWrites(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	follower := openJournal(t, c.config("follower"))
	owner, term := own(t, c.config("owner"))
	if owner.LogID() != follower.LogID() {
		t.Fatal("two logs")
	}
	r := follower.Read(follower.Oldest())
	for n := range 50 {
		p := set(t, term, id(n), instance.StateStopped)
		// The follower may not have it yet, and waits for it.
		got, err := follower.Resolve(t.Context(), owner.Cursor(p))
		if err != nil || got != p {
			t.Fatalf("%v resolved to %v, %v", p, got, err)
		}
		if record, ok := follower.Get(id(n)); !ok || record.Position != p {
			t.Fatalf("the follower knows %v at %v, want %v", ok, record.Position, p)
		}
		if b, err := r.Next(t.Context()); err != nil || b.Position != p {
			t.Fatalf("the follower reads %v, %v, want %v", b, err, p)
		}
	}
	if address, mine := owner.Owner(); address != "owner" || !mine {
		t.Errorf("the owner says %q, %v", address, mine)
	}
	if address, mine := follower.Owner(); address != "owner" || mine {
		t.Errorf("the follower says %q, %v", address, mine)
	}
	ahead := owner.Head()
	ahead.Seq++
	_, err := follower.Resolve(t.Context(), owner.Cursor(ahead))
	wantReason(t, err, instance.KindOutOfRange, instance.ReasonCursorAhead)
}

// A follower is woken without anybody's asking it for anything.
func TestAFollowerKeepsUpByItself(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	follower := openJournal(t, c.config("follower"))
	r := follower.Read(follower.Head())
	_, term := own(t, c.config("owner"))
	ctx, cancel := context.WithTimeout(t.Context(), followInterval/2)
	defer cancel()
	for n := range 20 {
		p := set(t, term, id(n), instance.StateStopped)
		if b, err := r.Next(ctx); err != nil || b.Position != p {
			t.Fatalf("got %v, %v, want %v", b, err, p)
		}
	}
}

func TestOwnershipPassesOnWhenItIsGivenUp(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	first, err := Open(t.Context(), c.config("first"))
	if err != nil {
		t.Fatal(err)
	}
	term := campaign(t, first)
	kept := set(t, term, id(1), instance.StateStopped)
	second := openJournal(t, c.config("second"))
	won := make(chan *Term)
	go func() {
		term, err := second.Campaign(t.Context())
		if err != nil {
			t.Error(err)
		}
		won <- term
	}()
	select {
	case <-won:
		t.Fatal("there are two owners")
	case <-time.After(50 * time.Millisecond): // long enough to try, if it were to
	}
	closeJournal(t, first)
	if _, err := term.Update(t.Context(), func(*Tx) error { return nil }); err == nil {
		t.Error("a closed journal takes writes")
	}
	next := <-won
	if p := set(t, next, id(1), instance.StatePending); p.Seq != kept.Seq+1 || p.Epoch == kept.Epoch {
		t.Errorf("written at %v, after %v of another owner", p, kept)
	}
}

// The lease of an owner that is cut off ends; what it still tries to write, in the
// belief that it owns the log, must not be written.
func TestAnOwnerThatWasReplacedCannotWrite(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	first, stale := own(t, c.config("first"))
	set(t, stale, id(1), instance.StateStopped)
	if _, err := first.store.client.Revoke(t.Context(), stale.lease); err != nil {
		t.Fatal(err)
	}
	second, term := own(t, c.config("second"))
	want := set(t, term, id(1), instance.StatePending)

	_, err := stale.Update(t.Context(), func(tx *Tx) error {
		tx.Append(change(id(1), instance.StateTerminated))
		return nil
	})
	e := wantError(t, err, instance.KindUnavailable, instance.ReasonNotOwner)
	if e.OutcomeUnknown {
		t.Error("it is known that it was not written")
	}
	<-stale.Done()
	wantReason(t, stale.Err(), instance.KindUnavailable, instance.ReasonNotOwner)
	wantReason(t, stale.Writable(), instance.KindUnavailable, instance.ReasonNotOwner)
	if second.Head() != want {
		t.Errorf("the head is %v, want %v", second.Head(), want)
	}
	if got, err := first.Resolve(t.Context(), second.Cursor(want)); err != nil || got != want {
		t.Errorf("who was the owner does not follow: %v, %v", got, err)
	}
}

func TestATermEndsWithItsLease(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	first, term := own(t, c.config("first"))
	set(t, term, id(1), instance.StateStopped)
	second := openJournal(t, c.config("second"))
	if _, err := second.store.client.Revoke(t.Context(), term.lease); err != nil {
		t.Fatal(err)
	}
	set(t, campaign(t, second), id(1), instance.StatePending)
	<-term.Done() // it is told by the lease, without having tried to write
	wantReason(t, term.Err(), instance.KindUnavailable, instance.ReasonNotOwner)
	if address, mine := first.Owner(); mine {
		t.Errorf("it still says that it is the owner: %q", address)
	}
}

func TestAnExternalEtcdMayGoAway(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	config := c.config("a")
	config.OwnerTTL = time.Minute // it does not go away for that long
	j, term := own(t, config)
	before := set(t, term, id(1), instance.StateStopped)
	c.kill()

	written := make(chan error)
	go func() {
		_, err := term.Update(t.Context(), func(tx *Tx) error {
			tx.Append(change(id(1), instance.StatePending))
			return nil
		})
		written <- err
	}()
	for term.Writable() == nil {
		time.Sleep(time.Millisecond) // until the writer has noticed
	}
	wantReason(t, term.Writable(), instance.KindUnavailable, instance.ReasonJournalUnavailable)
	_, err := term.Update(t.Context(), func(*Tx) error { t.Error("it was run"); return nil })
	if e := wantError(t, err, instance.KindUnavailable, instance.ReasonJournalUnavailable); e.OutcomeUnknown {
		t.Error("it is known that it was not written")
	}
	// Reads go on from memory.
	if s := j.Snapshot(); s.Position != before || len(s.Records) != 1 {
		t.Errorf("snapshot at %v of %d", s.Position, len(s.Records))
	}
	readAll(t, j, j.Oldest(), before)

	c.start()
	if err := <-written; err != nil {
		t.Errorf("what was on its way was not written in the end: %v", err)
	}
	if err := term.Writable(); err != nil {
		t.Error(err)
	}
	if p := set(t, term, id(1), instance.StateRunning); p.Seq != before.Seq+2 {
		t.Errorf("the log goes on at %v, after %v", p, before)
	}
}

func TestAnOwnerComesBackAfterAnOutageLongerThanItsLease(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	j, term := own(t, c.config("a"))
	before := set(t, term, id(1), instance.StateStopped)
	c.kill()
	<-term.Done()
	wantReason(t, term.Err(), instance.KindUnavailable, instance.ReasonNotOwner)
	c.start()
	again := campaign(t, j)
	if p := set(t, again, id(1), instance.StatePending); p.Seq != before.Seq+1 {
		t.Errorf("the log goes on at %v, after %v", p, before)
	}
}

func TestAProcessWhoseEtcdIsAwayKnowsThatItMayBeOutOfDate(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	owner, _ := own(t, c.config("owner"))
	follower := openJournal(t, c.config("follower"))
	both := []*Journal{owner, follower}
	for _, j := range both {
		if err := j.Reachable(); err != nil {
			t.Error(err)
		}
	}
	c.kill()
	for _, j := range both {
		await(t, func() bool { return j.Reachable() != nil })
		wantReason(t, j.Reachable(), instance.KindUnavailable, instance.ReasonJournalUnavailable)
	}
	c.start()
	for _, j := range both {
		await(t, func() bool { return j.Reachable() == nil })
	}
}

// Etcd is restored from an older copy while processes are connected to it.
func TestAnExternalLogThatGoesBackIsNoticed(t *testing.T) {
	for name, notice := range map[string]func(*testing.T, *Term) error{
		"by the writer": func(t *testing.T, term *Term) error {
			_, err := term.Update(t.Context(), func(tx *Tx) error {
				tx.Append(change(id(1), instance.StateRunning))
				return nil
			})
			return err
		},
		"by the writer of a token": func(t *testing.T, term *Term) error {
			_, err := term.Update(t.Context(), func(tx *Tx) error { tx.PutToken(Token{Key: "once"}); return nil })
			return err
		},
		"by the checkpoint": func(t *testing.T, term *Term) error { return term.checkpointer.write(t.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testLogThatGoesBack(t, notice)
		})
	}
}

func testLogThatGoesBack(t *testing.T, notice func(*testing.T, *Term) error) {
	c := startCluster(t)
	config := c.config("owner")
	config.OwnerTTL = time.Minute // the copy has its lease
	j, term := own(t, config)
	follower := openJournal(t, c.config("follower"))
	kept := set(t, term, id(1), instance.StateStopped)
	if err := term.checkpointer.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.kill()
	backup := t.TempDir()
	copyDir(t, c.dir, backup)
	c.start()
	var lost Position
	for n := range 5 {
		lost = set(t, term, id(n), instance.StatePending)
	}
	// The maintenance of the term must do nothing by itself while we look.
	if err := term.maintenance.lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := follower.Resolve(t.Context(), j.Cursor(lost)); err != nil {
		t.Fatal(err)
	}
	readers := []*Reader{j.Read(lost), follower.Read(lost)}
	c.kill()
	c.dir = backup
	c.start()

	// The owner key in the copy is the owner's own: only the records tell.
	term.maintenance.unlock()
	if e, ok := errors.AsType[*instance.Error](notice(t, term)); !ok || e.Reason != instance.ReasonNotOwner {
		t.Fatalf("it was not noticed: %v", e)
	}
	again := campaign(t, j)
	p := set(t, again, id(1), instance.StateRunning)
	if p.Seq != kept.Seq+1 {
		t.Errorf("the log goes on at %v, after %v", p, kept)
	}
	for _, x := range []*Journal{j, follower} {
		// What is new makes a follower look, if it has not noticed yet.
		for _, valid := range []Position{p, kept} {
			if _, err := x.Resolve(t.Context(), j.Cursor(valid)); err != nil {
				t.Error(err)
			}
		}
		_, err := x.Resolve(t.Context(), j.Cursor(lost))
		wantReason(t, err, instance.KindOutOfRange, instance.ReasonCursorRolledBack)
		if record, _ := x.Get(id(1)); record.Position != p || len(x.Snapshot().Records) != 1 {
			t.Errorf("known at %v, want %v", record.Position, p)
		}
	}
	for i, r := range readers {
		_, err := r.Next(t.Context())
		if e, ok := errors.AsType[*instance.Error](err); !ok || e.Reason != instance.ReasonCursorRolledBack {
			t.Errorf("reader %d goes on after what is gone: %v", i, err)
		}
	}
}

func TestAnExternalEtcdThatDoesNotAnswerIsNamed(t *testing.T) {
	address := addrtest.Free(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	j, err := Open(ctx, Config{Endpoints: []string{"http://" + address}})
	wantSentence(t, j, err, address, "cannot be read")
}

// An etcd whose quota is used up takes no more puts until its operator has defragmented it and
// disarmed its alarm. The journal makes the room that this needs.
func TestAnExternalEtcdMayUseUpItsQuota(t *testing.T) {
	const quota = 24 << 20
	address := addrtest.Free(t)
	e, err := startTestEtcd(t.TempDir(), address, slog.New(slog.DiscardHandler), false, quota)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	operator := v3client.New(e.Server)
	t.Cleanup(func() { _ = operator.Close() })
	var log syncBuffer
	config := Config{
		Endpoints: []string{"http://" + address}, Address: "owner", OwnerTTL: 2 * time.Second,
		MaxBytes: 4 << 20, Logger: slog.New(slog.NewTextHandler(&log, nil)),
	}
	// fillUp writes until the quota is used up, and returns what is under way then.
	fillUp := func(j *Journal, term *Term) (underWay <-chan error) {
		t.Helper()
		var full atomic.Bool
		done := make(chan error, 1)
		go func() {
			for n := 0; ; n++ {
				_, err := term.Update(t.Context(), func(tx *Tx) error {
					c := change(id(n%3), instance.States()[n%6])
					c.After.Tags["filler"] = noise(200_000)
					tx.Append(c)
					return nil
				})
				if err != nil || full.Load() {
					done <- err
					return
				}
				if n%10 == 9 {
					_ = term.checkpointer.write(t.Context()) // which the full etcd refuses too
				}
			}
		}()
		await(t, func() bool { return term.Writable() != nil })
		full.Store(true)
		wantReason(t, term.Writable(), instance.KindExhausted, instance.ReasonJournalFull)
		_, err := term.Update(t.Context(), func(*Tx) error { t.Error("an update is run"); return nil })
		if e := wantError(t, err, instance.KindExhausted, instance.ReasonJournalFull); !strings.Contains(e.Message, "quota") {
			t.Errorf("the message does not say why: %s", e.Message)
		}
		readAll(t, j, j.Oldest(), j.Head())
		return done
	}
	makeSpace := func() {
		t.Helper()
		backend := e.Server.Backend()
		await(t, func() bool { return backend.SizeInUse() < quota*3/4 }) // the journal trims its history
		if err := backend.Defrag(); err != nil {
			t.Fatal(err)
		}
		alarms, err := operator.AlarmList(t.Context())
		if err != nil || len(alarms.Alarms) != 1 {
			t.Fatalf("alarms: %v, %v", alarms, err)
		}
		if _, err := operator.AlarmDisarm(t.Context(), (*clientv3.AlarmMember)(alarms.Alarms[0])); err != nil {
			t.Fatal(err)
		}
	}

	measuredConfig, registry := measured(config)
	owner, term := own(t, measuredConfig)
	underWay := fillUp(owner, term)
	metricstest.Expect(t, registry, map[string]float64{"instanced_journal_owner": 1, "instanced_journal_writable": 0, "instanced_journal_reachable": 1})
	await(t, func() bool { // what the journal did about it, and that it cannot do the rest
		got := metricstest.Samples(t, registry)
		return got[`instanced_journal_write_errors_total{reason="no_space"}`] > 0 && got["instanced_journal_compactions_total"] > 0 &&
			got[`instanced_journal_maintenance_errors_total{task="make_room"}`] > 0 && got["instanced_journal_oldest_revision"] > 1
	})
	follower := openJournal(t, config)
	if _, err := follower.Resolve(t.Context(), owner.Cursor(owner.Head())); err != nil {
		t.Errorf("what was acknowledged is not read: %v", err)
	}
	makeSpace()
	if err := <-underWay; err != nil {
		t.Errorf("the update that waited for space: %v", err)
	}
	p := set(t, term, id(1), instance.StateRunning)
	if got, err := follower.Resolve(t.Context(), owner.Cursor(p)); err != nil || got != p {
		t.Errorf("the follower finds %v, %v, want %v", got, err, p)
	}

	// The owner can stop, and another process becomes the owner once there is space.
	underWay = fillUp(owner, term)
	acknowledged := owner.Head()
	_ = owner.Close(context.Background()) // no checkpoint can be written
	if e := wantError(t, <-underWay, instance.KindExhausted, instance.ReasonJournalFull); !e.OutcomeUnknown {
		t.Errorf("an update that was attempted is said not to be recorded: %v", e)
	}
	campaigned := make(chan *Term)
	go func() {
		next, err := follower.Campaign(t.Context())
		if err != nil {
			t.Error(err)
		}
		campaigned <- next
	}()
	await(t, func() bool { return strings.Contains(log.String(), "disarm the alarm") })
	makeSpace()
	next := <-campaigned
	if p := set(t, next, id(1), instance.StateStopped); p.Seq <= acknowledged.Seq {
		t.Errorf("the log goes on at %v, after %v was acknowledged", p, acknowledged)
	}
}

// The witness of the test that an fsync lies between a write and its reply: with
// fsync turned off etcd counts none, so that the test would fail.
func TestFsyncsAreNotCountedWhenTheyAreOff(t *testing.T) {
	e, err := startTestEtcd(t.TempDir(), addrtest.Free(t), testLogger(t), true, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	client := v3client.New(e.Server)
	defer func() { _ = client.Close() }()
	before := fsyncs(t)
	if _, err := client.Put(t.Context(), "a", "b"); err != nil {
		t.Fatal(err)
	}
	if after := fsyncs(t); after != before {
		t.Errorf("%d fsyncs before, %d after", before, after)
	}
}
