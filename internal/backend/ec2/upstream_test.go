package ec2

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awsec2 "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	grpccodes "google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
	"github.com/instanced/instanced/internal/lifecycle"
	"github.com/instanced/instanced/server"
	"github.com/instanced/instanced/server/ec2query"
)

// doors are both doors of a service whose backend is EC2 at an address, over TCP and with the
// SDK's own transport.
type doors struct {
	layer *lifecycle.Service
	api   instancedv1.InstanceServiceClient
	ec2   *awsec2.Client
	log   *lockedBuffer
}

// lockedBuffer keeps what is logged.
type lockedBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// doorDeadline is that of calls at the EC2 endpoint.
const doorDeadline = 3500 * time.Millisecond

// serve runs a service on EC2 at an address until the test ends. The SDK at its EC2 endpoint
// tries nothing again.
func serve(t *testing.T, url string, adjust ...func(*lifecycle.Config)) *doors {
	t.Helper()
	d := &doors{log: &lockedBuffer{}}
	logger := slog.New(slog.NewTextHandler(d.log, nil))
	b := connect(t, nil, func(c *Config) {
		c.AWS.HTTPClient, c.AWS.BaseEndpoint = nil, &url
		c.Logger = logger
	})
	j, err := journal.Open(t.Context(), journal.Config{DataDir: t.TempDir(), MinFreeDisk: -1})
	if err != nil {
		t.Fatal(err)
	}
	cfg := lifecycle.Config{Journal: j, Backend: b, Logger: logger}
	for _, a := range adjust {
		a(&cfg)
	}
	d.layer = lifecycle.New(cfg)
	srv := server.New(server.Config{Lifecycle: d.layer, Backend: "ec2"})
	door := ec2query.New(ec2query.Config{Lifecycle: d.layer, Deadline: doorDeadline})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	run := func(f func() error) {
		running.Go(func() {
			if err := f(); err != nil {
				t.Error(err)
			}
		})
	}
	listen := func() net.Listener {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return lis
	}
	grpcAt, ec2At := listen(), listen()
	run(func() error { return d.layer.Run(ctx) })
	run(func() error { return srv.Serve(grpcAt) })
	run(func() error { return door.Serve(ec2At) })
	conn, err := grpc.NewClient(grpcAt.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	d.api = instancedv1.NewInstanceServiceClient(conn)
	<-d.layer.Ready()
	transport := &http.Client{Transport: &http.Transport{}}
	d.ec2 = awsec2.New(awsec2.Options{
		Region:       "us-east-1",
		Credentials:  credentials.NewStaticCredentialsProvider("AKID", "secret", ""),
		BaseEndpoint: new("http://" + ec2At.Addr().String()),
		HTTPClient:   transport,
		Retryer:      aws.NopRetryer{},
	})
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		if err := errors.Join(srv.Shutdown(context.Background()), door.Shutdown(context.Background()), conn.Close()); err != nil {
			t.Error(err)
		}
		cancel()
		running.Wait()
		if err := j.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return d
}

// proxied is an EC2 endpoint behind something that answers starts by itself.
func proxied(t *testing.T, f *fleet, answer func(http.ResponseWriter)) string {
	t.Helper()
	e := &endpoint{answer: f.answer}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return // the service has left
		}
		if strings.Contains(string(body), "Action=StartInstances") {
			answer(w)
			return
		}
		req.Body = io.NopCloser(strings.NewReader(string(body)))
		e.ServeHTTP(w, req)
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// upstreamAnswers are what a start may be answered that is not EC2's answer, and what callers
// are to make of it.
func upstreamAnswers() []upstreamAnswer {
	html := "<!DOCTYPE html><html><head><title>Oops</title></head><body><h1>Bad <b>Gateway</h1></body></html>"
	code := func(code string) string { return refusal(0, code, "Upstream says so.").body }
	lines := changed("StartInstances", []instance.StateChange{{ID: id(1), Previous: instance.StateStopped, Current: instance.StatePending}}).body
	lost := func(name string, status int, body string) upstreamAnswer {
		return upstreamAnswer{name, reply{status, body}, 503, "Unavailable", grpccodes.Unavailable, "instanced", "ANSWER_LOST", true}
	}
	ec2s := func(name string, status int, ec2Code string, ec2Status int, c grpccodes.Code, reason string, open bool) upstreamAnswer {
		return upstreamAnswer{name, reply{status, code(ec2Code)}, ec2Status, ec2Code, c, "ec2.amazonaws.com", reason, open}
	}
	return []upstreamAnswer{
		lost("502 with HTML", 502, html),
		lost("502 with XML of another", 502, "<error><what/></error>"),
		lost("502 without a code", 502, code("")),
		lost("502 with text for a code", 502, code("No upstream &amp; no luck")),
		lost("502 with the placeholder", 502, code(sdkUnknownCode)),
		lost("empty 503", 503, ""),
		lost("504 with HTML", 504, html),
		lost("408 with HTML", 408, html),
		lost("200 with HTML", 200, html),
		lost("200 with half an answer", 200, lines[:len(lines)*2/3]),
		lost("200 and nothing", 200, ""),
		ec2s("500 and no address", 500, "InsufficientAddressCapacity", 500, grpccodes.ResourceExhausted, "INSUFFICIENT_ADDRESS_CAPACITY", false),
		ec2s("500 with a code to come", 500, "InsufficientTomorrow", 503, grpccodes.Unavailable, "INSUFFICIENT_TOMORROW", true),
		ec2s("500 InternalError", 500, "InternalError", 500, grpccodes.Unavailable, "INTERNAL_ERROR", true),
		ec2s("503 ServiceUnavailable", 503, "ServiceUnavailable", 503, grpccodes.Unavailable, "SERVICE_UNAVAILABLE", true),
		ec2s("503 SlowDown", 503, "SlowDown", 503, grpccodes.ResourceExhausted, "SLOW_DOWN", false),
		ec2s("400 Throttling", 400, "Throttling", 503, grpccodes.ResourceExhausted, "THROTTLING", false),
		ec2s("400 ThrottlingException", 400, "ThrottlingException", 503, grpccodes.ResourceExhausted, "THROTTLING_EXCEPTION", false),
		ec2s("429 with a code to come", 429, "TooFast", 503, grpccodes.ResourceExhausted, "TOO_FAST", false),
		ec2s("400 with a code to come", 400, "IncorrectMood", 400, grpccodes.FailedPrecondition, "INCORRECT_MOOD", false),
		{"429 with HTML", reply{429, html}, 503, "RequestLimitExceeded", grpccodes.ResourceExhausted, "instanced", "REQUEST_LIMIT_EXCEEDED", false},
		{"403 with HTML", reply{403, html}, 503, "Unavailable", grpccodes.Unavailable, "instanced", "BACKEND_UNAVAILABLE", false},
	}
}

type upstreamAnswer struct {
	name string
	reply
	// What the caller at the EC2 endpoint gets, and the one by gRPC.
	ec2Status      int
	ec2Code        string
	code           grpccodes.Code
	domain, reason string
	unknown        bool
}

func (a upstreamAnswer) throttles() bool {
	return a.code == grpccodes.ResourceExhausted && a.ec2Status == 503
}

// atEC2Endpoint makes a call there.
func (a upstreamAnswer) atEC2Endpoint(t *testing.T, d *doors) {
	_, err := d.ec2.StartInstances(t.Context(), &awsec2.StartInstancesInput{InstanceIds: []string{string(id(1))}})
	api, _ := errors.AsType[smithy.APIError](err)
	response, _ := errors.AsType[*awshttp.ResponseError](err)
	if api == nil || response == nil || api.ErrorCode() != a.ec2Code || response.HTTPStatusCode() != a.ec2Status {
		t.Errorf("at the EC2 endpoint: %v", err)
	}
	if again := retry.NewStandard().IsErrorRetryable(err); again != (a.ec2Status >= 500) {
		t.Errorf("that an SDK tries again is %v after %v", again, err)
	}
}

func (a upstreamAnswer) byGRPC(t *testing.T, d *doors) {
	ctx, cancel := context.WithTimeout(t.Context(), doorDeadline)
	defer cancel()
	_, err := d.api.StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: []string{string(id(2))}})
	var info *errdetails.ErrorInfo
	for _, detail := range status.Convert(err).Details() {
		if i, ok := detail.(*errdetails.ErrorInfo); ok {
			info = i
		}
	}
	if status.Code(err) != a.code || info.GetDomain() != a.domain || info.GetReason() != a.reason {
		t.Errorf("by gRPC: %v, %v", err, info)
	}
	if open := info.GetMetadata()["outcome"] == "unknown"; open != a.unknown {
		t.Errorf("that the outcome is unknown is %v: %v", open, info)
	}
	if strings.Contains(status.Convert(err).Message()+info.String(), sdkUnknownCode) {
		t.Errorf("the SDK's placeholder shows: %v, %v", err, info)
	}
}

func TestTheClassOfAnUpstreamFailureSurvives(t *testing.T) {
	through := []string{"502 with HTML", "empty 503", "500 with a code to come", "500 and no address", "400 with a code to come", "200 with half an answer"}
	for _, a := range upstreamAnswers() {
		if !slices.Contains(through, a.name) && !a.throttles() {
			continue
		}
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			d := serve(t, proxied(t, &fleet{}, func(w http.ResponseWriter) {
				w.Header().Set("Content-Type", "text/html")
				w.WriteHeader(a.status)
				_, _ = io.WriteString(w, a.body)
			}))
			var callers sync.WaitGroup
			defer callers.Wait()
			callers.Go(func() { a.atEC2Endpoint(t, d) })
			if !a.throttles() {
				// Of two who are throttled one is turned away in the queue.
				callers.Go(func() { a.byGRPC(t, d) })
			}
		})
	}
}

func TestResponsesThatAreNotFromEC2(t *testing.T) {
	for _, a := range upstreamAnswers() {
		inBubble(t, a.name, func(t *testing.T) {
			f := &fleet{}
			e := &endpoint{answer: func(ctx context.Context, c call) (reply, error) {
				if c.action == "StartInstances" {
					return a.reply, nil
				}
				return f.answer(ctx, c)
			}}
			ctx, cancel := context.WithTimeout(t.Context(), doorDeadline)
			defer cancel()
			err := execute(ctx, connect(t, e), start(id(1)))[0].refusedAs(t)
			domain, reason := "instanced", err.Reason
			if err.Code != "" {
				domain, reason = "ec2.amazonaws.com", a.reason
			}
			if err.Kind != kindOf[a.code] || domain != a.domain || reason != a.reason || err.OutcomeUnknown != a.unknown {
				t.Errorf("error is %+v", err)
			}
			if err.Code != "" && err.Code != a.ec2Code || strings.Contains(err.Message, sdkUnknownCode) {
				t.Errorf("code is %q, text %q", err.Code, err.Message)
			}
			if retry := err.RetryAfter > 0; retry != (a.code == grpccodes.Unavailable || a.throttles()) {
				t.Errorf("a retry is worth while after %v", err.RetryAfter)
			}
		})
	}
}

var kindOf = map[grpccodes.Code]instance.Kind{
	grpccodes.Unavailable:        instance.KindUnavailable,
	grpccodes.ResourceExhausted:  instance.KindExhausted,
	grpccodes.FailedPrecondition: instance.KindPrecondition,
}

func TestTheSourceOfCredentialsIsNotEC2(t *testing.T) {
	for _, test := range []struct {
		status int
		kind   instance.Kind
	}{{400, instance.KindInternal}, {403, instance.KindInternal}, {429, instance.KindUnavailable}, {500, instance.KindUnavailable}} {
		err := &smithy.OperationError{ServiceID: "STS", Err: &awshttp.ResponseError{ResponseError: &smithyhttp.ResponseError{
			Response: &smithyhttp.Response{Response: &http.Response{StatusCode: test.status}},
			Err:      &smithy.GenericAPIError{Code: "AccessDenied", Message: "not authorized to perform sts:AssumeRole"},
		}}}
		b := connect(t, &endpoint{}, func(c *Config) {
			c.AWS.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return aws.Credentials{}, err })
		})
		if e := execute(t.Context(), b, start(id(1)))[0].refusedAs(t); e.Kind != test.kind || e.OutcomeUnknown {
			t.Errorf("with status %d the error is %+v", test.status, e)
		}
	}
}
