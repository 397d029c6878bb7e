package ec2

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	grpccodes "google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
	"github.com/instanced/instanced/internal/lifecycle"
	"github.com/instanced/instanced/server"
)

// distance is the way to a simulator. While away is set nothing arrives there.
type distance struct {
	simulated

	mu   sync.Mutex
	away func(context.Context) error
	// lose replaces what is answered to a call that was carried out, if it says so.
	lose func(context.Context, call) (answer reply, lost bool, err error)
}

func (d *distance) answer(ctx context.Context, c call) (reply, error) {
	d.mu.Lock()
	away, lose := d.away, d.lose
	d.mu.Unlock()
	if away != nil {
		return reply{}, away(ctx)
	}
	answer, err := d.simulated.answer(ctx, c)
	if lose != nil {
		if instead, lost, err := lose(ctx, c); lost {
			return instead, err
		}
	}
	return answer, err
}

func (d *distance) set(away func(context.Context) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.away = away
}

// refused is how calls end when nothing listens.
func refused(context.Context) error {
	return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
}

// swallowed is how calls end when packets are swallowed: those on a connection of before
// are never answered, and no other connection comes about.
func swallowed(connections int) func(context.Context) error {
	var mu sync.Mutex
	return func(ctx context.Context) error {
		mu.Lock()
		connections--
		old := connections >= 0
		mu.Unlock()
		if old || !pause(ctx, 5*time.Second) {
			<-ctx.Done()
			return ctx.Err()
		}
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}
	}
}

// silent is how calls end when connections come about and nothing is ever answered.
func silent(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestAnOutageOfEC2FailsFastAndLosesNothing(t *testing.T) {
	for _, way := range []struct {
		name string
		away func(context.Context) error
		// first bounds how long a refusal takes to those who came before it was known, later
		// to all others: a probe of whether EC2 is back takes that time.
		first, later time.Duration
		// back is after how long everything is compared once EC2 is back: another try of the
		// comparison that is under way takes as long as a call may.
		back time.Duration
	}{
		{"connections are refused", refused, time.Second, time.Second, 15 * time.Second},
		{"packets are swallowed", swallowed(4), 27 * time.Second, 6 * time.Second, 15 * time.Second},
		{"connections are silent", silent, 29 * time.Second, 21 * time.Second, 25 * time.Second},
	} {
		t.Run(way.name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				o := newOutage(t, dir)
				defer o.end()
				o.lasts(10*time.Minute, way.away, way.first, way.later, way.back)
			})
		})
	}
}

// outage is a service whose EC2 is going to be out of reach, and those who use it.
type outage struct {
	*testing.T
	far      *distance
	endpoint *endpoint
	api      instancedv1.InstanceServiceClient
	layer    *lifecycle.Service
	end      func()
}

const outageFleet = 1000

// newOutage is a service with a fleet of which the lower half is stopped and the upper one
// running.
func newOutage(t *testing.T, dir string) *outage {
	half := outageFleet / 2
	config := sim.Config{Speed: 1, Throttle: true}
	for n := range outageFleet {
		spec := sim.Spec{ID: id(n)}
		if n >= half {
			spec.State = instance.StateRunning
		}
		config.Fleet = append(config.Fleet, spec)
	}
	return newOutageOf(t, dir, config)
}

func newOutageOf(t *testing.T, dir string, config sim.Config, adjust ...func(*endpoint)) *outage {
	o := &outage{T: t, far: &distance{simulated: simulated{simulate(t, config)}}}
	o.endpoint = &endpoint{answer: o.far.answer, latency: always(50 * time.Millisecond)}
	for _, a := range adjust {
		a(o.endpoint)
	}
	b := connect(t, o.endpoint)
	j, err := journal.Open(t.Context(), journal.Config{DataDir: dir, MinFreeDisk: -1})
	if err != nil {
		t.Fatal(err)
	}
	o.layer = lifecycle.New(lifecycle.Config{Journal: j, Backend: b})
	srv := server.New(server.Config{Lifecycle: o.layer, Backend: "ec2"})
	ctx, cancel := context.WithCancel(context.Background())
	lis := bufconn.Listen(1 << 20)
	var running sync.WaitGroup
	running.Go(func() { o.must(o.layer.Run(ctx)) })
	running.Go(func() { o.must(srv.Serve(lis)) })
	conn, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	o.api = instancedv1.NewInstanceServiceClient(conn)
	o.end = func() {
		o.must(srv.Shutdown(context.Background()))
		cancel()
		running.Wait()
		o.must(errors.Join(conn.Close(), j.Close(context.Background())))
		b.Close()
		o.far.Close()
	}
	<-o.layer.Ready()
	return o
}

func (o *outage) must(err error) {
	if err != nil {
		o.Error(err)
	}
}

// calls counts the calls to EC2 since a time.
func (o *outage) calls(since time.Time) map[string]int {
	o.endpoint.mu.Lock()
	defer o.endpoint.mu.Unlock()
	n := make(map[string]int)
	for _, c := range o.endpoint.calls {
		if !c.at.Before(since) {
			n[c.action]++
		}
	}
	return n
}

// subscriber reads a subscription from now on.
type subscriber struct {
	mu       sync.Mutex
	events   []*instancedv1.Event
	progress int
	err      error
}

func (o *outage) subscribe(ctx context.Context, running *sync.WaitGroup) *subscriber {
	stream, err := o.api.WatchInstances(ctx, &instancedv1.WatchInstancesRequest{FromNow: true})
	if err != nil {
		o.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		o.Fatal(err)
	}
	s := &subscriber{}
	running.Go(func() {
		for {
			msg, err := stream.Recv()
			s.mu.Lock()
			if err != nil {
				s.err = err
				s.mu.Unlock()
				return
			}
			s.events = append(s.events, msg.GetEvents().GetEvents()...)
			if msg.GetProgress() != nil {
				s.progress++
			}
			s.mu.Unlock()
		}
	})
	return s
}

func (s *subscriber) got() (events []*instancedv1.Event, progress int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.events), s.progress, s.err
}

// persistent is a caller that comes back until it is served.
type persistent struct {
	first, later time.Duration // the longest that a refusal took
	refusals     int
	accepted     time.Time
}

// start starts an instance, and comes back ever more seldom while that is refused.
func (o *outage) start(ctx context.Context, n int, gone time.Time) (p persistent) {
	for backoff := 2 * time.Second; ; backoff = min(3*backoff, 2*time.Minute) {
		began := time.Now()
		_, err := o.api.StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: []string{string(id(n))}})
		took := time.Since(began)
		switch {
		case err == nil:
			p.accepted = time.Now()
			return p
		case status.Code(err) != grpccodes.Unavailable:
			o.Errorf("%v after the beginning: %v", began.Sub(gone), err)
			return p
		}
		p.refusals++
		if began.Sub(gone) < 10*time.Second {
			p.first = max(p.first, took)
		} else {
			p.later = max(p.later, took)
		}
		pause(ctx, jitter(backoff))
	}
}

// lasts takes EC2 away for a time, with a thousand callers and waiters around, and looks
// at what they see then and afterwards. The lower half of the instances is stopped, the
// upper one running.
func (o *outage) lasts(d time.Duration, away func(context.Context) error, first, later, within time.Duration) {
	const half, wanted, arriving, changed = outageFleet / 2, 100, 20, 50
	ctx, cancel := context.WithCancel(o.Context())
	var running, callers sync.WaitGroup
	defer running.Wait()
	defer cancel()
	sub := o.subscribe(ctx, &running)
	var reached atomic.Int32
	for n := range outageFleet {
		state := instancedv1.InstanceStateName_INSTANCE_STATE_NAME_RUNNING
		if n >= half {
			state = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_STOPPED
		}
		running.Go(func() {
			resp, err := o.api.WaitInstances(ctx, &instancedv1.WaitInstancesRequest{
				InstanceIds: []string{string(id(n))}, States: []instancedv1.InstanceStateName{state}, Timeout: durationpb.New(lifecycle.MaxWait),
			})
			if err == nil && resp.GetResults()[0].GetOutcome() == instancedv1.WaitOutcome_WAIT_OUTCOME_REACHED {
				reached.Add(1)
			}
		})
	}
	// Some are between two states when it begins, each of them at another moment.
	for n := half; n < half+arriving; n++ {
		if _, err := o.api.StopInstances(ctx, &instancedv1.StopInstancesRequest{InstanceIds: []string{string(id(n))}}); err != nil {
			o.Fatal(err)
		}
	}
	synctest.Wait()
	before, _, _ := sub.got()
	compared := o.layer.LastReconciled()
	o.far.set(away)
	gone := time.Now()

	list := make([]persistent, outageFleet)
	for n := range list {
		callers.Go(func() {
			pause(ctx, rand.N(time.Minute))
			list[n] = o.start(ctx, n%wanted, gone)
		})
	}
	// Meanwhile EC2 goes on, and comes to rest.
	for n := half + arriving; n < half+arriving+changed; n++ {
		time.Sleep((d - time.Minute) / changed)
		if _, err := o.far.Execute(ctx, instance.Command{Verb: instance.VerbStop, IDs: []instance.ID{id(n)}, Principal: "console"}); err != nil {
			o.Fatal(err)
		}
	}
	time.Sleep(time.Until(gone.Add(d)))

	read, err := o.api.DescribeInstances(ctx, &instancedv1.DescribeInstancesRequest{PageSize: 1000})
	if age := time.Since(read.GetLastReconciled().AsTime()); err != nil || len(read.GetInstances()) != outageFleet || !read.GetLastReconciled().AsTime().Equal(compared) || age < d {
		o.Errorf("reading gives %d instances, compared %v ago, %v", len(read.GetInstances()), age, err)
	}
	events, progress, err := sub.got()
	if err != nil || len(events) != len(before) || progress < int(d/lifecycle.DefaultProgress)-1 {
		o.Errorf("a subscriber got %d events, progress %d times, %v", len(events)-len(before), progress, err)
	}
	// One call in five seconds tries whether EC2 is back, and another compares everything;
	// the rest is from before it was known.
	during := o.calls(gone)
	if n := during["StartInstances"] + during["DescribeInstances"]; len(during) > 2 || n > 2*int(d/probeInterval)+20 {
		o.Errorf("EC2 was called %v", during)
	}

	back := time.Now()
	o.far.set(nil)
	// A try that is under way takes as long as a connection or a call may, the next one comes
	// after another five seconds. Then the buckets bound the commands, and one call after the
	// other is for what is looked at, at most two in a second.
	time.Sleep(within)
	soon, seconds := o.calls(back), int(within/time.Second)
	if !o.layer.LastReconciled().After(compared) || soon["StartInstances"] > 5+2*seconds || soon["DescribeInstances"] > 2*seconds {
		o.Errorf("%v after the return EC2 was called %v, everything compared at %v", within, soon, o.layer.LastReconciled())
	}
	callers.Wait()
	time.Sleep(time.Minute) // the last of them arrive
	var all persistent
	for _, p := range list {
		all.first, all.later, all.refusals = max(all.first, p.first), max(all.later, p.later), all.refusals+p.refusals
		if p.accepted.After(all.accepted) {
			all.accepted = p.accepted
		}
	}
	o.Logf("in %v EC2 was called %v, in the %v after it %v; %d commands were refused, within %v at the beginning and %v later; the last was accepted %v after the return",
		d, during, within, soon, all.refusals, all.first, all.later, all.accepted.Sub(back))
	if all.first > first || all.later > later {
		o.Errorf("a refusal took %v at the beginning, %v later", all.first, all.later)
	}
	if n := reached.Load(); n != wanted+arriving+changed {
		o.Errorf("%d waits reached their state", n)
	}
	events, _, err = sub.got()
	if err != nil {
		o.Error(err)
	}
	o.check(events, half+arriving, half+arriving+changed)
}

// check compares what a subscriber got with what is so at EC2. Of the instances from one
// to another a state was skipped.
func (o *outage) check(events []*instancedv1.Event, from, to int) {
	type step struct {
		state    instance.State
		inferred bool
	}
	chains := make(map[instance.ID][]step)
	last := make(map[instance.ID]instance.State)
	for _, e := range events {
		if e.GetType() != instancedv1.EventType_EVENT_TYPE_STATE_CHANGED {
			continue
		}
		id := instance.ID(e.GetInstance().GetInstanceId())
		before, _ := instance.StateFromCode(e.GetPreviousState().GetCode())
		after, _ := instance.StateFromCode(e.GetInstance().GetState().GetCode())
		if known, ok := last[id]; ok && known != before || !instance.CanFollow(before, after) {
			o.Errorf("after %v of %s comes %v -> %v", known, id, before, after)
		}
		last[id] = after
		chains[id] = append(chains[id], step{after, e.GetInferred()})
	}
	for n := from; n < to; n++ {
		if want := []step{{instance.StateStopping, true}, {instance.StateStopped, false}}; !slices.Equal(chains[id(n)], want) {
			o.Errorf("of %s were told %v, want %v", id(n), chains[id(n)], want)
		}
	}
	page, err := o.far.Describe(o.Context(), instance.DescribeQuery{All: true, PageSize: outageFleet})
	if err != nil || len(page.Instances) != outageFleet {
		o.Errorf("EC2 has %d instances, %v", len(page.Instances), err)
	}
	for _, i := range page.Instances {
		if known, ok := last[i.ID]; ok && known != i.State {
			o.Errorf("%s is %v, and was told to be %v", i.ID, i.State, known)
		}
	}
}
