package ec2query_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/goleak"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

const (
	stopped = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_STOPPED
	running = instancedv1.InstanceStateName_INSTANCE_STATE_NAME_RUNNING
)

// documented is the instance of EC2's example.
const documented = "i-1234567890abcdef0"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patient is the context of a test that waits for conditions.
func patient(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// etcd runs an etcd outside of the servers and returns where it is.
func etcd(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	config := embed.NewConfig()
	config.Dir = filepath.Join(dir, "etcd")
	config.LogLevel = "panic"
	clients := url.URL{Scheme: "unix", Path: filepath.Join(dir, "client")}
	peers := url.URL{Scheme: "unix", Path: filepath.Join(dir, "peer")}
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{clients}, []url.URL{clients}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{peers}, []url.URL{peers}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	config.TickMs, config.ElectionMs = 10, 100
	server, err := embed.StartEtcd(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	select {
	case <-server.Server.ReadyNotify():
	case <-patient(t).Done():
		t.Fatal("etcd does not become ready")
	}
	return clients.String()
}

// id returns the id of the n-th instance of a fleet.
func id(n int) string { return fmt.Sprintf("i-%017x", n+1) }

// distinctIDs returns so many ids.
func distinctIDs(count int) []string {
	ids := make([]string, count)
	for n := range ids {
		ids[n] = id(n)
	}
	return ids
}

// httpClient makes connections of its own, which are closed when the test ends.
func httpClient(t testing.TB) *http.Client {
	transport := &http.Transport{MaxIdleConnsPerHost: 256}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// once is for calls whose refusal is to be seen, and not what a retry makes of it. Of long
// answers the SDK (smithy-go 1.28.8) now and then loses the connection by itself, when the
// server is faster than its own writing of the request is at an end: that it tries again.
func once(o *ec2.Options) {
	o.Retryer = retry.NewStandard(func(o *retry.StandardOptions) {
		o.Retryables = []retry.IsErrorRetryable{retry.RetryableConnectionError{}}
	})
}

// sdk returns the SDK's client, as alice unless the options say otherwise.
func sdk(t testing.TB, srv *servertest.Server, opts ...func(*ec2.Options)) *ec2.Client {
	t.Helper()
	return ec2.New(ec2.Options{
		Region:       "us-east-1",
		BaseEndpoint: aws.String(srv.EC2()),
		HTTPClient:   httpClient(t),
		Credentials:  credentials.NewStaticCredentialsProvider("alice", "secret", ""),
	}, opts...)
}

// wantAPIError checks what the SDK makes of a refusal.
func wantAPIError(t testing.TB, err error, status int, code, message string) {
	t.Helper()
	refused, ok := errors.AsType[smithy.APIError](err)
	if !ok {
		t.Fatalf("error %v, want %s", err, code)
	}
	if refused.ErrorCode() != code || message != "" && refused.ErrorMessage() != message {
		t.Errorf("refused by %s: %s\nwant       %s: %s", refused.ErrorCode(), refused.ErrorMessage(), code, message)
	}
	if response, ok := errors.AsType[*smithyhttp.ResponseError](err); !ok || response.HTTPStatusCode() != status {
		t.Errorf("%v, want status %d", err, status)
	}
}

// requestIDOf returns the id of a request that was refused.
func requestIDOf(t testing.TB, err error) string {
	t.Helper()
	response, ok := errors.AsType[*awshttp.ResponseError](err)
	if !ok || response.ServiceRequestID() == "" {
		t.Fatalf("%v has no request id", err)
	}
	return response.ServiceRequestID()
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for ctx := patient(t); !holds(); {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("it never comes to it that %s", what)
		}
	}
}
