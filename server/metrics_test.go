package server_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
	"github.com/instanced/instanced/server/servertest"
)

// values returns the values of a metric by its labels, counts for a histogram.
func values(t testing.TB, registry *prometheus.Registry, name string) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]float64)
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			labels := ""
			for _, l := range m.GetLabel() {
				labels += l.GetName() + "=" + l.GetValue() + " "
			}
			switch {
			case m.GetHistogram() != nil:
				found[labels] = float64(m.GetHistogram().GetSampleCount())
			case m.GetGauge() != nil:
				found[labels] = m.GetGauge().GetValue()
			default:
				found[labels] = m.GetCounter().GetValue()
			}
		}
	}
	return found
}

// comes waits for a value of a metric: what is counted at the end of a call is counted after
// its caller has the response.
func comes(t testing.TB, registry *prometheus.Registry, name, labels string, want float64) {
	t.Helper()
	for ctx := patient(t); ; {
		got := values(t, registry, name)
		if got[labels] == want {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s with %s is not %v: %v", name, labels, want, got)
		case <-time.After(time.Millisecond):
		}
	}
}

func TestCallsAreMeasuredByMethodAndStatusCode(t *testing.T) {
	registry := prometheus.NewRegistry()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(2), Metrics: registry, MetricsPrincipals: 1})
	ctx := patient(t)
	if _, err := srv.Instances().StartInstances(as(ctx, "ana", "r"), &instancedv1.StartInstancesRequest{InstanceIds: ids(1)}); err != nil {
		t.Fatal(err)
	}
	_, err := srv.Instances().StartInstances(as(ctx, "bob", "r"), &instancedv1.StartInstancesRequest{InstanceIds: []string{id(77)}})
	wantCode(t, err, codes.NotFound)
	_, err = srv.Instances().StartInstances(as(ctx, "bob", "r"), &instancedv1.StartInstancesRequest{InstanceIds: ids(1), DryRun: true})
	wantCode(t, err, codes.FailedPrecondition)
	// A request that cannot be received does not reach the interceptors.
	err = srv.Conn().Invoke(ctx, instancedv1.InstanceService_StartInstances_FullMethodName,
		&instancedv1.StartInstancesRequest{AdditionalInfo: noiseOf(2 << 20)}, new(emptypb.Empty))
	wantCode(t, err, codes.ResourceExhausted)

	const durations, start = "rpc_server_call_duration_seconds", "rpc_method=instanced.v1.InstanceService/StartInstances "
	for code, want := range map[string]float64{"OK": 1, "NOT_FOUND": 1, "FAILED_PRECONDITION": 1, "RESOURCE_EXHAUSTED": 1} {
		comes(t, registry, durations, start+"rpc_response_status_code="+code+" rpc_system_name=grpc ", want)
	}
	comes(t, registry, "instanced_server_calls_in_flight", start, 0)
	if got := values(t, registry, "instanced_server_failed_calls_total"); len(got) != 2 || got["reason=INVALID_INSTANCE_ID_NOT_FOUND "+start] != 1 || got["reason=RESOURCE_EXHAUSTED "+start] != 1 {
		t.Errorf("failed calls: %v; a dry run that would succeed is none", got)
	}
	got := values(t, registry, "instanced_calls_by_principal_total")
	if got["code=OK endpoint=grpc principal=ana "] != 1 || got["code=NOT_FOUND endpoint=grpc principal=_OTHER "] != 1 {
		t.Errorf("calls by principal: %v", got)
	}
}

// TestHostileMethodNamesMakeNoSeries makes 2,000 calls, and 100,000 with INSTANCED_SOAK: they are
// a flood, which is slowed down.
func TestHostileMethodNamesMakeNoSeries(t *testing.T) {
	calls := 2000
	if soaking() {
		calls = 100_000
	}
	registry := prometheus.NewRegistry()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(0), Metrics: registry})
	ctx := patient(t)
	call := func(method string) {
		t.Helper()
		wantCode(t, srv.Conn().Invoke(ctx, method, new(emptypb.Empty), new(emptypb.Empty)), codes.Unimplemented)
	}
	call("/first/Method")
	before, err := testutil.GatherAndCount(registry)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	const callers = 16
	for caller := range callers {
		go func() {
			var failed error
			for n := caller; n < calls; n += callers {
				method := fmt.Sprintf("/hostile.Service%d/Method%d", n%7, n)
				if n%3 == 0 {
					method = fmt.Sprintf("/instanced.v1.InstanceService/Start%d", n)
				}
				if err := srv.Conn().Invoke(ctx, method, new(emptypb.Empty), new(emptypb.Empty)); failed == nil {
					failed = hasCode(err, codes.Unimplemented)
				}
			}
			ended <- failed
		}()
	}
	for range callers {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	after, err := testutil.GatherAndCount(registry)
	if err != nil {
		t.Fatal(err)
	}
	if after != before {
		t.Errorf("there are %d series after %d distinct methods, %d before", after, calls, before)
	}
	comes(t, registry, "rpc_server_call_duration_seconds", "rpc_method=_OTHER rpc_response_status_code=UNIMPLEMENTED rpc_system_name=grpc ", float64(calls+1))
}

func TestHostilePrincipalsMakeNoSeries(t *testing.T) {
	registry := prometheus.NewRegistry()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(0), Metrics: registry, MetricsPrincipals: 3})
	for n := range 1000 {
		if _, err := srv.Instances().GetServerInfo(as(patient(t), fmt.Sprintf("principal-%d", n), "r"), &instancedv1.GetServerInfoRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	comes(t, registry, "instanced_calls_by_principal_total", "code=OK endpoint=grpc principal=_OTHER ", 997)
	if got := values(t, registry, "instanced_calls_by_principal_total"); len(got) != 4 {
		t.Errorf("%d series: %v", len(got), got)
	}
}

func TestWatchesAreCountedByState(t *testing.T) {
	registry := prometheus.NewRegistry()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(4), Metrics: registry})
	r := watch(t, srv, &instancedv1.WatchInstancesRequest{ProgressInterval: durationpb.New(time.Second)})
	until(t, r, conformance.SnapshotSeen)
	comes(t, registry, "instanced_server_watches", "state=live ", 1)
	comes(t, registry, "instanced_server_watch_lag_revisions", "principal=anonymous ", 0)
	comes(t, registry, "instanced_server_calls_in_flight", "rpc_method=instanced.v1.InstanceService/WatchInstances ", 1)

	resp, err := srv.Instances().StartInstances(patient(t), &instancedv1.StartInstancesRequest{InstanceIds: ids(4)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.UntilCursor(patient(t), resp.GetEndCursor()); err != nil {
		t.Fatal(err)
	}
	cursor := settled(t, srv, ids(4))
	if _, err := r.UntilCursor(patient(t), cursor); err != nil {
		t.Fatal(err)
	}
	comes(t, registry, "instanced_server_watch_events_total", "", 8)
	if got := values(t, registry, "instanced_server_event_delivery_delay_seconds")[""]; got < 1 {
		t.Error("no event was measured at its delivery")
	}

	// A subscriber that replays history gets events that are older than its watch.
	measured := values(t, registry, "instanced_server_event_delivery_delay_seconds")[""]
	info, err := srv.Instances().GetServerInfo(patient(t), &instancedv1.GetServerInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(patient(t))
	replay, err := srv.Instances().WatchInstances(ctx, &instancedv1.WatchInstancesRequest{AfterCursor: info.GetOldestCursor()})
	if err != nil {
		t.Fatal(err)
	}
	for events := 0; events < 8; {
		msg, err := replay.Recv()
		if err != nil {
			t.Fatal(err)
		}
		events += len(msg.GetEvents().GetEvents())
	}
	if got := values(t, registry, "instanced_server_event_delivery_delay_seconds")[""]; got != measured {
		t.Errorf("%v events were measured after a replay, %v before", got, measured)
	}
	cancel()
	comes(t, registry, "instanced_server_watches", "state=live ", 1)
	if err := srv.Shutdown(patient(t)); err != nil {
		t.Fatal(err)
	}
	comes(t, registry, "instanced_server_watches", "state=live ", 0)
	comes(t, registry, "instanced_server_watch_goodbyes_total", "reason=DRAIN ", 1)
}

// A watch whose subscriber does not read lags, and says by how much; its principal is named.
func TestAWatchThatIsNotReadLags(t *testing.T) {
	registry := prometheus.NewRegistry()
	srv := servertest.New(t, servertest.Options{Fleet: fleet(4), Metrics: registry})
	stream, err := srv.Instances().WatchInstances(as(patient(t), "slow", "r"), &instancedv1.WatchInstancesRequest{FromNow: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	outgrow(t, srv, ids(4))
	comes(t, registry, "instanced_server_watches", "state=catching_up ", 1)
	if got := values(t, registry, "instanced_server_watch_lag_seconds"); got["principal=slow "] < 1 {
		t.Errorf("the lag in seconds is %v", got)
	}
	if got := values(t, registry, "instanced_server_watch_lag_revisions"); got["principal=slow "] < 1 {
		t.Errorf("the lag in revisions is %v", got)
	}
	cursor := head(t, srv)
	for caught := false; !caught; {
		msg, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		caught = msg.GetCursor() == cursor
	}
	comes(t, registry, "instanced_server_watch_lag_revisions", "principal=slow ", 0)
	comes(t, registry, "instanced_server_watches", "state=live ", 1)
}

// TestAScrapeCostsTheSameWithAnyFleet counts what a scrape allocates, which a scan of the fleet
// would raise.
func TestAScrapeCostsTheSameWithAnyFleet(t *testing.T) {
	allocations := func(instances int32) float64 {
		registry := prometheus.NewRegistry()
		srv := servertest.New(t, servertest.Options{
			Fleet:   &instancedv1.CreateInstancesRequest{Instances: []*instancedv1.InstanceSpec{{Count: instances}}},
			Metrics: registry,
		})
		defer srv.Close()
		return testing.AllocsPerRun(20, func() {
			if _, err := registry.Gather(); err != nil {
				t.Fatal(err)
			}
		})
	}
	small, large := allocations(1), allocations(5000)
	if large > small+200 {
		t.Errorf("a scrape allocates %v times with 5,000 instances, %v times with one", large, small)
	}
}

func hasCode(err error, want codes.Code) error {
	if status.Code(err) != want {
		return fmt.Errorf("the code is %v, want %v: %w", status.Code(err), want, err)
	}
	return nil
}
