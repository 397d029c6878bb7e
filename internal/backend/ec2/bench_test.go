package ec2

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awsec2 "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/backend/ec2/dispatch"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/server/servertest"
)

const (
	// crowd is how many callers want to start an instance each, at the same time.
	crowd = 1000
	// maxCalls and maxSlow are how many calls that may take, and how long.
	maxCalls = 20
	maxSlow  = 5 * time.Second
	// maxWait bounds how long the callers without the batches may take.
	maxWait = time.Minute
)

// counted counts the requests for an action that leave.
type counted struct {
	http.Client
	action string
	calls  atomic.Int64
}

func (c *counted) Do(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(body, []byte("Action="+c.action+"&")) {
		c.calls.Add(1)
	}
	req.Body = io.NopCloser(bytes.NewReader(body))
	return c.Client.Do(req)
}

// remote is an EC2 behind HTTP, and where its instances are.
type remote struct {
	cfg   aws.Config
	calls *counted
	ids   []instance.ID
}

// served returns an EC2 with stopped instances, and counts the calls of an action that it
// gets.
func served(b *testing.B, opts servertest.Options, instances int32, action string) remote {
	b.Helper()
	opts.Fleet = &instancedv1.CreateInstancesRequest{Instances: []*instancedv1.InstanceSpec{{Count: instances}}}
	srv := servertest.New(b, opts)
	transport := &http.Transport{MaxIdleConnsPerHost: crowd, MaxConnsPerHost: crowd}
	b.Cleanup(transport.CloseIdleConnections)
	c := &counted{Client: http.Client{Transport: transport}, action: action}
	states, err := srv.BackendStates(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	r := remote{calls: c, cfg: aws.Config{
		Region:       "us-east-1",
		Credentials:  credentials.NewStaticCredentialsProvider("AKID", "secret", ""),
		BaseEndpoint: new(srv.EC2()),
		HTTPClient:   c,
	}}
	for id := range states {
		r.ids = append(r.ids, instance.ID(id))
	}
	if len(r.ids) != int(instances) {
		b.Fatalf("%d instances", len(r.ids))
	}
	return r
}

// throttling returns an EC2 with the documented buckets and a crowd of stopped instances.
func throttling(b *testing.B) remote {
	return served(b, servertest.Options{Speed: 1, Throttle: true}, crowd, "StartInstances")
}

// storm has everybody start an instance at once. It returns how many were accepted, when
// the last of those was, and when the last caller had its answer.
func storm(ids []instance.ID, start func(instance.ID) error) (accepted int, last, all time.Duration) {
	var mu sync.Mutex
	var callers sync.WaitGroup
	gate := make(chan struct{})
	var began time.Time
	for _, id := range ids {
		callers.Go(func() {
			<-gate
			err := start(id)
			mu.Lock()
			defer mu.Unlock()
			all = time.Since(began)
			if err == nil {
				accepted++
				last = all
			}
		})
	}
	began = time.Now()
	close(gate)
	callers.Wait()
	return accepted, last, all
}

// BenchmarkThousandStarts has 1000 callers start an instance each, under EC2's documented
// buckets: through the batches, and by one call each of the SDK with its standard retryer,
// which are as many programs that know nothing of each other. Each of both has an EC2 of
// its own with full buckets.
func BenchmarkThousandStarts(b *testing.B) {
	for b.Loop() {
		ec2 := throttling(b)
		backend := New(Config{AWS: ec2.cfg})
		accepted, last, _ := storm(ec2.ids, func(id instance.ID) error {
			cmd := start(id)
			cmd.Principal = "caller of " + string(id)
			_, err := backend.Execute(b.Context(), cmd)
			return err
		})
		backend.Close()
		if n := ec2.calls.calls.Load(); accepted != crowd || n > maxCalls || last > maxSlow {
			b.Errorf("%d of %d starts were accepted in %v, by %d calls", accepted, crowd, last, n)
		}
		b.ReportMetric(float64(ec2.calls.calls.Load()), "calls")
		b.ReportMetric(last.Seconds(), "s-to-last")

		ec2 = throttling(b)
		ctx, cancel := context.WithTimeout(b.Context(), maxWait)
		accepted, last, all := storm(ec2.ids, func(id instance.ID) error {
			api := awsec2.NewFromConfig(ec2.cfg, func(o *awsec2.Options) { o.Retryer = retry.NewStandard() })
			_, err := api.StartInstances(ctx, &awsec2.StartInstancesInput{InstanceIds: []string{string(id)}})
			return err
		})
		cancel()
		b.ReportMetric(float64(ec2.calls.calls.Load()), "sdk-calls")
		b.ReportMetric(float64(accepted), "sdk-accepted")
		b.ReportMetric(last.Seconds(), "sdk-s-to-last")
		b.ReportMetric(all.Seconds(), "sdk-s-to-end")
	}
	b.ReportMetric(0, "ns/op") // of no use here
}

// BenchmarkLoneStart is what a start that is alone takes, beside the SDK's own call to the
// same EC2, which answers at once. They take turns.
func BenchmarkLoneStart(b *testing.B) {
	srv := httptest.NewServer(&endpoint{answer: (&fleet{}).answer})
	b.Cleanup(srv.Close)
	transport := &http.Transport{}
	b.Cleanup(transport.CloseIdleConnections)
	plenty := &Limit{Capacity: 1e9, Refill: 1e9}
	backend := connect(b, nil, func(c *Config) {
		c.AWS.HTTPClient, c.AWS.BaseEndpoint = &http.Client{Transport: transport}, new(srv.URL)
		c.Limits.Start = ActionLimits{Requests: plenty, Instances: plenty}
	})
	api := awsec2.NewFromConfig(backend.cfg.AWS)
	var ours, sdks []time.Duration
	for n := 0; b.Loop(); n++ {
		began := time.Now()
		if _, err := api.StartInstances(b.Context(), &awsec2.StartInstancesInput{InstanceIds: []string{string(id(2 * n))}}); err != nil {
			b.Fatal(err)
		}
		between := time.Now()
		if _, err := backend.Execute(b.Context(), start(id(2*n+1))); err != nil {
			b.Fatal(err)
		}
		sdks, ours = append(sdks, between.Sub(began)), append(ours, time.Since(between))
	}
	b.ReportMetric(float64(median(ours)), "ns-median")
	b.ReportMetric(float64(median(sdks)), "sdk-ns-median")
	b.ReportMetric(float64(median(ours)-median(sdks)), "added-ns")
}

func median(list []time.Duration) time.Duration {
	slices.Sort(list)
	return list[len(list)/2]
}

// BenchmarkMetricsOfACall is what the metrics of one call for 1000 instances take, by instance.
func BenchmarkMetricsOfACall(b *testing.B) {
	const size = 1000
	backend := connect(b, nil, func(c *Config) { c.Metrics = prometheus.NewRegistry() })
	m := backend.metrics.actions[instance.VerbStart]
	items := make([]*dispatch.Item, size)
	for n := range items {
		items[n] = &dispatch.Item{Request: dispatch.NewRequest(start(id(n)), time.Time{}), IDs: ids(n, n+1)}
	}
	b.ReportAllocs()
	for b.Loop() {
		m.countQueueWait(items)
		m.instances.Observe(size)
		m.requests.Observe(float64(backend.dispatcher.CountRequests(items)))
		m.countCall(time.Second, nil)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/size, "ns/instance")
}
