package server_test

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
	"github.com/instanced/instanced/server/servertest"
)

// scenario is a way in which a history comes about.
type scenario struct {
	name   string
	speed  float64
	faults []*instancedv1.Fault
	moves  moves
	// hurry is the deadline of some of the commands; zero for none.
	hurry time.Duration
	// elsewhere has reads answered by another process on the same etcd.
	elsewhere bool
}

func scenarios() []scenario {
	fault := func(kind instancedv1.FaultKind, probability float64, delay time.Duration) *instancedv1.Fault {
		f := &instancedv1.Fault{Kind: kind, Probability: probability}
		if delay > 0 {
			f.Delay = durationpb.New(delay)
		}
		return f
	}
	trouble := []*instancedv1.Fault{
		fault(instancedv1.FaultKind_FAULT_KIND_NOTICE_LOST, 0.3, 0),
		fault(instancedv1.FaultKind_FAULT_KIND_NOTICE_LATE, 0.3, 10*time.Millisecond),
		fault(instancedv1.FaultKind_FAULT_KIND_NOTICE_DOUBLED, 0.3, 0),
		fault(instancedv1.FaultKind_FAULT_KIND_NOTICE_REORDERED, 0.2, 0),
	}
	lag := fault(instancedv1.FaultKind_FAULT_KIND_DESCRIBE_LAG, 0.5, 20*time.Millisecond)
	lag.Match = &instancedv1.FaultMatch{Verbs: []string{"DescribeInstances"}}
	return []scenario{
		{name: "no delays"},
		{name: "transitions of a few milliseconds", speed: 5000},
		{name: "slow transitions", speed: 300},
		{name: "no room, and starts that fall back", speed: 2000, moves: moves{fall: true}, faults: []*instancedv1.Fault{
			fault(instancedv1.FaultKind_FAULT_KIND_FALL_BACK_TO_STOPPED, 0.4, 0),
			fault(instancedv1.FaultKind_FAULT_KIND_INSUFFICIENT_CAPACITY, 0.2, 0),
		}},
		{name: "notices that are lost, late, doubled and reordered, and descriptions that lag", speed: 2000, moves: moves{fall: true}, faults: append(trouble, lag)},
		{name: "answers that are lost, and slow calls", speed: 2000, moves: moves{fall: true}, faults: []*instancedv1.Fault{
			fault(instancedv1.FaultKind_FAULT_KIND_ANSWER_LOST, 0.1, 0),
			fault(instancedv1.FaultKind_FAULT_KIND_SLOW_CALL, 0.2, 3*time.Millisecond),
		}},
		{name: "callers in a hurry", speed: 2000, hurry: 2 * time.Millisecond, moves: moves{fall: true}},
		{name: "changes from outside", speed: 2000, moves: moves{fall: true, outside: true}},
		{name: "reads elsewhere", speed: 2000, elsewhere: true},
	}
}

// TestLinearizable has several callers start, stop, describe and wait for the same few
// instances at once.
func TestLinearizable(t *testing.T) {
	t.Parallel()
	for i, s := range scenarios() {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			for seed := range seeds(t, 2, len(scenarios())) {
				h := s.run(t, seed*100+uint64(i), nil)
				h.mustFit(t, seed)
			}
		})
	}
}

// seeds yields a few seeds; in a soak, fresh ones for as long as it lasts, which so many
// tests share.
func seeds(t *testing.T, few uint64, share int) func(func(uint64) bool) {
	long := os.Getenv("INSTANCED_SOAK")
	if long == "" {
		return func(yield func(uint64) bool) {
			for seed := uint64(1); seed <= few && !t.Failed() && yield(seed); seed++ {
			}
		}
	}
	d, err := time.ParseDuration(long)
	if err != nil {
		t.Fatalf("INSTANCED_SOAK: %v", err)
	}
	end := time.Now().Add(d / time.Duration(share))
	return func(yield func(uint64) bool) {
		for time.Now().Before(end) && !t.Failed() && yield(rand.Uint64N(1<<40)) {
		}
	}
}

// mustFit fails the test if the history does not fit the model, and draws it.
func (h *trace) mustFit(t *testing.T, seed uint64) {
	t.Helper()
	bad, err := h.check()
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	for id, info := range bad {
		file := filepath.Join(t.ArtifactDir(), fmt.Sprintf("%s-seed-%d.html", id, seed))
		if err := porcupine.VisualizePath(register(h.begin[id]), info, file); err != nil {
			t.Error(err)
		}
		operations, err := h.operations(id)
		if err != nil {
			t.Fatal(err)
		}
		t.Errorf("seed %d: what was answered about %s fits no order of the calls:%s\nsee %s (go test -artifacts keeps it)", seed, id, misfit(operations, info), file)
	}
}

// misfit tells where the longest order that fits ends, and what had to come next.
func misfit(operations []porcupine.Operation, info porcupine.LinearizationInfo) string {
	var longest []porcupine.Operation
	for _, orders := range info.PartialLinearizationsOperations() {
		for _, order := range orders {
			if len(order) > len(longest) {
				longest = order
			}
		}
	}
	left := slices.SortedFunc(slices.Values(operations), func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
	left = slices.DeleteFunc(left, func(op porcupine.Operation) bool { return slices.Contains(longest, op) })
	var b strings.Builder
	for _, part := range []struct {
		title string
		ops   []porcupine.Operation
	}{
		{"the longest order that fits ends with", longest[max(0, len(longest)-8):]},
		{"what is left, and was over first", left[:min(len(left), 8)]},
	} {
		b.WriteString("\n" + part.title)
		for _, op := range part.ops {
			fmt.Fprintf(&b, "\n\tclient %d, %d to %d µs: %v", op.ClientId, op.Call/1000%1e9, op.Return/1000%1e9, op.Input)
		}
	}
	return b.String()
}

const (
	linearInstances = 3
	linearClients   = 6
	linearRounds    = 30
)

// run makes a history. Answers pass through bend, if there is one, on their way to the
// callers.
func (s scenario) run(t *testing.T, seed uint64, bend grpc.UnaryClientInterceptor) *trace {
	t.Helper()
	opts := servertest.Options{Fleet: fleet(linearInstances), Seed: seed, Speed: s.speed, PollInterval: 20 * time.Millisecond}
	if s.elsewhere {
		opts.Endpoints = []string{etcd(t)}
	}
	owner := servertest.New(t, opts)
	reads := owner
	if s.elsewhere {
		reads = servertest.New(t, servertest.Options{Endpoints: opts.Endpoints})
	}
	all := reference(t, owner)
	if _, err := owner.Simulator().SetFaults(patient(t), &instancedv1.SetFaultsRequest{Faults: s.faults}); err != nil {
		t.Fatal(err)
	}
	h := &trace{begin: make(map[string]byte), moves: s.moves}
	for _, id := range ids(linearInstances) {
		h.begin[id] = letters[stopped]
	}
	var (
		mu      sync.Mutex
		clients sync.WaitGroup
	)
	for n := range linearClients {
		c := &linearClient{
			n: n, scenario: s, owner: owner,
			commands: instancedv1.NewInstanceServiceClient(dial(owner, bend)),
			reads:    instancedv1.NewInstanceServiceClient(dial(reads, bend)),
			random:   rand.New(rand.NewPCG(seed, uint64(n))),
		}
		clients.Go(func() {
			ctx := patient(t)
			for round := range linearRounds {
				called, err := c.something(ctx, round)
				if err != nil {
					t.Errorf("seed %d: %v", seed, err)
					return
				}
				mu.Lock()
				h.calls = append(h.calls, called)
				mu.Unlock()
			}
		})
	}
	clients.Wait()
	if t.Failed() {
		t.FailNow()
	}
	h.record(t, owner, all)
	return h
}

func dial(srv *servertest.Server, bend grpc.UnaryClientInterceptor) *grpc.ClientConn {
	if bend == nil {
		return srv.Dial()
	}
	return srv.Dial(grpc.WithUnaryInterceptor(bend))
}

// record adds what was recorded once everything is at rest.
func (h *trace) record(t *testing.T, owner *servertest.Server, all *conformance.Recorder) {
	t.Helper()
	if _, err := owner.Simulator().SetFaults(patient(t), &instancedv1.SetFaultsRequest{}); err != nil {
		t.Fatal(err)
	}
	end := settled(t, owner, ids(linearInstances))
	log := logUpTo(t, all, end)
	h.revision = log.Revision
	for _, m := range all.Seen().Messages {
		for _, e := range m.GetEvents().GetEvents() {
			if e.GetType() == instancedv1.EventType_EVENT_TYPE_STATE_CHANGED {
				h.events = append(h.events, arrived{e, m.At})
			}
		}
	}
}

// linearClient is one caller. It does one thing after the other.
type linearClient struct {
	n        int
	scenario scenario
	owner    *servertest.Server
	commands instancedv1.InstanceServiceClient
	reads    instancedv1.InstanceServiceClient
	random   *rand.Rand
	// last is the cursor of its last answer.
	last string
}

// something makes a call and returns what came of it.
func (c *linearClient) something(ctx context.Context, round int) (called, error) {
	chosen := []string{id(c.random.IntN(linearInstances))}
	if c.random.IntN(3) == 0 {
		chosen = ids(linearInstances)
	}
	call := called{client: c.n, requestID: fmt.Sprintf("%d-%d", c.n, round), kind: []kind{starts, starts, starts, stops, stops, describes, describes, waits}[c.random.IntN(8)]}
	ctx = as(ctx, fmt.Sprintf("caller-%d", c.n), call.requestID)
	if c.scenario.moves.outside && c.random.IntN(8) == 0 {
		call.kind = world
	}
	command := call.kind == starts || call.kind == stops
	if hurry := c.scenario.hurry; command && hurry > 0 && c.random.IntN(3) == 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(c.random.Int64N(int64(hurry))))
		defer cancel()
	}
	call.follows = c.scenario.elsewhere && !command
	if !command && (call.follows || c.random.IntN(2) == 0) {
		call.cursor = c.last
	}
	if call.kind == waits && call.follows && call.cursor == "" {
		call.kind = describes // how old what a process that follows waits with may be is not said
	}
	call.begun = time.Now()
	var err error
	switch call.kind {
	case starts:
		err = c.start(ctx, &call, chosen)
	case stops:
		err = c.stop(ctx, &call, chosen)
	case describes:
		err = c.describe(ctx, &call, chosen)
	case waits:
		err = c.wait(ctx, &call, chosen)
	case world:
		c.outside(ctx, chosen[0])
	}
	call.ended = time.Now()
	if err != nil {
		err = call.fail(err, chosen)
	}
	return call, err
}

func (c *linearClient) start(ctx context.Context, call *called, chosen []string) error {
	resp, err := c.commands.StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: chosen, FailureMode: c.mode(chosen)})
	return c.told(call, resp.GetStartingInstances(), resp.GetFailedInstances(), resp.GetEndCursor(), err)
}

func (c *linearClient) stop(ctx context.Context, call *called, chosen []string) error {
	resp, err := c.commands.StopInstances(ctx, &instancedv1.StopInstancesRequest{InstanceIds: chosen, FailureMode: c.mode(chosen)})
	return c.told(call, resp.GetStoppingInstances(), resp.GetFailedInstances(), resp.GetEndCursor(), err)
}

// mode is the whole call for one instance only: of several, a refusal names one.
func (c *linearClient) mode(chosen []string) instancedv1.FailureMode {
	if len(chosen) == 1 && c.random.IntN(2) == 0 {
		return instancedv1.FailureMode_FAILURE_MODE_WHOLE_CALL
	}
	return instancedv1.FailureMode_FAILURE_MODE_PER_INSTANCE
}

func (c *linearClient) told(call *called, changes []*instancedv1.InstanceStateChange, failures []*instancedv1.InstanceFailure, cursor string, err error) error {
	if err != nil {
		return err
	}
	for _, i := range changes {
		call.answers = append(call.answers, answered{id: i.GetInstanceId(), from: letters[i.GetPreviousState().GetName()], to: letters[i.GetCurrentState().GetName()]})
	}
	for _, f := range failures {
		call.answers = append(call.answers, answered{id: f.GetInstanceId(), refused: f.GetEc2ErrorCode()})
	}
	c.last = cursor
	return nil
}

func (c *linearClient) describe(ctx context.Context, call *called, chosen []string) error {
	resp, err := c.reads.DescribeInstances(ctx, &instancedv1.DescribeInstancesRequest{Filter: &instancedv1.InstanceFilter{InstanceIds: chosen}, MinCursor: call.cursor})
	if err != nil {
		return err
	}
	for _, i := range resp.GetInstances() {
		call.answers = append(call.answers, answered{id: i.GetInstanceId(), to: letters[i.GetState().GetName()], cursor: resp.GetCursor()})
	}
	c.last = resp.GetCursor()
	return nil
}

func (c *linearClient) wait(ctx context.Context, call *called, chosen []string) error {
	wanted := []instancedv1.InstanceStateName{running, stopped}[c.random.IntN(2)]
	timeout := time.Duration(1+c.random.IntN(100)) * time.Millisecond
	resp, err := c.reads.WaitInstances(ctx, &instancedv1.WaitInstancesRequest{
		InstanceIds: chosen, States: []instancedv1.InstanceStateName{wanted}, AfterCursor: call.cursor, Timeout: durationpb.New(timeout),
	})
	if err != nil {
		return err
	}
	for _, r := range resp.GetResults() {
		call.answers = append(call.answers, answered{
			id: r.GetInstanceId(), to: letters[r.GetInstance().GetState().GetName()],
			wanted: letters[wanted], outcome: r.GetOutcome(), cursor: resp.GetCursor(),
		})
	}
	c.last = resp.GetCursor()
	return nil
}

// outside has somebody else start or stop an instance; in some states that is refused.
func (c *linearClient) outside(ctx context.Context, id string) {
	action := []instancedv1.OutsideAction{instancedv1.OutsideAction_OUTSIDE_ACTION_START, instancedv1.OutsideAction_OUTSIDE_ACTION_STOP}[c.random.IntN(2)]
	_, _ = c.owner.Simulator().ChangeInstances(ctx, &instancedv1.ChangeInstancesRequest{Changes: []*instancedv1.OutsideChange{{InstanceIds: []string{id}, Action: action}}})
}

// fail notes what an error says; it is returned when it should not have come.
func (call *called) fail(err error, chosen []string) error {
	s := status.Convert(err)
	for _, d := range s.Details() {
		info, ok := d.(*errdetails.ErrorInfo)
		if !ok {
			continue
		}
		if ec2 := info.GetMetadata()["ec2_error_code"]; (call.kind == starts || call.kind == stops) && len(chosen) == 1 && info.GetMetadata()["outcome"] != "unknown" && ec2 != "" {
			call.answers = []answered{{id: chosen[0], refused: ec2}}
			return nil
		}
	}
	if (call.kind == starts || call.kind == stops) && unknownOutcome(s.Code()) {
		call.unknown = true
		return nil
	}
	return fmt.Errorf("%s: %w", call.requestID, err)
}
