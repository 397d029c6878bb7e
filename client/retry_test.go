package client_test

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

const pushback = "grpc-retry-pushback-ms"

// delays calls Start with a service that fails with err, as often as it is asked and
// each time with the trailer, and returns the delays between the tries.
func delays(t *testing.T, err error, trailer metadata.MD) (told []time.Duration) {
	t.Helper()
	c, stop := dial(t, &service{start: func(ctx context.Context, _ *instancedv1.StartInstancesRequest) (*instancedv1.StartInstancesResponse, error) {
		if err := grpc.SetTrailer(ctx, trailer); err != nil {
			t.Error(err)
		}
		return nil, err
	}}, client.Options{OnRetry: func(_ error, delay time.Duration) { told = append(told, delay) }})
	defer stop()
	if _, got := c.Start(t.Context(), &instancedv1.StartInstancesRequest{}); status.Code(got) != status.Code(err) {
		t.Errorf("got %v", got)
	}
	return told
}

func TestThePushbackOfAServerIsHonoured(t *testing.T) {
	tests := map[string]struct {
		values   []string
		tries    int
		minDelay time.Duration
	}{
		"a delay":                     {[]string{"4000"}, 3, 4 * time.Second},
		"none":                        {[]string{"0"}, 3, 0},
		"not to retry":                {[]string{"-1"}, 0, 0},
		"what is no number":           {[]string{"soon"}, 0, 0},
		"what does not fit":           {[]string{"99999999999"}, 0, 0},
		"several, which is not legal": {[]string{"1", "2"}, 0, 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				told := delays(t, status.Error(codes.Unavailable, "busy"), metadata.MD{pushback: test.values})
				if len(told) != test.tries || slices.ContainsFunc(told, func(d time.Duration) bool { return d < test.minDelay }) {
					t.Errorf("retried after %v", told)
				}
			})
		})
	}
}

func TestAWatchIsNotResumedWhereTheServerForbidsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		streams := 0
		c, stop := dial(t, &service{watch: func(_ *instancedv1.WatchInstancesRequest, out grpc.ServerStreamingServer[instancedv1.WatchInstancesResponse]) error {
			streams++
			out.SetTrailer(metadata.Pairs(pushback, "-1"))
			if err := out.Send(subscribed("a")); err != nil {
				return err
			}
			return errGone
		}}, client.Options{})
		defer stop()
		var last error
		for _, err := range c.Watch(t.Context(), &instancedv1.WatchInstancesRequest{}) {
			last = err
		}
		if status.Code(last) != codes.Unavailable || streams != 1 {
			t.Errorf("ended with %v after %d streams", last, streams)
		}
	})
}

func TestThoseWhoFailTogetherDoNotComeBackTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const asked = 4 * time.Second
		busy := failure(t, codes.ResourceExhausted, "slow down", &errdetails.RetryInfo{RetryDelay: durationpb.New(asked)})
		var all []time.Duration
		for range 10 {
			all = append(all, delays(t, busy, nil)...)
		}
		slices.Sort(all)
		if len(all) != 30 || all[0] < asked || all[29] > asked+asked/4 {
			t.Errorf("retried after %v", all)
		}
		if all[29]-all[0] < asked/20 {
			t.Errorf("all of them came back within %v of each other", all[29]-all[0])
		}
	})
}

func TestACommandGoesOnToTheOwner(t *testing.T) {
	info := func(owner string) *errdetails.ErrorInfo {
		return &errdetails.ErrorInfo{Domain: "instanced", Reason: "NOT_OWNER", Metadata: map[string]string{"owner": owner}}
	}
	soon := &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)}
	known, unknown := failure(t, codes.Unavailable, "not me", info("b:1"), soon), failure(t, codes.Unavailable, "no owner", info(""), soon)
	tests := map[string]struct {
		errs               []error
		maxAttempts        int
		calls              int
		minDelay, maxDelay time.Duration
		ok                 bool
	}{
		"at once, to the next one":                {errs: []error{known, known, known}, calls: 4, ok: true},
		"after a while, if it is not found":       {errs: slices.Repeat([]error{known}, 6), calls: 7, minDelay: time.Second, maxDelay: 1250 * time.Millisecond, ok: true},
		"after a while, if there is none":         {errs: slices.Repeat([]error{unknown}, 10), calls: 11, minDelay: 10 * time.Second, maxDelay: 12500 * time.Millisecond, ok: true},
		"but not for ever":                        {errs: slices.Repeat([]error{unknown}, 99), minDelay: 15 * time.Second, maxDelay: 16250 * time.Millisecond},
		"nor where each names the same other one": {errs: slices.Repeat([]error{known}, 999), calls: 10, minDelay: time.Second, maxDelay: 1250 * time.Millisecond},
		"and not if nothing is to be retried":     {errs: []error{known}, maxAttempts: 1, calls: 1},
		"with an attempt for each other failure":  {errs: []error{known, errGone, known, errGone, known, errGone}, calls: 7, minDelay: 350 * time.Millisecond, maxDelay: 2 * time.Second, ok: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls := 0
				c, stop := dial(t, &service{start: func(context.Context, *instancedv1.StartInstancesRequest) (*instancedv1.StartInstancesResponse, error) {
					if calls++; calls <= len(test.errs) {
						return nil, test.errs[calls-1]
					}
					return &instancedv1.StartInstancesResponse{}, nil
				}}, client.Options{MaxAttempts: test.maxAttempts})
				defer stop()
				begin := time.Now()
				_, err := c.Start(t.Context(), &instancedv1.StartInstancesRequest{})
				if took := time.Since(begin); (err == nil) != test.ok || test.calls > 0 && calls != test.calls || took < test.minDelay || took > test.maxDelay {
					t.Errorf("%d calls in %v, and then %v", calls, took, err)
				}
			})
		})
	}
}
