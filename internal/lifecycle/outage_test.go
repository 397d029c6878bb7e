package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/instanced/instanced/internal/addrtest"
	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
	"github.com/instanced/instanced/internal/metricstest"
)

// startEtcd starts an external etcd and returns its address.
func startEtcd(t *testing.T) string {
	t.Helper()
	address := addrtest.Free(t)
	cfg := embed.NewConfig()
	cfg.Dir = t.TempDir()
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	client := url.URL{Scheme: "http", Host: address}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls = nil
	cfg.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2380"}}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.EnableGRPCGateway = false
	cfg.TickMs, cfg.ElectionMs = 10, 100
	server, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	<-server.Server.ReadyNotify()
	return address
}

// cable leads to a server, and can be cut and mended.
type cable struct {
	t       *testing.T
	address string
	server  string

	mu      sync.Mutex
	lis     net.Listener
	ends    []net.Conn
	running sync.WaitGroup
}

func layCable(t *testing.T, server string) *cable {
	t.Helper()
	c := &cable{t: t, address: addrtest.Free(t), server: server}
	c.mend()
	t.Cleanup(c.cut)
	return c
}

func (c *cable) mend() {
	lis, err := net.Listen("tcp", c.address)
	if err != nil {
		c.t.Fatal(err)
	}
	c.lis = lis
	c.running.Go(func() {
		for {
			near, err := lis.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", c.server)
			if err != nil {
				near.Close() //nolint:errcheck // the other end is gone
				continue
			}
			c.mu.Lock()
			c.ends = append(c.ends, near, far)
			c.mu.Unlock()
			c.running.Go(func() { io.Copy(near, far) }) //nolint:errcheck // it ends when the cable is cut
			c.running.Go(func() { io.Copy(far, near) }) //nolint:errcheck // it ends when the cable is cut
		}
	})
}

func (c *cable) cut() {
	c.lis.Close() //nolint:errcheck // it may be cut already
	c.mu.Lock()
	for _, end := range c.ends {
		end.Close() //nolint:errcheck // it may be closed already
	}
	c.ends = nil
	c.mu.Unlock()
	c.running.Wait()
}

// outage cuts the cable after a command was carried out, before its answer is recorded.
type outage struct {
	lifecycle.Backend
	cable *cable
	once  bool
	calls int
}

func (o *outage) Execute(ctx context.Context, cmd instance.Command) (instance.Result, error) {
	o.calls++
	r, err := o.Backend.Execute(ctx, cmd)
	if o.once {
		o.once = false
		o.cable.cut()
	}
	return r, err
}

func TestAChangeThatCannotBeRecordedIsToldAndRepaired(t *testing.T) {
	c := layCable(t, startEtcd(t))
	o := &outage{cable: c, once: true}
	registry := prometheus.NewRegistry()
	f := start(t, options{
		metrics:   registry,
		endpoints: []string{c.address},
		sim:       sim.Config{Speed: 20},
		wrap:      func(b lifecycle.Backend) lifecycle.Backend { o.Backend = b; return o },
	})
	before := f.Cursor()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := f.command(ctx, instance.VerbStart, first)
	if reasonOf(err) != instance.ReasonNotRecorded || ctx.Err() != nil {
		t.Fatalf("got %v; want NOT_RECORDED, and before the deadline", err)
	}
	metricstest.Expect(t, registry, map[string]float64{
		`instanced_observer_unresolved_commands{state="unrecorded"}`:                                       1,
		`instanced_observer_commands_total{outcome="unknown",reason="NOT_RECORDED",verb="StartInstances"}`: 1,
	})
	const started = `instanced_journal_state_changes_total{cause="StartInstances",from="stopped",inferred="false",source="answer",to="pending"}`
	if n, ok := metricstest.Samples(t, registry)[started]; ok {
		t.Errorf("%v starts are counted before one is recorded", n)
	}
	// Stopping a stopped instance leaves nothing to record; once the outage is noticed it
	// is rejected too, as is everything, before the backend is called.
	for {
		calls := o.calls
		_, err := f.command(t.Context(), instance.VerbStop, second)
		if err == nil {
			continue
		}
		if e, ok := errors.AsType[*instance.Error](err); !ok || e.Kind != instance.KindUnavailable || e.OutcomeUnknown || o.calls != calls {
			t.Errorf("a command during the outage got %v, want a refusal", err)
		}
		break
	}
	awaitSample(t, registry, `instanced_journal_write_errors_total{reason="unavailable"}`, func(n float64) bool { return n > 0 })
	c.mend()
	f.wait(t, before, instance.StateRunning, first)
	awaitSample(t, registry, `instanced_observer_unresolved_commands{state="unrecorded"}`, func(n float64) bool { return n == 0 })
	changes := f.changes(t, first)
	if len(changes) == 0 || changes[len(changes)-1].Cause.Principal != caller.Principal {
		t.Errorf("the repaired record does not say who caused it: %v", steps(changes))
	}
	checkChains(t, changes)
}

// blockingBackend carries commands out, and answers none of them before it is told to.
type blockingBackend struct {
	lifecycle.Backend
	executed chan instance.Verb
	release  chan struct{}
}

func (r *blockingBackend) Execute(ctx context.Context, cmd instance.Command) (instance.Result, error) {
	result, err := r.Backend.Execute(ctx, cmd)
	r.executed <- cmd.Verb
	<-r.release
	return result, err
}

func TestAllChangesThatCouldNotBeRecordedAreRecordedAfterwardsWithTheirCauses(t *testing.T) {
	stop, start := instance.VerbStop, instance.VerbStart
	for _, tc := range []struct {
		name  string
		state instance.State
		verbs []instance.Verb
		// lost are the verbs whose answers are lost besides.
		lost []instance.Verb
		want []string
	}{
		{"when all are answered", instance.StateRunning, []instance.Verb{stop, start, stop, start}, nil, []string{
			"running -> stopping by caller-0", "stopping -> stopped by caller-0",
			"stopped -> pending by caller-1", "pending -> running by caller-1",
			"running -> stopping by caller-2", "stopping -> stopped by caller-2",
			"stopped -> pending by caller-3", "pending -> running by caller-3",
		}},
		{"when answers are lost between them", instance.StateStopped, []instance.Verb{start, stop, start, stop}, []instance.Verb{start}, []string{
			"stopped -> pending by caller-0, inferred", "pending -> running by caller-0",
			"running -> stopping by caller-1", "stopping -> stopped by caller-1, inferred",
			"stopped -> pending by caller-2, inferred", "pending -> running by caller-2",
			"running -> stopping by caller-3", "stopping -> stopped by caller-3",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			faults := []sim.Fault{{Kind: sim.NoticeLost}}
			if tc.lost != nil {
				faults = append(faults, sim.Fault{Kind: sim.AnswerLost, Match: sim.Match{Verbs: tc.lost}})
			}
			f := runDuringOutage(t, tc.verbs, sim.Config{Fleet: []sim.Spec{{ID: first, State: tc.state}}, Faults: faults})
			expect(t, steps(f.changes(t, first)), tc.want...)
		})
	}
}

// runDuringOutage has commands carried out one after the other, cuts the journal off before any of
// them is answered, and returns when all is recorded that there is to record.
func runDuringOutage(t *testing.T, verbs []instance.Verb, config sim.Config) *fixture {
	t.Helper()
	c := layCable(t, startEtcd(t))
	b := &blockingBackend{executed: make(chan instance.Verb), release: make(chan struct{})}
	f := start(t, options{
		endpoints: []string{c.address},
		sim:       config,
		wrap:      func(backend lifecycle.Backend) lifecycle.Backend { b.Backend = backend; return b },
	})
	before := f.Cursor()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var work sync.WaitGroup
	for i, verb := range verbs {
		work.Go(func() {
			me := lifecycle.Caller{Principal: fmt.Sprintf("caller-%d", i)}
			_, err := f.Command(ctx, me, lifecycle.CommandRequest{Verb: verb, InstanceIDs: []string{first}})
			if e, ok := errors.AsType[*instance.Error](err); !ok || !e.OutcomeUnknown {
				t.Errorf("%s by %s got %v, want that nothing is recorded of it", verb, me.Principal, err)
			}
		})
		<-b.executed
	}
	c.cut()
	close(b.release)
	work.Wait()
	c.mend()
	f.wait(t, before, instance.StatePending, first)
	if _, err := f.Refresh(t.Context(), []instance.ID{first}); err != nil {
		t.Fatal(err)
	}
	return f
}

// silentBackend does not describe anything for a while.
type silentBackend struct {
	lifecycle.Backend
	// failures is how many descriptions still fail.
	failures atomic.Int64
}

func (s *silentBackend) Describe(ctx context.Context, q instance.DescribeQuery) (instance.DescribePage, error) {
	if s.failures.Add(-1) >= 0 {
		return instance.DescribePage{}, &instance.Error{Kind: instance.KindUnavailable, Reason: instance.ReasonBackendUnavailable, Message: "it is silent; nothing was changed"}
	}
	return s.Backend.Describe(ctx, q)
}

func TestRefreshAndReconcileOutlastWhatHealsWithinTheirDeadline(t *testing.T) {
	for _, tc := range []struct {
		name   string
		record func(context.Context, *fixture) error
	}{
		{"refresh", func(ctx context.Context, f *fixture) error {
			_, err := f.Refresh(ctx, []instance.ID{first})
			return err
		}},
		{"reconcile", func(ctx context.Context, f *fixture) error {
			_, err := f.Reconcile(ctx)
			return err
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := &silentBackend{}
			f := start(t, options{wrap: func(inner lifecycle.Backend) lifecycle.Backend { b.Backend = inner; return b }})
			b.failures.Store(2)
			if err := tc.record(t.Context(), f); err != nil {
				t.Errorf("got %v, want that it is tried until the backend responds", err)
			}
			b.failures.Store(math.MaxInt64)
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			if err := tc.record(ctx, f); reasonOf(err) != instance.ReasonBackendUnavailable || ctx.Err() != nil {
				t.Errorf("got %v, want before the deadline why it is not recorded", err)
			}
			b.failures.Store(0)
		})
	}
}

func TestAProcessThatIsNotTheOwnerServesReads(t *testing.T) {
	endpoints := []string{startEtcd(t)}
	owner := start(t, options{endpoints: endpoints, address: "owner:1"})
	other := start(t, options{endpoints: endpoints, address: "other:2"})
	_, err := other.command(t.Context(), instance.VerbStart, first)
	refusal, ok := errors.AsType[*instance.Error](err)
	if !ok || refusal.Reason != instance.ReasonNotOwner || refusal.Metadata["owner"] != "owner:1" {
		t.Fatalf("got %v, want NOT_OWNER that names the owner", err)
	}
	r, err := owner.command(t.Context(), instance.VerbStart, first)
	if err != nil {
		t.Fatal(err)
	}
	if result := other.wait(t, r.Cursor, instance.StateRunning, first)[0]; result.Outcome != lifecycle.Reached {
		t.Errorf("got %+v from the other process, want reached", result)
	}
	d, err := other.Describe(t.Context(), caller, lifecycle.DescribeRequest{MinCursor: r.EndCursor})
	if err != nil || d.Instances[0].State == instance.StateStopped {
		t.Errorf("min_cursor did not wait for what the owner recorded: %v, %v", d.Instances, err)
	}
	if info := other.Info(); info.IsOwner || info.OwnerAddress != "owner:1" {
		t.Errorf("got %+v, want that owner:1 is the owner", info)
	}
}
