package observer

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
)

const (
	trackedX = instance.ID("i-00000000000000001")
	trackedY = instance.ID("i-00000000000000002")
)

// send tracks a command and sends it for all of its instances.
func (t *tracker) send(ids []instance.ID, cause instance.Cause, before journal.Position) *inflightCommand {
	c := t.track(ids, cause, before)
	c.markSent(ids)
	return c
}

func (t *tracker) start(ids ...instance.ID) *inflightCommand {
	return t.send(ids, instance.Cause{Verb: instance.VerbStart}, journal.Position{})
}

// answerAndAwaitTurn answers a command and waits for its turn to be recorded.
func (c *inflightCommand) answerAndAwaitTurn(ctx context.Context, changes []instance.StateChange) []instance.Notice {
	c.markAnswered(changes)
	return c.awaitTurn(ctx, changes)
}

func lines(at time.Time, ids ...instance.ID) (changes []instance.StateChange) {
	for _, id := range ids {
		changes = append(changes, instance.StateChange{ID: id, Previous: instance.StateStopped, Current: instance.StatePending, At: at})
	}
	return changes
}

// found is the answer to a command that found an instance in a state, and left it there.
func found(state instance.State, at time.Time) []instance.StateChange {
	return []instance.StateChange{{ID: trackedX, Previous: state, Current: state, At: at}}
}

func notice(id instance.ID, at time.Time) instance.Notice {
	return instance.Notice{ID: id, OccurredAt: at, Source: instance.SourceSimulator}
}

func TestADescriptionIsDeferredUntilTheLastCommandEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTracker()
		first := tr.start(trackedX, trackedY)
		second := tr.start(trackedX)
		if !tr.deferDescribe(trackedX) {
			t.Fatal("an instance with two commands in flight is described")
		}
		first.finish()
		if !tr.deferDescribe(trackedX) || tr.deferDescribe(trackedY) {
			t.Fatalf("after the first of two commands: deferred(x) = %v, deferred(y) = %v; want true, false", tr.deferDescribe(trackedX), tr.deferDescribe(trackedY))
		}
		second.finish()
		<-tr.wake
		if tr.deferDescribe(trackedX) {
			t.Fatal("the description of an instance without commands is deferred")
		}
	})
}

func TestACommandThatChangesNoStateHoldsNothingBack(t *testing.T) {
	tr := newTracker()
	tr.send([]instance.ID{trackedX}, instance.Cause{Verb: instance.VerbReboot}, journal.Position{})
	if tr.deferDescribe(trackedX) || len(tr.holdBack([]instance.Notice{notice(trackedX, time.Now())})) != 1 {
		t.Error("a reboot holds notices back")
	}
}

// A command that waits in the backend has done nothing: what happens meanwhile is neither held
// back for it nor its doing, however often it was sent in vain before.
func TestACommandThatIsNotSentHasDoneNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTracker()
		both := []instance.ID{trackedX, trackedY}
		c := tr.track(both, instance.Cause{Verb: instance.VerbStart}, journal.Position{})
		queued := func(when string) {
			t.Helper()
			now := time.Now()
			if len(tr.possibleCauses(trackedX, time.Time{}, now)) > 0 || tr.deferDescribe(trackedX) || len(tr.holdBack([]instance.Notice{notice(trackedX, now)})) != 1 {
				t.Errorf("%s, a command is a possible cause or holds something back", when)
			}
		}
		queued("before it is sent")
		time.Sleep(time.Minute)
		c.markSent(both)
		sentAt := time.Now()
		candidates := tr.possibleCauses(trackedX, time.Time{}, sentAt)
		if len(candidates) != 1 || !candidates[0].sent.Equal(sentAt) || len(tr.possibleCauses(trackedX, time.Time{}, sentAt.Add(-1))) > 0 {
			t.Errorf("once it is sent %+v are possible causes, want the command from then on", candidates)
		}
		if tr.holdBack([]instance.Notice{notice(trackedX, sentAt)}); !tr.holdsNotices() {
			t.Error("once it is sent, a notice is not held back")
		}
		c.markRequeued(both[:1])
		<-tr.wake
		if tr.holdBack(nil); tr.holdsNotices() || candidates[0].attribute(&recordedStep{}) {
			t.Error("after it changed nothing, a notice is held back, or it is made a cause")
		}
		queued("after it changed nothing")
		if len(tr.possibleCauses(trackedY, time.Time{}, time.Now())) != 1 || len(c.unsent()) != 1 {
			t.Error("it is not in flight any more for the other instance")
		}
		time.Sleep(time.Minute)
		c.markSent(both[:1])
		if got := tr.possibleCauses(trackedX, time.Time{}, time.Now()); len(got) != 1 || !got[0].sent.Equal(time.Now()) {
			t.Errorf("once it is sent again %+v are possible causes", got)
		}
		if c.finish(); len(tr.tracks) > 0 {
			t.Error("something is tracked after the command ended")
		}
		if c.markSent(both); len(tr.tracks) > 0 {
			t.Error("a report that comes after the end is tracked")
		}
	})
}

// Backends send instances one by one as their token buckets fill.
func TestReportingInstancesAsSentCostsTheSameForEach(t *testing.T) {
	ids := make([]instance.ID, 1000)
	for i := range ids {
		ids[i] = instance.ID(fmt.Sprintf("i-%017x", i))
	}
	c := newTracker().track(ids, instance.Cause{Verb: instance.VerbStart}, journal.Position{})
	for i := range ids {
		if c.markSent(ids[i : i+1]); c.next != (i+1)%len(ids) || c.on[i].state != inFlight {
			t.Fatalf("after instance %d the search goes on at %d", i, c.next)
		}
	}
}

func TestNoticesAreHeldBackInTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTracker()
		begun := time.Now()
		time.Sleep(time.Millisecond)
		command := tr.start(trackedX)
		early, late := notice(trackedX, time.Now().Add(time.Millisecond)), notice(trackedX, time.Now().Add(2*time.Millisecond))
		got := tr.holdBack([]instance.Notice{notice(trackedX, begun), late, early, notice(trackedY, time.Now())})
		if len(got) != 2 || !got[0].OccurredAt.Equal(begun) || got[1].ID != trackedY {
			t.Fatalf("admitted %v; want what happened before the command, and the other instance", got)
		}
		if older := command.answerAndAwaitTurn(t.Context(), lines(late.OccurredAt, trackedX)); len(older) != 1 || !older[0].OccurredAt.Equal(early.OccurredAt) {
			t.Fatalf("before the answer comes %v, want what happened before it", older)
		}
		command.finish()
		<-tr.wake
		newer := notice(trackedX, late.OccurredAt.Add(1))
		if got := tr.holdBack([]instance.Notice{newer}); len(got) != 2 || !got[0].OccurredAt.Equal(late.OccurredAt) {
			t.Errorf("admitted %v, want what was held back first", got)
		}
	})
}

func TestASlowCommandHoldsNothingBackForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTracker()
		tr.start(trackedX)
		if got := tr.holdBack([]instance.Notice{notice(trackedX, time.Now())}); len(got) != 0 || !tr.holdsNotices() {
			t.Fatalf("admitted %v during the command", got)
		}
		time.Sleep(maxHold)
		tr.releaseExpired()
		if got := tr.holdBack(nil); len(got) != 1 || tr.holdsNotices() || tr.deferDescribe(trackedX) {
			t.Errorf("after a second %v is admitted, want the notice", got)
		}
		if s := tr.possibleCauses(trackedX, time.Time{}, time.Now()); len(s) != 1 {
			t.Errorf("%d possible causes, want the command that is still in flight", len(s))
		}
	})
}

func TestLaterCommandsDoNotProlongAHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTracker()
		tr.start(trackedX)
		if got := tr.holdBack([]instance.Notice{notice(trackedX, time.Now())}); len(got) != 0 {
			t.Fatalf("admitted %v during the command", got)
		}
		time.Sleep(maxHold / 2)
		tr.start(trackedX)
		tr.holdBack([]instance.Notice{notice(trackedX, time.Now())})
		time.Sleep(maxHold / 2)
		tr.releaseExpired()
		if got := tr.holdBack(nil); len(got) != 1 || !tr.holdsNotices() {
			t.Errorf("a second after the first command %v is admitted, want the first notice alone", got)
		}
	})
}

func TestAnswersAreRecordedInTheOrderOfTheirChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTracker()
		both := []instance.ID{trackedX, trackedY}
		commands := make([]*inflightCommand, 3)
		for i := range commands {
			commands[i] = tr.start(both...)
		}
		time.Sleep(time.Millisecond)
		now := time.Now()
		order := make(chan int, len(commands))
		for i, command := range slices.Backward(commands) {
			go func() {
				command.answerAndAwaitTurn(t.Context(), lines(now.Add(time.Duration(i)), both...))
				order <- i
				command.finish()
			}()
			synctest.Wait()
		}
		got := fmt.Sprint(<-order, <-order, <-order)
		if got != "0 1 2" {
			t.Errorf("recorded in the order %s, want 0 1 2", got)
		}
	})
}

func TestACommandThatFoundTheSameIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTracker()
		begun := time.Now()
		tr.start(trackedX).answerAndAwaitTurn(t.Context(), found(instance.StatePending, begun.Add(1)))
		tr.start(trackedX).answerAndAwaitTurn(t.Context(), found(instance.StatePending, begun.Add(2)))
		if took := time.Since(begun); took != 0 {
			t.Errorf("one that found an instance pending waited %v for another that did", took)
		}
		tr.start(trackedX).answerAndAwaitTurn(t.Context(), found(instance.StateRunning, begun.Add(3)))
		if took := time.Since(begun); took != maxHold {
			t.Errorf("one that found it running waited %v for those that found it pending, want %v", took, maxHold)
		}
	})
}

// BenchmarkCommandsOnOneInstance is what a command for an instance costs beside others for
// the same one, all under way at once: the first starts it, the others find it pending.
func BenchmarkCommandsOnOneInstance(b *testing.B) {
	for _, count := range []int{1, 32, 1024} {
		b.Run(fmt.Sprintf("commands=%d", count), func(b *testing.B) {
			for b.Loop() {
				tr := newTracker()
				commands := make([]*inflightCommand, count)
				for i := range commands {
					commands[i] = tr.start(trackedX)
				}
				now := time.Now()
				var working sync.WaitGroup
				for i, command := range commands {
					changes := found(instance.StatePending, now.Add(time.Duration(i)))
					if i == 0 {
						changes = lines(now, trackedX)
					}
					working.Go(func() {
						command.answerAndAwaitTurn(b.Context(), changes)
						command.finish()
					})
				}
				working.Wait()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*count), "ns/command")
		})
	}
}

func TestAnAnswerWaitsNoLongerThanASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTracker()
		tr.start(trackedX) // never answered
		command := tr.start(trackedX)
		begun := time.Now()
		command.answerAndAwaitTurn(t.Context(), lines(begun.Add(1), trackedX))
		if took := time.Since(begun); took != maxHold {
			t.Errorf("it waited %v, want %v", took, maxHold)
		}
	})
}

// TestWhatACommandCostsDependsOnItsOwnInstances has commands on the same instances in
// flight at once, of which the first changes them and the others find it done: the work for
// one instance of one command is the same however many there are of both.
func TestWhatACommandCostsDependsOnItsOwnInstances(t *testing.T) {
	for _, commands := range []int{1, 16, 160} {
		for _, instances := range []int{10, 100, 1000} {
			ids := make([]instance.ID, instances)
			for i := range ids {
				ids[i] = instance.ID(fmt.Sprintf("i-%017x", i))
			}
			var examined int
			allocations := testing.AllocsPerRun(1, func() { examined = overlap(t, ids, commands) })
			t.Logf("%d commands on %d instances: %d entries examined, %.0f allocations", commands, instances, examined, allocations)
			if limit := 3 * commands * instances; examined > limit {
				t.Errorf("%d commands on %d instances examined %d entries, want at most %d", commands, instances, examined, limit)
			}
			if limit := float64(8 * commands * instances); allocations > limit {
				t.Errorf("%d commands on %d instances allocated %.0f times, want at most %.0f", commands, instances, allocations, limit)
			}
		}
	}
}

// overlap has commands in flight at once until the first of them ends, and returns how many
// entries were examined one by one.
func overlap(t *testing.T, ids []instance.ID, count int) (examined int) {
	tr := newTracker()
	commands := make([]*inflightCommand, count)
	for i := range commands {
		commands[i] = tr.start(ids...)
	}
	answers := make([][]instance.StateChange, count)
	now := time.Now()
	for i, c := range commands {
		answers[i] = lines(now.Add(time.Duration(i)), ids...)
		for n := range answers[i] {
			if i > 0 {
				answers[i][n].Previous = instance.StatePending
			}
		}
		c.markAnswered(answers[i])
	}
	for i, c := range commands {
		c.awaitTurn(t.Context(), answers[i])
		for _, change := range answers[i] {
			tr.unrecordedBefore(change.ID, change.At, c)
			tr.possibleCauses(change.ID, now.Add(-time.Second), change.At)
		}
		c.finish()
	}
	if len(tr.tracks) > 0 {
		t.Errorf("%d instances are tracked after all commands have ended", len(tr.tracks))
	}
	return tr.examined
}
