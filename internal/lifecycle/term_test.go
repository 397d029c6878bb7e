package lifecycle_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

// slow lets nothing happen to commands before it is told so, or their context ends.
type slow struct {
	lifecycle.Backend
	entered chan instance.Command
	pass    chan struct{}
}

func (s *slow) Execute(ctx context.Context, cmd instance.Command) (instance.Result, error) {
	s.entered <- cmd
	<-s.pass
	return s.Backend.Execute(context.WithoutCancel(ctx), cmd)
}

// TestACommandOfATermThatIsOverIsNotCarriedOut has the owner lose etcd, and its lease with it,
// while commands with and without a client token are on their way to the backend.
func TestACommandOfATermThatIsOverIsNotCarriedOut(t *testing.T) {
	line := layCable(t, startEtcd(t))
	s := &slow{entered: make(chan instance.Command), pass: make(chan struct{})}
	f := start(t, options{
		endpoints: []string{"http://" + line.address}, ttl: 2 * time.Second,
		wrap: func(b lifecycle.Backend) lifecycle.Backend { s.Backend = b; return s },
	})
	refusals := make(chan error, 2)
	for _, token := range []string{"", "once"} {
		go func() {
			_, err := f.Command(t.Context(), caller, lifecycle.CommandRequest{Verb: instance.VerbStart, InstanceIDs: []string{first}, ClientToken: token})
			refusals <- err
		}()
		if cmd := <-s.entered; cmd.Term == nil || cmd.Term.Remaining() <= instance.MinTermLeft {
			t.Errorf("the command comes in a term that lasts %v", cmd.Term)
		} else if token == "once" {
			line.cut()
			<-cmd.Term.Done()
			if left := cmd.Term.Remaining(); left > 0 {
				t.Errorf("%v remains of a term that is over", left)
			}
		}
	}
	line.mend()
	close(s.pass)
	for range cap(refusals) {
		err := <-refusals
		if e, ok := errors.AsType[*instance.Error](err); !ok || e.Reason != instance.ReasonNotOwner || e.OutcomeUnknown {
			t.Errorf("got %v, want that nothing was changed", err)
		}
	}
	if d, err := f.sim.Describe(t.Context(), instance.DescribeQuery{IDs: []instance.ID{first}}); err != nil || d.Instances[0].State != instance.StateStopped {
		t.Errorf("the backend says %+v, %v; want that nothing was started", d.Instances, err)
	}
}

// described counts the times that everything was described.
type described struct {
	lifecycle.Backend
	all atomic.Int32
}

func (d *described) Describe(ctx context.Context, query instance.DescribeQuery) (instance.DescribePage, error) {
	if query.All {
		d.all.Add(1)
	}
	return d.Backend.Describe(ctx, query)
}

// TestANewOwnerLooksAgainWhenWhatWasSentBeforeHasArrived: what the owner before it sent last
// takes effect up to the time that a call may take later.
func TestANewOwnerLooksAgainWhenWhatWasSentBeforeHasArrived(t *testing.T) {
	d := &described{}
	began := time.Now()
	f := start(t, options{
		sim: sim.Config{Speed: 0.01, Faults: []sim.Fault{{Kind: sim.NoticeLost}}}, callTimeout: 500 * time.Millisecond,
		wrap: func(b lifecycle.Backend) lifecycle.Backend { d.Backend = b; return d },
	})
	if n := d.all.Load(); n != 1 {
		t.Fatalf("everything was described %d times at once", n)
	}
	// No notice comes: an earlier owner made the call.
	cursor := f.Cursor()
	if _, err := f.sim.Execute(t.Context(), instance.Command{Verb: instance.VerbStart, IDs: []instance.ID{first}}); err != nil {
		t.Fatal(err)
	}
	f.wait(t, cursor, instance.StatePending, first)
	if n, took := d.all.Load(), time.Since(began); n != 2 || took < 500*time.Millisecond {
		t.Errorf("everything was described %d times within %v", n, took)
	}
}

// overrun has everything change behind the first comparison with the backend, which takes
// longer than a call to it.
type overrun struct {
	lifecycle.Backend
	once   sync.Once
	change func()
}

func (o *overrun) Describe(ctx context.Context, query instance.DescribeQuery) (instance.DescribePage, error) {
	page, err := o.Backend.Describe(ctx, query)
	if query.All {
		o.once.Do(o.change)
	}
	return page, err
}

// TestANewOwnerLooksAgainHoweverLongItLooked: what arrives at the backend after its page was
// read is missing, also when the comparison ends after all has arrived.
func TestANewOwnerLooksAgainHoweverLongItLooked(t *testing.T) {
	const callTimeout = 100 * time.Millisecond
	o := &overrun{}
	f := start(t, options{
		sim: sim.Config{Speed: 0.01, Faults: []sim.Fault{{Kind: sim.NoticeLost}}}, callTimeout: callTimeout,
		wrap: func(b lifecycle.Backend) lifecycle.Backend {
			o.Backend = b
			o.change = func() {
				if _, err := b.Execute(t.Context(), instance.Command{Verb: instance.VerbStart, IDs: []instance.ID{first}}); err != nil {
					t.Error(err)
				}
				time.Sleep(2 * callTimeout) // a backend that is so slow
			}
			return o
		},
	})
	if r := f.wait(t, "", instance.StatePending, first); r[0].Outcome != lifecycle.Reached {
		t.Errorf("what an earlier owner started while everything was described is %+v", r[0])
	}
}
