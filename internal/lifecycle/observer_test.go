package lifecycle_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
	"github.com/instanced/instanced/internal/lifecycle"
)

var observerSeed = flag.Uint64("observer.seed", 0, "play the story of this seed only")

// regressions are seeds, beside those that are played always, which found something.
var regressions = []uint64{864032331534, 864032332622}

// TestTheObserver plays the stories of thousands of seeds, in minutes of fake time: one
// instance each, whose notices are lost, doubled, late and reordered, whose descriptions
// lag and whose answers are lost, as the seed has it. What is recorded of each has to be
// true; see [story.check].
func TestTheObserver(t *testing.T) {
	const together = 2000
	if *observerSeed != 0 {
		playTogether(t, []uint64{*observerSeed})
		return
	}
	if long := os.Getenv("INSTANCED_SOAK"); long != "" {
		d, err := time.ParseDuration(long)
		if err != nil {
			t.Fatalf("INSTANCED_SOAK: %v", err)
		}
		played := 0
		for end := time.Now().Add(d); time.Now().Before(end) && !t.Failed(); played += together {
			playTogether(t, seedsFrom(rand.Uint64N(1<<40), together))
		}
		t.Logf("%d seeds", played)
		return
	}
	playTogether(t, append(seedsFrom(1, together), regressions...))
}

func seedsFrom(first uint64, count int) []uint64 {
	seeds := make([]uint64, count)
	for i := range seeds {
		seeds[i] = first + uint64(i)
	}
	return seeds
}

func playTogether(t *testing.T, seeds []uint64) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) { play(t, dir, seeds) })
}

func play(t *testing.T, dir string, seeds []uint64) {
	j, err := journal.Open(t.Context(), journal.Config{DataDir: dir, MinFreeDisk: -1})
	if err != nil {
		t.Fatal(err)
	}
	stories := make([]*story, len(seeds))
	for i, seed := range seeds {
		stories[i] = newStory(seed)
	}
	b := newStage(stories)
	s := lifecycle.New(lifecycle.Config{Journal: j, Backend: b})
	ctx, cancel := context.WithCancel(t.Context())
	var running, lives sync.WaitGroup
	running.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer func() {
		cancel()
		running.Wait()
		time.Sleep(redelivery) // the last timers
		if err := j.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	<-s.Ready()
	for _, story := range stories {
		lives.Go(func() {
			calls := 0
			story.play(b, func(verb instance.Verb) {
				calls++
				who := lifecycle.Caller{Principal: "tester", RequestID: fmt.Sprintf("%d-%d", story.seed, calls)}
				_, err := s.Command(ctx, who, lifecycle.CommandRequest{Verb: verb, InstanceIDs: []string{string(story.id)}})
				if e, ok := errors.AsType[*instance.Error](err); err != nil && (!ok || !e.OutcomeUnknown) {
					t.Errorf("seed %d: %v", story.seed, err)
				}
			})
		})
	}
	lives.Wait()
	b.calmDown()
	// Everything is compared every five minutes, and what was changed less than one
	// minute ago is described again.
	time.Sleep(12 * time.Minute)
	all := record(t, j)
	for _, story := range stories {
		known, found := j.Get(story.id)
		if err := story.check(known.Instance, found, all[story.id]); err != nil {
			t.Errorf("seed %d: %v\n%s", story.seed, err, story.tellAll(all[story.id]))
		}
	}
	if b.unacknowledged > 0 {
		t.Errorf("seeds from %d: %d notices were never acknowledged", seeds[0], b.unacknowledged)
	}
}

// record returns all that was recorded, by instance.
func record(t *testing.T, j *journal.Journal) map[instance.ID][]recorded {
	t.Helper()
	all := make(map[instance.ID][]recorded)
	head := j.Head()
	for reader := j.Read(j.Oldest()); reader.Position().Seq < head.Seq; {
		batch, err := reader.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for i := range batch.Events {
			change := batch.Events[i].Change
			all[change.ID()] = append(all[change.ID()], recorded{batch.Position.Seq, change})
		}
	}
	return all
}

// recorded is a change and the batch that it is in.
type recorded struct {
	batch uint64
	*instance.Change
}

// check compares what was recorded with what was true:
//   - it ends in what the backend says;
//   - each change begins where the one before it ended, and is a legal one;
//   - each state that is not marked as inferred is one that the instance was in, in the
//     true order, and not before it was;
//   - a state that is marked is followed, in the same batch, by one that was seen;
//   - when nothing went wrong, everything is recorded, and nothing is inferred.
func (s *story) check(known *instance.Instance, found bool, changes []recorded) error {
	last := s.truth[len(s.truth)-1].image
	switch {
	case found != s.gone.IsZero():
		return fmt.Errorf("it is known: %v; it is gone: %v", found, !s.gone.IsZero())
	case found && !known.Equal(last):
		return fmt.Errorf("the journal ends in %+v, the backend in %+v", known, last)
	}
	var before *instance.Instance
	place, count := 0, 0
	for i, c := range changes {
		if !before.Equal(c.Before) {
			return fmt.Errorf("change %d begins with %+v, the one before it ended with %+v", i, c.Before, before)
		}
		before = c.After
		if c.Type != instance.ChangeState {
			continue
		}
		count++
		if !instance.CanFollow(c.Before.State, c.After.State) {
			return fmt.Errorf("change %d, %v -> %v, is not legal", i, c.Before.State, c.After.State)
		}
		if c.Inferred {
			if i+1 == len(changes) || changes[i+1].batch != c.batch {
				return fmt.Errorf("change %d was inferred from nothing", i)
			}
			continue
		}
		next := s.find(c.Change, place)
		if next < 0 {
			return fmt.Errorf("change %d, %v -> %v, did not happen after what was recorded before it", i, c.Before.State, c.After.State)
		}
		place = next
	}
	if s.calm() && count != len(s.truth)-1 {
		return fmt.Errorf("%d changes were recorded, %d happened, and nothing went wrong", count, len(s.truth)-1)
	}
	return nil
}

// find returns the first moment after a place that a recorded change can be; -1 if there
// is none.
func (s *story) find(c *instance.Change, place int) int {
	for i, m := range s.truth[place+1:] {
		switch {
		case m.image.State != c.After.State || m.at.After(c.ObservedAt):
		case s.exact && c.Source != instance.SourceAnswer && !c.After.Equal(m.image): // an answer tells the states
		default:
			return place + 1 + i
		}
	}
	return -1
}

// tellAll renders what was true and what was recorded.
func (s *story) tellAll(changes []recorded) string {
	text := fmt.Sprintf("exact %v, commanded %v, %+v\ntrue:", s.exact, s.commanded, s.trouble)
	for _, m := range s.truth {
		text += fmt.Sprintf("\n\t%v %v", m.at.Format("15:04:05.000"), m.image.State)
	}
	text += "\nrecorded:"
	for _, c := range changes {
		text += fmt.Sprintf("\n\t%v at %v: %v %v, inferred %v, %v", c.ObservedAt.Format("15:04:05.000"), c.OccurredAt.Format("15:04:05.000"), c.Type, c.Subject().State, c.Inferred, c.Source)
	}
	return text
}
