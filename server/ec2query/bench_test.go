package ec2query_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// Each server gets so many calls before it is the other's turn.
const (
	callsPerTurn      = 2_500
	turnsPerIteration = 4
	callers           = 256
)

// BenchmarkStartInstances compares the start of one instance, on disk before the answer,
// with the same HTTP server giving an equal answer at once: the same callers and
// connections, taking turns within one run. The callers write their requests by hand, so
// that what is measured is the servers and not an SDK. The journal is below TMPDIR.
func BenchmarkStartInstances(b *testing.B) {
	srv := servertest.New(b, servertest.Options{
		Fleet: &instancedv1.CreateInstancesRequest{},
		// Slow enough for instances to be starting until the end.
		Speed:        0.001,
		PollInterval: time.Hour,
		Logger:       slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	bare := serveHTTP(b, http.HandlerFunc(fixedAnswer))
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: callers}}
	b.Cleanup(client.CloseIdleConnections)

	var oursTook, bareTook time.Duration
	calls := 0
	for b.Loop() {
		b.StopTimer()
		fresh := createStopped(b, srv, callsPerTurn*turnsPerIteration)
		b.StartTimer()
		for instances := range slices.Chunk(fresh, callsPerTurn) {
			oursTook += turn(b, client, srv.EC2(), instances)
			bareTook += turn(b, client, bare, instances)
		}
		calls += len(fresh)
	}
	oursRate, bareRate := float64(calls)/oursTook.Seconds(), float64(calls)/bareTook.Seconds()
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(oursRate, "calls/s")
	b.ReportMetric(bareRate, "bare-calls/s")
	b.ReportMetric(oursRate/bareRate, "ratio")
}

// turn starts instances, one a call, and returns how long it took.
func turn(b *testing.B, client *http.Client, endpoint string, instances []string) time.Duration {
	begun := time.Now()
	var working sync.WaitGroup
	for caller := range callers {
		working.Go(func() {
			for n := caller; n < len(instances); n += callers {
				response, err := client.Do(unsigned(b, http.MethodPost, endpoint, strings.NewReader("Action=StartInstances&Version=2016-11-15&InstanceId.1="+instances[n])))
				if err != nil {
					b.Error(err)
					return
				}
				_, err = io.Copy(io.Discard, response.Body)
				_ = response.Body.Close()
				if err != nil || response.StatusCode != http.StatusOK {
					b.Errorf("%s, %v", response.Status, err)
					return
				}
			}
		})
	}
	working.Wait()
	return time.Since(begun)
}

// fixedAnswer answers as instanced would, to whatever is asked.
func fixedAnswer(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "text/xml;charset=UTF-8")
	_, _ = io.WriteString(w, `<?xml version="1.0" encoding="UTF-8"?>
<StartInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>8a17a49f-b076-4e73-98be-02ddef5ebf7f</requestId>`+
		`<instancesSet><item><instanceId>i-1234567890abcdef0</instanceId><currentState><code>0</code><name>pending</name></currentState>`+
		`<previousState><code>80</code><name>stopped</name></previousState></item></instancesSet></StartInstancesResponse>`)
}

func serveHTTP(b *testing.B, handler http.Handler) string {
	b.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(lis)
	}()
	b.Cleanup(func() { _ = s.Close(); <-done })
	return "http://" + lis.Addr().String()
}

// createStopped adds stopped instances, each with tags as a real one has them.
func createStopped(b *testing.B, srv *servertest.Server, count int32) []string {
	b.Helper()
	resp, err := srv.Simulator().CreateInstances(b.Context(), &instancedv1.CreateInstancesRequest{Instances: []*instancedv1.InstanceSpec{{
		Count: count,
		Tags: map[string]string{
			"Name": "worker of the nightly batch", "team": "data-platform", "environment": "production", "cost-center": "4711-0815",
			"created-by": strings.Repeat("terraform/", 8),
		},
	}}})
	if err != nil {
		b.Fatal(err)
	}
	return resp.GetInstanceIds()
}

// BenchmarkStartInstancesBesideMoto compares the same calls of the SDK, one after the
// other, with moto, where that is installed: an emulator in memory, which records nothing.
func BenchmarkStartInstancesBesideMoto(b *testing.B) {
	moto := serveMoto(b)
	srv := servertest.New(b, servertest.Options{Fleet: &instancedv1.CreateInstancesRequest{}, Speed: 0.001, PollInterval: time.Hour})
	const instances = 50
	ours, theirs := benchSDK(b, srv.EC2()), benchSDK(b, moto)
	ourIDs, theirIDs := createStopped(b, srv, instances), launchStopped(b, theirs, instances)
	start := func(client *ec2.Client, ids []string) time.Duration {
		begun := time.Now()
		for _, id := range ids {
			if _, err := client.StartInstances(b.Context(), &ec2.StartInstancesInput{InstanceIds: []string{id}}); err != nil {
				b.Fatal(err)
			}
		}
		return time.Since(begun)
	}
	var oursTook, motoTook time.Duration
	calls := 0
	for b.Loop() {
		oursTook += start(ours, ourIDs)
		motoTook += start(theirs, theirIDs)
		calls += instances
		ourIDs = createStopped(b, srv, instances)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(calls)/oursTook.Seconds(), "calls/s")
	b.ReportMetric(float64(calls)/motoTook.Seconds(), "moto-calls/s")
	b.ReportMetric(motoTook.Seconds()/oursTook.Seconds(), "ratio")
}

func benchSDK(b *testing.B, endpoint string) *ec2.Client {
	client := &http.Client{Transport: &http.Transport{}}
	b.Cleanup(client.CloseIdleConnections)
	return ec2.New(ec2.Options{
		Region: "us-east-1", BaseEndpoint: &endpoint, HTTPClient: client, Credentials: credentials.NewStaticCredentialsProvider("alice", "secret", ""),
	})
}

// launchStopped makes instances of moto's.
func launchStopped(b *testing.B, client *ec2.Client, count int32) (ids []string) {
	b.Helper()
	images, err := client.DescribeImages(b.Context(), &ec2.DescribeImagesInput{})
	if err != nil {
		b.Fatal(err)
	}
	out, err := client.RunInstances(b.Context(), &ec2.RunInstancesInput{ImageId: images.Images[0].ImageId, MinCount: aws.Int32(count), MaxCount: aws.Int32(count)})
	if err != nil {
		b.Fatal(err)
	}
	for _, i := range out.Instances {
		ids = append(ids, *i.InstanceId)
	}
	if _, err := client.StopInstances(b.Context(), &ec2.StopInstancesInput{InstanceIds: ids}); err != nil {
		b.Fatal(err)
	}
	return ids
}

// serveMoto runs moto's server until the benchmark ends.
func serveMoto(b *testing.B) string {
	b.Helper()
	if exec.Command("python3", "-c", "import moto.server").Run() != nil {
		fmt.Println("\n*** SKIPPED: moto is not installed (pip install 'moto[ec2,server]'), so there is no comparison with it")
		b.Skip("moto is not installed")
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	endpoint := &url.URL{Scheme: "http", Host: lis.Addr().String()}
	_ = lis.Close() // moto takes the port
	ctx, cancel := context.WithCancel(context.Background())
	server := exec.CommandContext(ctx, "python3", "-m", "moto.server", "-H", "127.0.0.1", "-p", endpoint.Port())
	if err := server.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { cancel(); _ = server.Wait() })
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if conn, err := net.Dial("tcp", endpoint.Host); err == nil {
			_ = conn.Close()
			return endpoint.String()
		}
		if time.Now().After(deadline) {
			b.Fatal("moto does not come up")
		}
	}
}
