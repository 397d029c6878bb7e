package client_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

const interval = 4 * time.Second

// stream is what one stream of a script says, and how it ends: nil ends it as a
// server does that says no more; errHang leaves it open.
type stream struct {
	messages []*instancedv1.WatchInstancesResponse
	end      error
}

var (
	errHang = errors.New("hang")
	errGone = status.Error(codes.Unavailable, "gone")
)

// script plays one stream after the other and notes what each was asked for.
type script struct {
	streams []stream
	asked   []*instancedv1.WatchInstancesRequest
	at      []time.Time
}

func (s *script) watch(req *instancedv1.WatchInstancesRequest, out grpc.ServerStreamingServer[instancedv1.WatchInstancesResponse]) error {
	n := len(s.asked)
	s.asked, s.at = append(s.asked, req), append(s.at, time.Now())
	if n >= len(s.streams) {
		return status.Errorf(codes.FailedPrecondition, "the script has %d streams only", len(s.streams))
	}
	for _, msg := range s.streams[n].messages {
		if err := out.Send(msg); err != nil {
			return err
		}
	}
	if errors.Is(s.streams[n].end, errHang) {
		<-out.Context().Done()
		return out.Context().Err()
	}
	return s.streams[n].end
}

// cursors returns the after_cursor of each stream.
func (s *script) cursors() []string {
	var cursors []string
	for _, req := range s.asked {
		cursors = append(cursors, req.GetAfterCursor())
	}
	return cursors
}

// follow runs a watch over a script until it has yielded so many messages, or its
// error.
func follow(t *testing.T, s *script, req *instancedv1.WatchInstancesRequest, maxMessages int) (got []*instancedv1.WatchInstancesResponse, err error) {
	t.Helper()
	c, stop := dial(t, &service{watch: s.watch}, client.Options{})
	defer stop()
	for msg, err := range c.Watch(t.Context(), req) {
		if err != nil {
			return got, err
		}
		if got = append(got, msg); len(got) == maxMessages {
			break
		}
	}
	return got, nil
}

func TestAWatchGoesOnAfterItsLastCursor(t *testing.T) {
	tests := map[string]struct {
		request *instancedv1.WatchInstancesRequest
		streams []stream
		cursors []string
		want    []*instancedv1.WatchInstancesResponse
	}{
		"when the connection breaks": {
			request: &instancedv1.WatchInstancesRequest{AfterCursor: "a"},
			streams: []stream{
				{[]*instancedv1.WatchInstancesResponse{subscribed(""), events("b", 1, 0)}, errGone},
				{[]*instancedv1.WatchInstancesResponse{subscribed(""), events("c", 2, 0)}, errHang},
			},
			cursors: []string{"a", "b"},
			want:    []*instancedv1.WatchInstancesResponse{subscribed(""), events("b", 1, 0), subscribed(""), events("c", 2, 0)},
		},
		"when the server ends the stream without a word": {
			request: &instancedv1.WatchInstancesRequest{AfterCursor: "a"},
			streams: []stream{
				{[]*instancedv1.WatchInstancesResponse{progress("b")}, nil},
				{[]*instancedv1.WatchInstancesResponse{events("c", 2, 0)}, errHang},
			},
			cursors: []string{"a", "b"},
			want:    []*instancedv1.WatchInstancesResponse{progress("b"), events("c", 2, 0)},
		},
		"from now on, which is not now any more": {
			request: &instancedv1.WatchInstancesRequest{FromNow: true},
			streams: []stream{
				{[]*instancedv1.WatchInstancesResponse{subscribed("a")}, errGone},
				{[]*instancedv1.WatchInstancesResponse{events("b", 1, 0)}, errHang},
			},
			cursors: []string{"", "a"},
			want:    []*instancedv1.WatchInstancesResponse{subscribed("a"), events("b", 1, 0)},
		},
		"with a batch in parts in one piece": {
			request: &instancedv1.WatchInstancesRequest{AfterCursor: "a"},
			streams: []stream{
				{[]*instancedv1.WatchInstancesResponse{subscribed(""), events("", 7, 0, 1)}, errGone},
				{[]*instancedv1.WatchInstancesResponse{subscribed(""), events("", 7, 0), events("", 7, 1), events("b", 7, 2)}, errHang},
			},
			cursors: []string{"a", "a"},
			want:    []*instancedv1.WatchInstancesResponse{subscribed(""), subscribed(""), events("b", 7, 0, 1, 2)},
		},
		"from a new snapshot when the first one was not complete": {
			request: &instancedv1.WatchInstancesRequest{AfterCursor: "expired"},
			streams: []stream{
				{[]*instancedv1.WatchInstancesResponse{subscribed(""), snapshot("", true, false, "i-1")}, errGone},
				{[]*instancedv1.WatchInstancesResponse{subscribed(""), snapshot("", true, false, "i-1"), snapshot("b", false, true, "i-2")}, errGone},
				{[]*instancedv1.WatchInstancesResponse{events("c", 3, 0)}, errHang},
			},
			cursors: []string{"expired", "", "b"},
			want: []*instancedv1.WatchInstancesResponse{
				subscribed(""), snapshot("", true, false, "i-1"),
				subscribed(""), snapshot("", true, false, "i-1"), snapshot("b", false, true, "i-2"),
				events("c", 3, 0),
			},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{streams: test.streams}
				got, err := follow(t, s, test.request, len(test.want))
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(test.want, got, protocmp.Transform()); diff != "" {
					t.Error(diff)
				}
				if diff := cmp.Diff(test.cursors, s.cursors()); diff != "" {
					t.Error(diff)
				}
				for _, req := range s.asked {
					if req.GetFromNow() && req.GetAfterCursor() != "" {
						t.Errorf("a stream was asked for both from now and after a cursor: %v", req)
					}
				}
			})
		})
	}
}

func TestAWatchFollowsAGoodbye(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goodbye := &instancedv1.WatchInstancesResponse{Cursor: "b", Message: &instancedv1.WatchInstancesResponse_Goodbye{
			Goodbye: &instancedv1.Goodbye{Reason: instancedv1.GoodbyeReason_GOODBYE_REASON_DRAIN, RetryDelay: durationpb.New(7 * time.Second)},
		}}
		s := &script{streams: []stream{
			{[]*instancedv1.WatchInstancesResponse{subscribed("a"), goodbye}, errGone},
			{[]*instancedv1.WatchInstancesResponse{subscribed("")}, errHang},
		}}
		if _, err := follow(t, s, &instancedv1.WatchInstancesRequest{}, 3); err != nil {
			t.Fatal(err)
		}
		if waited := s.at[1].Sub(s.at[0]); waited != 7*time.Second {
			t.Errorf("came back after %v", waited)
		}
		if diff := cmp.Diff([]string{"", "b"}, s.cursors()); diff != "" {
			t.Error(diff)
		}
	})
}

func TestASilentStreamIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{streams: []stream{
			{nil, errHang},
			{[]*instancedv1.WatchInstancesResponse{subscribed("a")}, errHang},
			{[]*instancedv1.WatchInstancesResponse{progress("b")}, errHang},
		}}
		got, err := follow(t, s, &instancedv1.WatchInstancesRequest{}, 2)
		if err != nil || got[1].GetCursor() != "b" {
			t.Fatalf("got %v, %v", got, err)
		}
		if first := s.at[1].Sub(s.at[0]); first < 30*time.Second || first > 31*time.Second {
			t.Errorf("left a stream that never spoke after %v", first)
		}
		if second := s.at[2].Sub(s.at[1]); second < 3*interval || second > 3*interval+time.Second {
			t.Errorf("left a stream without its progress messages after %v", second)
		}
	})
}

func TestASlowConsumerIsNoSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{streams: []stream{{[]*instancedv1.WatchInstancesResponse{subscribed("a"), events("b", 1, 0), events("c", 2, 0)}, errHang}}}
		c, stop := dial(t, &service{watch: s.watch}, client.Options{})
		defer stop()
		n := 0
		for _, err := range c.Watch(t.Context(), &instancedv1.WatchInstancesRequest{}) {
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
			if n++; n == 3 {
				break
			}
		}
		if len(s.asked) != 1 {
			t.Errorf("%d streams", len(s.asked))
		}
	})
}

func TestAWatchEndsWithAnErrorThatWaitingDoesNotCure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{streams: []stream{
			{[]*instancedv1.WatchInstancesResponse{subscribed("a")}, errGone},
			{nil, failure(t, codes.OutOfRange, "too old", &errdetails.ErrorInfo{Reason: "CURSOR_EXPIRED", Metadata: map[string]string{"oldest_cursor": "m"}})},
		}}
		_, err := follow(t, s, &instancedv1.WatchInstancesRequest{}, 9)
		e, ok := errors.AsType[*client.Error](err)
		if !ok || e.Reason != "CURSOR_EXPIRED" || e.Metadata["oldest_cursor"] != "m" {
			t.Errorf("got %v", err)
		}
	})
}

func TestAWatchThatStoodIsResumedAfterWhatLiesBetween(t *testing.T) {
	reason := &errdetails.ErrorInfo{Domain: "instanced", Reason: "R"}
	tests := map[string]struct {
		err     error
		resumes bool
	}{
		"a stream that was reset":         {status.Error(codes.Internal, "stream terminated by RST_STREAM"), true},
		"a stream that was cancelled":     {status.Error(codes.Canceled, "stream terminated by RST_STREAM"), true},
		"a proxy that speaks no gRPC":     {status.Error(codes.Unknown, "unexpected content-type"), true},
		"a service that sheds load":       {failure(t, codes.ResourceExhausted, "too many", reason, &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Minute)}), true},
		"not a bug of the service":        {failure(t, codes.Internal, "oops", reason), false},
		"not a lack that does not end":    {failure(t, codes.ResourceExhausted, "too many", reason), false},
		"not a caller who may no longer":  {status.Error(codes.PermissionDenied, "no"), false},
		"not a cursor that cannot be one": {failure(t, codes.InvalidArgument, "no", reason), false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{streams: []stream{
					{[]*instancedv1.WatchInstancesResponse{subscribed("a")}, test.err},
					{[]*instancedv1.WatchInstancesResponse{events("b", 1, 0)}, errHang},
				}}
				if _, err := follow(t, s, &instancedv1.WatchInstancesRequest{}, 2); (err == nil) != test.resumes {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}

func TestWhatAWatchDoesWithAnUnusableCursor(t *testing.T) {
	const (
		unspecified = instancedv1.UnusableCursorPolicy_UNUSABLE_CURSOR_POLICY_UNSPECIFIED
		fail        = instancedv1.UnusableCursorPolicy_UNUSABLE_CURSOR_POLICY_FAIL
		begin       = instancedv1.UnusableCursorPolicy_UNUSABLE_CURSOR_POLICY_SNAPSHOT
	)
	tests := map[string]struct {
		request *instancedv1.WatchInstancesRequest
		want    instancedv1.UnusableCursorPolicy
	}{
		"one that began with a snapshot begins again": {&instancedv1.WatchInstancesRequest{}, begin},
		"unless it is not to":                         {&instancedv1.WatchInstancesRequest{OnUnusableCursor: fail}, fail},
		"one that began after a cursor ends":          {&instancedv1.WatchInstancesRequest{AfterCursor: "a"}, unspecified},
		"unless it is to begin again":                 {&instancedv1.WatchInstancesRequest{AfterCursor: "a", OnUnusableCursor: begin}, begin},
		"one that began from now on ends":             {&instancedv1.WatchInstancesRequest{FromNow: true}, unspecified},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{streams: []stream{
					{[]*instancedv1.WatchInstancesResponse{subscribed("b")}, errGone},
					{[]*instancedv1.WatchInstancesResponse{subscribed("")}, errHang},
				}}
				given := proto.CloneOf(test.request)
				if _, err := follow(t, s, test.request, 2); err != nil {
					t.Fatal(err)
				}
				for i, req := range s.asked {
					if req.GetOnUnusableCursor() != test.want {
						t.Errorf("stream %d was asked to %v", i, req.GetOnUnusableCursor())
					}
				}
				if !proto.Equal(given, test.request) {
					t.Errorf("the caller's request was modified: %v", test.request)
				}
			})
		})
	}
}

func TestASnapshotThatIsBegunAnewNamesTheReasonOfTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const expired = instancedv1.UnusableCursorReason_UNUSABLE_CURSOR_REASON_EXPIRED
		because := snapshot("", true, false, "i-1")
		because.GetSnapshot().Reason = expired
		s := &script{streams: []stream{
			{[]*instancedv1.WatchInstancesResponse{because}, errGone},
			{[]*instancedv1.WatchInstancesResponse{snapshot("b", true, true, "i-1")}, errGone},
			{[]*instancedv1.WatchInstancesResponse{snapshot("c", true, true, "i-1")}, errHang},
		}}
		got, err := follow(t, s, &instancedv1.WatchInstancesRequest{}, 3)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []instancedv1.UnusableCursorReason{expired, expired, 0} {
			if reason := got[i].GetSnapshot().GetReason(); reason != want {
				t.Errorf("the reason of snapshot %d is %v", i, reason)
			}
		}
	})
}

func TestAWatchThatNeverStoodGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{streams: []stream{{nil, errGone}, {nil, errGone}, {nil, errGone}, {nil, errGone}, {nil, errGone}}}
		if _, err := follow(t, s, &instancedv1.WatchInstancesRequest{}, 1); status.Code(err) != codes.Unavailable || len(s.asked) != 4 {
			t.Errorf("got %v after %d tries", err, len(s.asked))
		}
	})
}

func TestAWatchThatStoodDoesNotGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{streams: []stream{{[]*instancedv1.WatchInstancesResponse{subscribed("a")}, errGone}}}
		for range 50 {
			s.streams = append(s.streams, stream{nil, errGone})
		}
		s.streams = append(s.streams, stream{[]*instancedv1.WatchInstancesResponse{events("b", 1, 0)}, errHang})
		got, err := follow(t, s, &instancedv1.WatchInstancesRequest{}, 2)
		if err != nil || got[1].GetCursor() != "b" {
			t.Fatalf("got %v, %v", got, err)
		}
		for i := 10; i < 51; i++ {
			if delay := s.at[i+1].Sub(s.at[i]); delay < 2500*time.Millisecond || delay > 5*time.Second {
				t.Errorf("the delay before stream %d is %v", i+1, delay)
			}
		}
	})
}

func TestAWatchEndsWithItsContext(t *testing.T) {
	for name, streams := range map[string][]stream{
		"while it reads":                  {{[]*instancedv1.WatchInstancesResponse{subscribed("a")}, errHang}},
		"while it waits to connect again": {{[]*instancedv1.WatchInstancesResponse{subscribed("a")}, failureIn(time.Hour)}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{streams: streams}
				c, stop := dial(t, &service{watch: s.watch}, client.Options{})
				defer stop()
				ctx, cancel := context.WithTimeout(t.Context(), 2*interval)
				defer cancel()
				begin := time.Now()
				var last error
				for _, err := range c.Watch(ctx, &instancedv1.WatchInstancesRequest{}) {
					last = err
				}
				if took := time.Since(begin); !errors.Is(last, context.DeadlineExceeded) || took != 2*interval {
					t.Errorf("ended with %v after %v", last, took)
				}
			})
		})
	}
}

// failureIn is an error that asks to come back later.
func failureIn(d time.Duration) error {
	s, err := status.New(codes.Unavailable, "later").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(d)})
	if err != nil {
		panic(fmt.Sprint(err))
	}
	return s.Err()
}
