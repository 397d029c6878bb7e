package soak_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
)

// probe asks for a start under a request id of its own, among the requests of the load:
// what it caused is checked in the end.
func (s *scene) probe() *request {
	s.probes++
	r := &request{
		id: fmt.Sprintf("%d-probe-%d", s.seed, s.probes), verb: startInstances, ids: instanceIDs(fleetSize),
		mode: instancedv1.FailureMode_FAILURE_MODE_PER_INSTANCE,
	}
	s.load.carryOut(patient(s.T), r)
	s.load.mu.Lock()
	defer s.load.mu.Unlock()
	s.load.requests = append(s.load.requests, r)
	return r
}

// refuses waits until commands are refused, and tries some more for a while: each of them
// must be refused, at once, for one of these reasons, and say that nothing was changed.
func (s *scene) refuses(lasts time.Duration, code codes.Code, reasons ...string) {
	s.Helper()
	refused := func(r *request) bool {
		return status.Code(r.err) == code && slices.Contains(reasons, errorInfo(r.err).GetReason())
	}
	await(s.T, fmt.Sprintf("commands are refused as %v", reasons), func() bool { return refused(s.probe()) })
	for began := time.Now(); time.Since(began) < lasts; time.Sleep(20 * time.Millisecond) {
		asked := time.Now()
		if r := s.probe(); !refused(r) || outcomeUnknown(r.err) {
			s.Errorf("a command is answered: %v, %v", r.answer, r.err)
		} else if took := time.Since(asked); took > 5*time.Second {
			s.Errorf("a refusal took %v", took)
		}
		s.summary.count("commands refused as "+reasons[0], 1)
	}
	if _, err := s.instances.DescribeInstances(patient(s.T), &instancedv1.DescribeInstancesRequest{}); err != nil {
		s.Errorf("reads do not go on: %v", err)
	}
}

// told waits until each subscriber has been told of an impairment for this reason, or
// with none that there is none any more, on the stream that it has.
func (s *scene) told(reason string) {
	s.Helper()
	now := time.Now()
	for _, sub := range s.subscribers {
		sub.until(s.T, fmt.Sprintf("that the impairment is %q", reason), func(c *conformance.Connection) bool {
			last := c.Messages[len(c.Messages)-1]
			return last.GetProgress() != nil && last.At.After(now) && last.GetProgress().GetImpairment().GetReason() == reason
		})
	}
	info, err := info(s.T, s.conn)
	if err != nil {
		s.Fatal(err)
	}
	if got := info.GetImpairment().GetReason(); got != reason {
		s.Errorf("GetServerInfo says that the impairment is %q, want %q", got, reason)
	}
}

// health waits until the service is healthy, or is not.
func (s *scene) health(want grpc_health_v1.HealthCheckResponse_ServingStatus) {
	s.Helper()
	client := grpc_health_v1.NewHealthClient(s.conn)
	await(s.T, fmt.Sprintf("the health is %v", want), func() bool {
		resp, err := client.Check(patient(s.T), &grpc_health_v1.HealthCheckRequest{Service: "instanced.v1.InstanceService"})
		return err == nil && resp.GetStatus() == want
	})
}

// uninterrupted checks that no stream ended.
func (s *scene) uninterrupted() {
	s.Helper()
	for _, sub := range s.subscribers {
		if n := len(sub.Seen().Streams()); n > 1 {
			s.Errorf("%s needed %d streams", sub.name, n)
		}
	}
}

func TestAFullDiskIsRefusedToldAndOutlived(t *testing.T) {
	short(t, fullDisk)
}

func TestAnEtcdThatGoesAwayIsToldAndOutlived(t *testing.T) {
	short(t, etcdAway)
}
