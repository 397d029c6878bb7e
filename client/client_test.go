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
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

const id = "i-1234567890abcdef0"

func TestARetriedCommandKeepsItsToken(t *testing.T) {
	for name, given := range map[string]string{"a new one where there is none": "", "the one that was given": "mine"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var tokens []string
				c, stop := dial(t, &service{start: func(_ context.Context, req *instancedv1.StartInstancesRequest) (*instancedv1.StartInstancesResponse, error) {
					tokens = append(tokens, req.GetClientToken())
					if len(tokens) < 3 {
						return nil, status.Error(codes.Unavailable, "gone for a moment")
					}
					return &instancedv1.StartInstancesResponse{Cursor: "c"}, nil
				}}, client.Options{})
				defer stop()

				req := &instancedv1.StartInstancesRequest{InstanceIds: []string{id}, ClientToken: given}
				resp, err := c.Start(t.Context(), req)
				if err != nil || resp.GetCursor() != "c" {
					t.Fatalf("got %v, %v", resp, err)
				}
				if len(tokens) != 3 || tokens[0] == "" || tokens[0] != tokens[1] || tokens[1] != tokens[2] {
					t.Errorf("the tries had the tokens %q", tokens)
				}
				if given != "" && tokens[0] != given {
					t.Errorf("the token %q became %q", given, tokens[0])
				}
				if req.GetClientToken() != given {
					t.Errorf("the caller's request was modified: %v", req)
				}
			})
		})
	}
}

func TestWhatIsRetried(t *testing.T) {
	retryIn := func(d time.Duration) *errdetails.RetryInfo {
		return &errdetails.RetryInfo{RetryDelay: durationpb.New(d)}
	}
	tests := map[string]struct {
		err   error
		opts  client.Options
		calls int
		least time.Duration
	}{
		"a server that cannot be reached":           {failure(t, codes.Unavailable, "gone"), client.Options{}, 4, 700 * time.Millisecond},
		"no more often than the options say":        {failure(t, codes.Unavailable, "gone"), client.Options{MaxAttempts: 2}, 2, 100 * time.Millisecond},
		"nothing, if the options say so":            {failure(t, codes.Unavailable, "gone"), client.Options{MaxAttempts: 1}, 1, 0},
		"a throttled call, after what it asks for":  {failure(t, codes.ResourceExhausted, "slow down", retryIn(3*time.Second)), client.Options{}, 4, 9 * time.Second},
		"not a delay that is too long":              {failure(t, codes.ResourceExhausted, "no capacity", retryIn(time.Minute)), client.Options{}, 1, 0},
		"not a lack that waiting does not cure":     {failure(t, codes.ResourceExhausted, "too many"), client.Options{}, 1, 0},
		"not a refusal":                             {failure(t, codes.FailedPrecondition, "not now"), client.Options{}, 1, 0},
		"not a request that can never be right":     {failure(t, codes.InvalidArgument, "no"), client.Options{}, 1, 0},
		"not a bug, of which nobody knows what did": {failure(t, codes.Internal, "oops"), client.Options{}, 1, 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls := 0
				c, stop := dial(t, &service{start: func(context.Context, *instancedv1.StartInstancesRequest) (*instancedv1.StartInstancesResponse, error) {
					calls++
					return nil, test.err
				}}, test.opts)
				defer stop()

				begin := time.Now()
				_, err := c.Start(t.Context(), &instancedv1.StartInstancesRequest{})
				if status.Code(err) != status.Code(test.err) {
					t.Errorf("got %v", err)
				}
				if took := time.Since(begin); calls != test.calls || took < test.least {
					t.Errorf("%d calls in %v, want %d in at least %v", calls, took, test.calls, test.least)
				}
			})
		})
	}
}

func TestNoRetryBeyondTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, stop := dial(t, &service{start: func(context.Context, *instancedv1.StartInstancesRequest) (*instancedv1.StartInstancesResponse, error) {
			return nil, failure(t, codes.Unavailable, "gone", &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Minute)})
		}}, client.Options{})
		defer stop()

		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		begin := time.Now()
		_, err := c.Start(ctx, &instancedv1.StartInstancesRequest{})
		if status.Code(err) != codes.Unavailable || time.Since(begin) != 0 {
			t.Errorf("got %v after %v, want the server's error at once", err, time.Since(begin))
		}
	})
}

func TestADryRunThatWouldSucceedIsNoError(t *testing.T) {
	c, stop := dial(t, &service{start: func(context.Context, *instancedv1.StartInstancesRequest) (*instancedv1.StartInstancesResponse, error) {
		return nil, failure(t, codes.FailedPrecondition, "Request would have succeeded, but DryRun flag is set.",
			&errdetails.ErrorInfo{Domain: "ec2.amazonaws.com", Reason: client.ReasonDryRun})
	}}, client.Options{})
	defer stop()

	resp, err := c.Start(t.Context(), &instancedv1.StartInstancesRequest{InstanceIds: []string{id}, DryRun: true})
	if err != nil || len(resp.GetStartingInstances()) != 0 {
		t.Errorf("got %v, %v", resp, err)
	}
}

func TestErrorsCanBeTakenApart(t *testing.T) {
	c, stop := dial(t, &service{start: func(context.Context, *instancedv1.StartInstancesRequest) (*instancedv1.StartInstancesResponse, error) {
		return nil, failure(t, codes.FailedPrecondition, "not in a state",
			&errdetails.ErrorInfo{Domain: "ec2.amazonaws.com", Reason: "INCORRECT_INSTANCE_STATE", Metadata: map[string]string{
				"ec2_error_code": "IncorrectInstanceState", "instance_ids": "i-1,i-2", "request_id": "r", "outcome": "unknown", "instance_count": "2",
			}},
			&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)},
			&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: "f", Description: "d", Reason: "R"}}},
		)
	}}, client.Options{})
	defer stop()

	_, err := c.Start(t.Context(), &instancedv1.StartInstancesRequest{})
	got, ok := errors.AsType[*client.Error](err)
	if !ok {
		t.Fatalf("got %T", err)
	}
	want := &client.Error{
		Code: codes.FailedPrecondition, Reason: "INCORRECT_INSTANCE_STATE", Domain: "ec2.amazonaws.com", EC2Code: "IncorrectInstanceState",
		Message: "not in a state", InstanceIDs: []string{"i-1", "i-2"}, Violations: []client.Violation{{Field: "f", Description: "d", Reason: "R"}},
		RetryDelay: time.Second, OutcomeUnknown: true, RequestID: "r", Metadata: map[string]string{"instance_count": "2"},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(client.Error{})); diff != "" {
		t.Error(diff)
	}
	if text := got.Error(); text != "IncorrectInstanceState: not in a state; f: d" {
		t.Errorf("the text is %q", text)
	}
	if s, ok := status.FromError(err); !ok || len(s.Details()) != 3 {
		t.Errorf("the status is lost: %v", s)
	}
}

func TestTheErrorOfTheContextIsFound(t *testing.T) {
	c, stop := dial(t, &service{start: func(ctx context.Context, _ *instancedv1.StartInstancesRequest) (*instancedv1.StartInstancesResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}, client.Options{})
	defer stop()

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Start(ctx, &instancedv1.StartInstancesRequest{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := c.Start(ctx, &instancedv1.StartInstancesRequest{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestThePrincipalIsSent(t *testing.T) {
	var got []string
	c, stop := dial(t, &service{start: func(ctx context.Context, _ *instancedv1.StartInstancesRequest) (*instancedv1.StartInstancesResponse, error) {
		got = metadata.ValueFromIncomingContext(ctx, "instanced-principal")
		return &instancedv1.StartInstancesResponse{}, nil
	}}, client.Options{Principal: "ci"})
	defer stop()

	if _, err := c.Start(t.Context(), &instancedv1.StartInstancesRequest{}); err != nil || !cmp.Equal(got, []string{"ci"}) {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestPages(t *testing.T) {
	pages := map[string]*instancedv1.DescribeInstancesResponse{
		"":  {Cursor: "first", NextPageToken: "2"},
		"2": {NextPageToken: "3"},
		"3": {},
	}
	c, stop := dial(t, &service{describe: func(_ context.Context, req *instancedv1.DescribeInstancesRequest) (*instancedv1.DescribeInstancesResponse, error) {
		if page, ok := pages[req.GetPageToken()]; ok && req.GetPageSize() == 7 {
			return page, nil
		}
		return nil, status.Error(codes.InvalidArgument, "no such page")
	}}, client.Options{})
	defer stop()

	collect := func(token string) (tokens []string, err error) {
		for page, err := range c.Describe(t.Context(), &instancedv1.DescribeInstancesRequest{PageSize: 7, PageToken: token}) {
			if err != nil {
				return tokens, err
			}
			tokens = append(tokens, page.GetNextPageToken())
		}
		return tokens, nil
	}
	if got, err := collect(""); err != nil || !cmp.Equal(got, []string{"2", "3", ""}) {
		t.Errorf("all pages: %q, %v", got, err)
	}
	if got, err := collect("3"); err != nil || !cmp.Equal(got, []string{""}) {
		t.Errorf("from a page on: %q, %v", got, err)
	}
	if got, err := collect("none"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("an error: %q, %v", got, err)
	}
}

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

func TestWhetherTheOutcomeIsKnown(t *testing.T) {
	info := func(reason string, metadata map[string]string) *errdetails.ErrorInfo {
		return &errdetails.ErrorInfo{Domain: "instanced", Reason: reason, Metadata: metadata}
	}
	lost := status.Error(codes.Unavailable, "the connection broke")
	tests := map[string]struct {
		// errs are the answers to the tries; there is none to those beyond.
		errs    []error
		down    bool
		dryRun  bool
		unknown bool
	}{
		"no answer in time":                       {unknown: true},
		"a dry run without an answer":             {dryRun: true},
		"a connection that broke":                 {errs: []error{lost, lost, lost, lost}, unknown: true},
		"a server that cannot be reached":         {down: true},
		"the service knows that nothing was done": {errs: []error{failure(t, codes.Unavailable, "no", info("NOT_OWNER", nil)), failure(t, codes.FailedPrecondition, "no")}},
		"the service does not know":               {errs: []error{failure(t, codes.Aborted, "no", info("R", map[string]string{"outcome": "unknown"}))}, unknown: true},
		"a refusal after an answer that was lost": {errs: []error{lost, failure(t, codes.FailedPrecondition, "no", info("R", nil))}},
		"a busy service after one that was lost":  {errs: []error{lost, failure(t, codes.ResourceExhausted, "no", info("R", nil))}, unknown: true},
		"a refusal of what was never carried out": {errs: []error{failure(t, codes.NotFound, "no", info("R", nil))}},
		"a bug of which nobody knows what it did": {errs: []error{status.Error(codes.Internal, "oops")}, unknown: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls := 0
				c, stop := dialUnless(t, func() bool { return test.down }, &service{start: func(ctx context.Context, _ *instancedv1.StartInstancesRequest) (*instancedv1.StartInstancesResponse, error) {
					if calls++; calls <= len(test.errs) {
						return nil, test.errs[calls-1]
					}
					<-ctx.Done()
					return nil, ctx.Err()
				}}, client.Options{})
				defer stop()

				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				_, err := c.Start(ctx, &instancedv1.StartInstancesRequest{DryRun: test.dryRun})
				e, ok := errors.AsType[*client.Error](err)
				if !ok || e.OutcomeUnknown != test.unknown {
					t.Errorf("got %#v", err)
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
