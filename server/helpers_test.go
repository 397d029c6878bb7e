package server_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
	"github.com/instanced/instanced/server/servertest"
)

const (
	pending      = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_PENDING
	running      = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_RUNNING
	shuttingDown = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_SHUTTING_DOWN
	terminated   = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_TERMINATED
	stopping     = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_STOPPING
	stopped      = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_STOPPED
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patient is the context of a test that waits for conditions: it ends when one of them
// has plainly failed to come.
func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// id returns the id of the n-th instance of a fleet.
func id(n int) string { return fmt.Sprintf("i-%017x", n+1) }

func ids(count int) []string {
	out := make([]string, count)
	for i := range out {
		out[i] = id(i)
	}
	return out
}

// fleet returns so many stopped instances, every other one of team red.
func fleet(count int) *instancedv1.CreateInstancesRequest {
	req := &instancedv1.CreateInstancesRequest{}
	for i := range count {
		team := "blue"
		if i%2 == 0 {
			team = "red"
		}
		req.Instances = append(req.Instances, &instancedv1.InstanceSpec{InstanceId: id(i), Tags: map[string]string{"team": team}})
	}
	return req
}

// as returns the context of a caller.
func as(ctx context.Context, principal, requestID string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "instanced-principal", principal, "request-id", requestID)
}

// watch subscribes until the test ends, and returns when the subscription stands.
func watch(t testing.TB, srv *servertest.Server, req *instancedv1.WatchInstancesRequest) *conformance.Recorder {
	t.Helper()
	return watchOn(t, srv.Conn(), req)
}

func watchOn(t testing.TB, conn *grpc.ClientConn, req *instancedv1.WatchInstancesRequest) *conformance.Recorder {
	t.Helper()
	r, err := conformance.Watch(patient(t), instancedv1.NewInstanceServiceClient(conn), req)
	if err != nil {
		t.Fatal(err)
	}
	until(t, r, conformance.Subscribed)
	return r
}

func until(t testing.TB, r *conformance.Recorder, enough func(*conformance.Connection) bool) *conformance.Connection {
	t.Helper()
	c, err := r.Until(patient(t), enough)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// reference subscribes to everything, from a snapshot on.
func reference(t testing.TB, srv *servertest.Server) *conformance.Recorder {
	t.Helper()
	r := watch(t, srv, &instancedv1.WatchInstancesRequest{})
	until(t, r, conformance.SnapshotSeen)
	return r
}

// logUpTo returns the log once the reference has seen everything up to a cursor.
func logUpTo(t testing.TB, r *conformance.Recorder, cursor string) *conformance.Log {
	t.Helper()
	c, err := r.UntilCursor(patient(t), cursor)
	if err != nil {
		t.Fatal(err)
	}
	log, err := conformance.NewLog(c)
	if err != nil {
		t.Fatal(err)
	}
	return log
}

func hasCursor(c *conformance.Connection, cursor string) bool {
	for _, m := range c.Messages {
		if m.GetCursor() == cursor {
			return true
		}
	}
	return false
}

// head returns the end of the log.
func head(t testing.TB, srv *servertest.Server) string {
	t.Helper()
	info, err := srv.Instances().GetServerInfo(patient(t), &instancedv1.GetServerInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return info.GetCursor()
}

// settled waits until no instance is in transition any more, and returns a cursor
// behind what led there.
func settled(t testing.TB, srv *servertest.Server, ids []string) string {
	t.Helper()
	resp, err := srv.Instances().WaitInstances(patient(t), &instancedv1.WaitInstancesRequest{
		InstanceIds: ids,
		States:      []instancedv1.InstanceStateName{running, stopped, terminated},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range resp.GetResults() {
		if r.GetOutcome() != instancedv1.WaitOutcome_WAIT_OUTCOME_REACHED {
			t.Fatalf("%s does not come to rest: %v", r.GetInstanceId(), r)
		}
	}
	return head(t, srv)
}

// busy has several callers start and stop instances, while things happen to them from
// outside, until each caller has done so many rounds. It returns what was answered.
func busy(t testing.TB, srv *servertest.Server, fleet []string, rounds int) []conformance.Acknowledged {
	t.Helper()
	var (
		mu      sync.Mutex
		answers []conformance.Acknowledged
		callers sync.WaitGroup
	)
	ctx := patient(t)
	for caller := range 4 {
		random := rand.New(rand.NewPCG(1, uint64(caller)))
		callers.Go(func() {
			for range rounds {
				ack, err := something(ctx, srv, fleet, random)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				answers = append(answers, ack...)
				mu.Unlock()
			}
		})
	}
	callers.Wait()
	return answers
}

// something does one thing to one or a few instances.
func something(ctx context.Context, srv *servertest.Server, fleet []string, random *rand.Rand) ([]conformance.Acknowledged, error) {
	chosen := []string{fleet[random.IntN(len(fleet))], fleet[random.IntN(len(fleet))]}
	perInstance := instancedv1.FailureMode_FAILURE_MODE_PER_INSTANCE
	switch random.IntN(5) {
	case 0, 1:
		resp, err := srv.Instances().StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: chosen, FailureMode: perInstance})
		return acknowledged(resp, err)
	case 2, 3:
		resp, err := srv.Instances().StopInstances(ctx, &instancedv1.StopInstancesRequest{InstanceIds: chosen, FailureMode: perInstance})
		return acknowledged(resp, err)
	}
	_, err := srv.Simulator().ChangeInstances(ctx, &instancedv1.ChangeInstancesRequest{Changes: []*instancedv1.OutsideChange{{
		InstanceIds: chosen[:1],
		SetTags:     map[string]string{"team": []string{"red", "blue"}[random.IntN(2)], "n": fmt.Sprint(random.IntN(1000))},
	}}})
	return nil, err
}

// outgrow has about 1 MiB recorded of what cannot be packed, in changes of tags.
func outgrow(t testing.TB, srv *servertest.Server, fleet []string) {
	t.Helper()
	const round, tags = 50, 20
	for n := range round * 2 {
		noise := map[string]string{}
		for tag := range tags {
			noise[fmt.Sprintf("noise-%d", tag)] = noiseOf(256)
		}
		if _, err := srv.Simulator().ChangeInstances(patient(t), &instancedv1.ChangeInstancesRequest{Changes: []*instancedv1.OutsideChange{{
			InstanceIds: []string{fleet[n%len(fleet)]}, SetTags: noise,
		}}}); err != nil {
			t.Fatal(err)
		}
	}
}

// noiseOf returns a text that cannot be compressed.
func noiseOf(size int) string {
	letters := make([]byte, size)
	for i := range letters {
		letters[i] = byte('0' + rand.IntN(75))
	}
	return string(letters)
}

func acknowledged(resp interface {
	GetCursor() string
	GetEndCursor() string
}, err error,
) ([]conformance.Acknowledged, error) {
	if err != nil {
		return nil, err
	}
	return []conformance.Acknowledged{{At: time.Now(), Cursor: resp.GetCursor(), EndCursor: resp.GetEndCursor()}}, nil
}

// history returns all events of instances after a cursor.
func history(t testing.TB, srv *servertest.Server, ids []string, after string) []*instancedv1.Event {
	t.Helper()
	events, err := conformance.History(patient(t), srv.Instances(), ids, after)
	if err != nil {
		t.Fatal(err)
	}
	return events
}

func wantCode(t testing.TB, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("the code is %v, want %v: %v", got, want, err)
	}
}

func wantRefusal(t testing.TB, err error, code codes.Code, reason string) {
	t.Helper()
	if err := conformance.Refused(err, code, reason); err != nil {
		t.Error(err)
	}
}

// logBuffer is the log of a server, to look at.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *logBuffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelInfo}))
}
