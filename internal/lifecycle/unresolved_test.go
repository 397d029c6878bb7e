package lifecycle_test

import (
	"context"
	"errors"
	"iter"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

// unanswered has no command answered and no notice delivered. The backend describes nothing
// before release is called.
func unanswered(t *testing.T, o options) (f *fixture, release func()) {
	t.Helper()
	held := make(chan struct{})
	h := &hook{describe: func() { <-held }}
	o.wrap = h.wrap
	o.sim.Faults = append(o.sim.Faults, sim.Fault{Kind: sim.AnswerLost})
	f = start(t, o)
	release = sync.OnceFunc(func() { close(held) })
	t.Cleanup(release)
	return f, release
}

// lose carries a command out whose answer is lost.
func (f *fixture) lose(t *testing.T, who string, verb instance.Verb) {
	t.Helper()
	_, err := f.Command(t.Context(), lifecycle.Caller{Principal: who}, lifecycle.CommandRequest{Verb: verb, InstanceIDs: []string{first}})
	if e, ok := errors.AsType[*instance.Error](err); !ok || !e.OutcomeUnknown {
		t.Fatalf("%s by %s got %v, want that the outcome is unknown", verb, who, err)
	}
}

// outside changes the instance from outside.
func (f *fixture) outside(t *testing.T, action sim.Action) {
	t.Helper()
	if err := f.sim.Change(t.Context(), []sim.Change{{IDs: []instance.ID{first}, Action: action}}); err != nil {
		t.Fatal(err)
	}
}

func running() []sim.Spec { return []sim.Spec{{ID: first, State: instance.StateRunning}} }

func TestEachOfSeveralCommandsWithoutAnAnswerIsTheCauseOfWhatItDid(t *testing.T) {
	f, release := unanswered(t, options{sim: sim.Config{Fleet: running(), Faults: []sim.Fault{{Kind: sim.NoticeLost}}}})
	before := f.Cursor()
	f.lose(t, "stopper", instance.VerbStop)
	f.lose(t, "starter", instance.VerbStart)
	release()
	f.wait(t, before, instance.StateStopped, first)
	expect(t, steps(f.changes(t, first)),
		"running -> stopping by stopper, inferred", "stopping -> stopped by stopper, inferred",
		"stopped -> pending by starter, inferred", "pending -> running by starter")
}

func TestACommandThatHadEndedIsNotTheCauseOfWhatFollowed(t *testing.T) {
	f, release := unanswered(t, options{sim: sim.Config{Fleet: running(), Faults: []sim.Fault{{Kind: sim.NoticeLost}}}})
	before := f.Cursor()
	f.lose(t, "starter", instance.VerbStart) // it is running
	f.lose(t, "stopper", instance.VerbStop)
	f.outside(t, sim.ActionStart)
	release()
	f.wait(t, before, instance.StateStopped, first)
	expect(t, steps(f.changes(t, first)),
		"running -> stopping by stopper, inferred", "stopping -> stopped by stopper, inferred",
		"stopped -> pending, inferred", "pending -> running")
}

func TestACommandWithoutAnAnswerIsTheCauseOfOneStep(t *testing.T) {
	f, _ := unanswered(t, options{})
	before := f.Cursor()
	f.lose(t, "starter", instance.VerbStart)
	f.wait(t, before, instance.StateRunning, first)
	f.outside(t, sim.ActionStop)
	f.wait(t, before, instance.StateStopped, first)
	before = f.Cursor()
	f.outside(t, sim.ActionStart)
	f.wait(t, before, instance.StateRunning, first)
	expect(t, steps(f.changes(t, first)), "stopped -> pending by starter", "pending -> running by starter",
		"running -> stopping", "stopping -> stopped", "stopped -> pending", "pending -> running")
}

// The same of one that takes longer to be answered than is waited for.
func TestACommandThatHangsIsTheCauseOfOneStep(t *testing.T) {
	b := &blockingBackend{executed: make(chan instance.Verb), release: make(chan struct{})}
	f := start(t, options{wrap: func(backend lifecycle.Backend) lifecycle.Backend { b.Backend = backend; return b }})
	before := f.Cursor()
	hanging := make(chan error, 1)
	go func() {
		_, err := f.Command(t.Context(), lifecycle.Caller{Principal: "starter"}, lifecycle.CommandRequest{Verb: instance.VerbStart, InstanceIDs: []string{first}})
		hanging <- err
	}()
	<-b.executed
	f.wait(t, before, instance.StateRunning, first)
	f.outside(t, sim.ActionStop)
	f.wait(t, before, instance.StateStopped, first)
	before = f.Cursor()
	f.outside(t, sim.ActionStart)
	f.wait(t, before, instance.StateRunning, first)
	close(b.release)
	if err := <-hanging; err != nil {
		t.Error(err)
	}
	expect(t, steps(f.changes(t, first)), "stopped -> pending by starter", "pending -> running by starter",
		"running -> stopping", "stopping -> stopped", "stopped -> pending", "pending -> running")
}

func TestWhatIsRememberedOfCommandsWithoutAnAnswerIsBounded(t *testing.T) {
	f, release := unanswered(t, options{sim: sim.Config{Fleet: running(), Faults: []sim.Fault{{Kind: sim.NoticeLost}}}})
	before := f.Cursor()
	for range 16 {
		f.lose(t, "starter", instance.VerbStart) // it is running
	}
	f.lose(t, "stopper", instance.VerbStop)
	release()
	f.wait(t, before, instance.StateStopped, first)
	expect(t, steps(f.changes(t, first)), "running -> stopping, inferred", "stopping -> stopped")
}

// later is a backend to which commands get lost, and where all that happens from outside
// happens a minute later than it does.
type later struct {
	lifecycle.Backend
	lost atomic.Bool
	held chan struct{}
}

func (l *later) Execute(_ context.Context, cmd instance.Command) (instance.Result, error) {
	cmd.Sent(cmd.IDs)
	l.lost.Store(true)
	return instance.Result{}, &instance.Error{Kind: instance.KindUnavailable, Message: "no response", OutcomeUnknown: true}
}

func (l *later) image(i *instance.Instance) *instance.Instance {
	if l.lost.Load() {
		i = i.Clone()
		i.LaunchTime = i.LaunchTime.Add(time.Minute)
	}
	return i
}

func (l *later) Describe(ctx context.Context, q instance.DescribeQuery) (instance.DescribePage, error) {
	if !q.All {
		<-l.held
	}
	page, err := l.Backend.Describe(ctx, q)
	for n, i := range page.Instances {
		page.Instances[n] = l.image(i)
	}
	return page, err
}

func (l *later) Notices(ctx context.Context) iter.Seq2[instance.Notice, error] {
	return func(yield func(instance.Notice, error) bool) {
		for n, err := range l.Backend.Notices(ctx) {
			if err == nil {
				n.OccurredAt, n.Instance = n.OccurredAt.Add(time.Minute), l.image(n.Instance)
			}
			if !yield(n, err) {
				return
			}
		}
	}
}

func TestACommandThatGotLostIsNotTheCauseOfWhatSomebodyElseDoesLater(t *testing.T) {
	for _, tc := range []struct {
		name      string
		config    sim.Config
		described bool
		lost      instance.Verb
		action    sim.Action
		reached   instance.State
		want      []string
	}{
		{
			"a start that is described",
			sim.Config{Faults: []sim.Fault{{Kind: sim.NoticeLost}}},
			true,
			instance.VerbStart, sim.ActionStart, instance.StateRunning,
			[]string{"stopped -> pending, inferred", "pending -> running"},
		},
		{
			"a stop of which notice is given",
			sim.Config{Fleet: running()},
			false,
			instance.VerbStop, sim.ActionStop, instance.StateStopped,
			[]string{"running -> stopping", "stopping -> stopped"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := &later{held: make(chan struct{})}
			release := sync.OnceFunc(func() { close(l.held) })
			f := start(t, options{sim: tc.config, wrap: func(b lifecycle.Backend) lifecycle.Backend { l.Backend = b; return l }})
			t.Cleanup(release)
			before := f.Cursor()
			f.lose(t, "another", tc.lost)
			f.outside(t, tc.action)
			if tc.described {
				release()
			}
			f.wait(t, before, tc.reached, first)
			expect(t, steps(f.changes(t, first)), tc.want...)
		})
	}
}
