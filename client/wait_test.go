package client_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

func TestAWaitIsRepeatedForTheTimeThatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []time.Duration
		c, stop := dial(t, &service{wait: func(_ context.Context, req *instancedv1.WaitInstancesRequest) (*instancedv1.WaitInstancesResponse, error) {
			asked = append(asked, req.GetTimeout().AsDuration())
			if len(asked) == 1 {
				time.Sleep(40 * time.Second)
				return nil, failure(t, codes.Unavailable, "shutting down", &errdetails.RetryInfo{RetryDelay: durationpb.New(2 * time.Second)})
			}
			return &instancedv1.WaitInstancesResponse{Cursor: "c"}, nil
		}}, client.Options{})
		defer stop()

		resp, err := c.Wait(t.Context(), &instancedv1.WaitInstancesRequest{InstanceIds: []string{id}, Timeout: durationpb.New(time.Minute)})
		if err != nil || resp.GetCursor() != "c" {
			t.Fatalf("got %v, %v", resp, err)
		}
		// The service asked for 2 s, to which up to a quarter is added.
		if len(asked) != 2 || asked[0] != time.Minute || asked[1] > 18*time.Second || asked[1] < 17*time.Second {
			t.Errorf("asked for %v", asked)
		}
	})
}

func TestAWaitSurvivesTheServer(t *testing.T) {
	for name, test := range map[string]struct {
		outage, begins time.Duration
		after          string
		ok             bool
		took           time.Duration
	}{
		"one that got through":           {outage: 30 * time.Second, begins: 10 * time.Second, ok: true, took: 52 * time.Second},
		"one that continues a command":   {outage: 30 * time.Second, after: "c", ok: true, took: 42 * time.Second},
		"not one that never got through": {outage: 30 * time.Second, took: 2 * time.Second},
		"not longer than it was to last": {outage: time.Hour, begins: 10 * time.Second, took: time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				down := func() bool {
					since := time.Since(begin)
					return since >= test.begins && since < test.begins+test.outage
				}
				c, stop := dialUnless(t, down, &service{wait: func(_ context.Context, req *instancedv1.WaitInstancesRequest) (*instancedv1.WaitInstancesResponse, error) {
					if got, left := req.GetTimeout().AsDuration(), max(time.Minute-time.Since(begin), time.Millisecond); got != left {
						t.Errorf("after %v it waits for %v, want %v", time.Since(begin), got, left)
					}
					if time.Since(begin) < test.begins {
						time.Sleep(test.begins)
						return nil, status.Error(codes.Unavailable, "shutting down")
					}
					return &instancedv1.WaitInstancesResponse{Cursor: "c"}, nil
				}}, client.Options{})
				defer stop()

				resp, err := c.Wait(t.Context(), &instancedv1.WaitInstancesRequest{
					InstanceIds: []string{id}, Timeout: durationpb.New(time.Minute), AfterCursor: test.after,
				})
				if (err == nil) != test.ok || (resp.GetCursor() != "") != test.ok || err != nil && status.Code(err) != codes.Unavailable {
					t.Errorf("got %v, %v", resp, err)
				}
				if took := time.Since(begin); took > test.took {
					t.Errorf("it took %v, want at most %v", took, test.took)
				}
			})
		})
	}
}

func TestAWaitLastsAsLongAsTheDeadlineAllows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked time.Duration
		c, stop := dial(t, &service{wait: func(_ context.Context, req *instancedv1.WaitInstancesRequest) (*instancedv1.WaitInstancesResponse, error) {
			asked = req.GetTimeout().AsDuration()
			return &instancedv1.WaitInstancesResponse{}, nil
		}}, client.Options{})
		defer stop()

		for name, test := range map[string]struct{ deadline, want time.Duration }{
			"minutes": {10 * time.Minute, 10*time.Minute - 5*time.Second},
			"seconds": {10 * time.Second, 9 * time.Second},
			"days":    {48 * time.Hour, time.Hour},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), test.deadline)
			if _, err := c.Wait(ctx, &instancedv1.WaitInstancesRequest{}); err != nil || asked != test.want {
				t.Errorf("%s: asked for %v, want %v (%v)", name, asked, test.want, err)
			}
			cancel()
		}
		if _, err := c.Wait(t.Context(), &instancedv1.WaitInstancesRequest{}); err != nil || asked != 5*time.Minute {
			t.Errorf("without a deadline: asked for %v (%v)", asked, err)
		}
	})
}

func TestATimeoutBeyondTheLimitsIsForTheServiceToRefuse(t *testing.T) {
	c, stop := dial(t, &service{wait: func(_ context.Context, req *instancedv1.WaitInstancesRequest) (*instancedv1.WaitInstancesResponse, error) {
		return nil, status.Errorf(codes.InvalidArgument, "%v", req.GetTimeout().AsDuration())
	}}, client.Options{})
	defer stop()

	for _, timeout := range []time.Duration{-time.Hour, 0, 2 * time.Hour, math.MaxInt64} {
		_, err := c.Wait(t.Context(), &instancedv1.WaitInstancesRequest{Timeout: durationpb.New(timeout)})
		if e, ok := errors.AsType[*client.Error](err); !ok || e.Code != codes.InvalidArgument || e.Message != timeout.String() {
			t.Errorf("%v: got %v", timeout, err)
		}
	}
}

func TestAStartWhoseWaitFailsSaysThatItWasAccepted(t *testing.T) {
	c, stop := dial(t, &service{
		start: func(context.Context, *instancedv1.StartInstancesRequest) (*instancedv1.StartInstancesResponse, error) {
			return &instancedv1.StartInstancesResponse{StartingInstances: []*instancedv1.InstanceStateChange{{InstanceId: id}}}, nil
		},
		wait: func(context.Context, *instancedv1.WaitInstancesRequest) (*instancedv1.WaitInstancesResponse, error) {
			return nil, status.Error(codes.PermissionDenied, "no")
		},
	}, client.Options{})
	defer stop()

	_, err := c.StartAndWait(t.Context(), &instancedv1.StartInstancesRequest{InstanceIds: []string{id}})
	if e, ok := errors.AsType[*client.Error](err); !ok || e.Code != codes.PermissionDenied || !strings.Contains(err.Error(), "was accepted") {
		t.Errorf("got %v", err)
	}
}

func TestStartAndWait(t *testing.T) {
	change := &instancedv1.InstanceStateChange{InstanceId: id}
	running := &instancedv1.Instance{InstanceId: id, PublicIpAddress: "203.0.113.7"}
	stopped := &instancedv1.Instance{
		InstanceId: id,
		State:      &instancedv1.InstanceState{Name: instancedv1.InstanceStateName_INSTANCE_STATE_NAME_STOPPED},
	}
	tests := map[string]struct {
		started *instancedv1.StartInstancesResponse
		result  *instancedv1.WaitResult
		want    []*instancedv1.Instance
		err     string
	}{
		"they run": {
			started: &instancedv1.StartInstancesResponse{StartingInstances: []*instancedv1.InstanceStateChange{change}, Cursor: "c"},
			result:  &instancedv1.WaitResult{InstanceId: id, Outcome: instancedv1.WaitOutcome_WAIT_OUTCOME_REACHED, Instance: running},
			want:    []*instancedv1.Instance{running},
		},
		"one fell back": {
			started: &instancedv1.StartInstancesResponse{StartingInstances: []*instancedv1.InstanceStateChange{change}, Cursor: "c"},
			result: &instancedv1.WaitResult{
				InstanceId: id, Outcome: instancedv1.WaitOutcome_WAIT_OUTCOME_UNREACHABLE, Instance: stopped,
				StateReason: &instancedv1.StateReason{Message: "Server.InternalError: no key"},
			},
			want: []*instancedv1.Instance{stopped},
			err:  "stopped (Server.InternalError: no key)",
		},
		"the time was over": {
			started: &instancedv1.StartInstancesResponse{StartingInstances: []*instancedv1.InstanceStateChange{change}, Cursor: "c"},
			result:  &instancedv1.WaitResult{InstanceId: id, Outcome: instancedv1.WaitOutcome_WAIT_OUTCOME_TIMED_OUT, Instance: stopped},
			want:    []*instancedv1.Instance{stopped},
			err:     "still stopped",
		},
		"one was refused": {
			started: &instancedv1.StartInstancesResponse{FailedInstances: []*instancedv1.InstanceFailure{{InstanceId: id, Message: "no such thing"}}},
			err:     id + ": no such thing",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c, stop := dial(t, &service{
				start: func(context.Context, *instancedv1.StartInstancesRequest) (*instancedv1.StartInstancesResponse, error) {
					return test.started, nil
				},
				wait: func(_ context.Context, req *instancedv1.WaitInstancesRequest) (*instancedv1.WaitInstancesResponse, error) {
					if req.GetAfterCursor() != "c" {
						return nil, status.Errorf(codes.Internal, "after %q", req.GetAfterCursor())
					}
					return &instancedv1.WaitInstancesResponse{Results: []*instancedv1.WaitResult{test.result}}, nil
				},
			}, client.Options{})
			defer stop()

			got, err := c.StartAndWait(t.Context(), &instancedv1.StartInstancesRequest{InstanceIds: []string{id}})
			if diff := cmp.Diff(test.want, got, protocmp.Transform(), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
			if _, ok := errors.AsType[*client.NotReachedError](err); ok != (test.err != "") || ok && !strings.Contains(err.Error(), test.err) {
				t.Errorf("got the error %v, want %q in it", err, test.err)
			}
		})
	}
}
