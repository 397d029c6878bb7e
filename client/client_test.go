package client_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
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
		err      error
		opts     client.Options
		calls    int
		minDelay time.Duration
	}{
		"a server that cannot be reached":          {failure(t, codes.Unavailable, "gone"), client.Options{}, 4, 700 * time.Millisecond},
		"no more often than the options say":       {failure(t, codes.Unavailable, "gone"), client.Options{MaxAttempts: 2}, 2, 100 * time.Millisecond},
		"nothing, if the options say so":           {failure(t, codes.Unavailable, "gone"), client.Options{MaxAttempts: 1}, 1, 0},
		"a throttled call, after what it asks for": {failure(t, codes.ResourceExhausted, "slow down", retryIn(3*time.Second)), client.Options{}, 4, 9 * time.Second},
		"not a delay that is too long":             {failure(t, codes.ResourceExhausted, "no capacity", retryIn(time.Minute)), client.Options{}, 1, 0},
		"not a lack that waiting does not cure":    {failure(t, codes.ResourceExhausted, "too many"), client.Options{}, 1, 0},
		"not a refusal":                            {failure(t, codes.FailedPrecondition, "not now"), client.Options{}, 1, 0},
		"not a request that can never be right":    {failure(t, codes.InvalidArgument, "no"), client.Options{}, 1, 0},
		"not a bug, whose outcome is unknown":      {failure(t, codes.Internal, "oops"), client.Options{}, 1, 0},
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
				if took := time.Since(begin); calls != test.calls || took < test.minDelay {
					t.Errorf("%d calls in %v, want %d in at minDelay %v", calls, took, test.calls, test.minDelay)
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

// The last try may well know that it changed nothing: the one before it did not.
func TestAnUnknownOutcomeIsNotSaidToHaveChangedNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		c, stop := dialUnless(t, func() bool { return false }, &service{start: func(context.Context, *instancedv1.StartInstancesRequest) (*instancedv1.StartInstancesResponse, error) {
			if calls++; calls == 1 {
				return nil, status.Error(codes.Unavailable, "the connection broke")
			}
			return nil, failure(t, codes.Unavailable, "no process owns the backend at the moment; nothing was changed",
				&errdetails.ErrorInfo{Domain: "instanced", Reason: "NOT_OWNER"})
		}}, client.Options{})
		defer stop()
		_, err := c.Start(t.Context(), &instancedv1.StartInstancesRequest{})
		e, ok := errors.AsType[*client.Error](err)
		if want := "no process owns the backend at the moment; an earlier attempt got no response"; !ok || !e.OutcomeUnknown || e.Message != want {
			t.Errorf("got %#v, want %q", err, want)
		}
	})
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
		"a bug with an unknown outcome":           {errs: []error{status.Error(codes.Internal, "oops")}, unknown: true},
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
