package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/backend/sqstest"
	"github.com/instanced/instanced/internal/cli"
)

// measured is a service whose metrics can be scraped.
type measured struct {
	*service
	admin string // the address of its admin endpoints
}

// withMetrics returns the flags of a service that serves its metrics, and where it does.
func withMetrics(t *testing.T) (flags []string, admin string) {
	t.Helper()
	admin = freeAddress(t)
	return []string{"--admin-listen", admin}, admin
}

// freeAddress returns an address on which nothing listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lis.Close() }()
	return lis.Addr().String()
}

// scrape returns the metrics of a service by name.
func (m measured) scrape(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	resp, err := http.Get("http://" + m.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// measuredFleet is a fleet whose starts fail now and then.
const measuredFleet = `
instances:
  - {instance_id: i-00000000000000100}
  - {instance_id: i-00000000000000101}
  - {instance_id: i-00000000000000102}
  - {instance_id: i-00000000000000103}
  - {instance_id: i-00000000000000104}
  - {instance_id: i-00000000000000105}
  - {instance_id: i-00000000000000106}
  - {instance_id: i-00000000000000107}
  - {instance_id: i-0000000000000000a}
  - {instance_id: i-000000000000000fa, tags: {short: capacity}}
faults:
  - {kind: request-limit-exceeded, match: {verbs: [StartInstances]}, probability: 0.2}
  - {kind: insufficient-capacity, match: {tags: {short: capacity}}}
`

// measuredID returns the id of one of eight instances of measuredFleet.
func measuredID(n int) string { return fmt.Sprintf("i-%017x", 0x100+n%8) }

// measuredPair is two services, one with the simulator and faults, and one with EC2 as its
// backend, which the EC2 endpoint of the first is, and a queue.
func measuredPair(t *testing.T) (sim, ec2 measured) {
	t.Helper()
	flags, admin := withMetrics(t)
	s, endpoint := simulated(t, measuredFleet, append(flags, "--sim-speed", "50", "--max-streams", "16")...)
	sim = measured{s, admin}
	flags, admin = withMetrics(t)
	queue := new(sqstest.Queue)
	queue.Send(sqstest.Event("one", "i-0000000000000000a", "stopped", time.Now()))
	sqs := httptest.NewServer(queue)
	t.Cleanup(sqs.Close)
	ec2 = measured{runServiceIn(t,
		[]string{"AWS_REGION=us-east-1", "AWS_ENDPOINT_URL_EC2=http://" + endpoint, "AWS_ENDPOINT_URL_SQS=" + sqs.URL},
		append(flags, "--backend", "ec2", "--sqs-queue-url", sqstest.URL)...), admin}
	return sim, ec2
}

// load has a service do what its metrics tell of.
func (m measured) load(t *testing.T) {
	t.Helper()
	ctx, api := patient(t), m.instances()
	subscribe(t, m.service, 2)
	const id = "i-0000000000000000a"
	var started *instancedv1.StartInstancesResponse
	eventually(t, "an instance is started", func() (ok bool) {
		var err error
		started, err = api.StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: []string{id}})
		return err == nil
	})
	if _, err := api.WaitInstances(ctx, &instancedv1.WaitInstancesRequest{
		InstanceIds: []string{id}, States: []instancedv1.InstanceStateName{stateRunning}, AfterCursor: started.GetCursor(),
	}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a start fails for a reason of its own", func() bool {
		_, err := api.StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: []string{"i-0123456789abcdef9"}})
		return status.Code(err) == codes.NotFound
	})
}

// metric is what docs/metrics.md says of a metric.
type metric struct {
	Type   string
	Labels []string
}

var (
	metricRow = regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\| (counter|gauge|histogram) \\| ([^|]*) \\|([^|]*)\\| ([^|]+) \\|$")
	labelName = regexp.MustCompile("`([a-z0-9_]+)`")
)

// documentedMetrics returns the rows of the tables of docs/metrics.md.
func documentedMetrics(t *testing.T) map[string]metric {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(repository, "docs/metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[string]metric)
	for _, row := range metricRow.FindAllStringSubmatch(string(page), -1) {
		if _, twice := documented[row[1]]; twice {
			t.Errorf("docs/metrics.md has %s twice", row[1])
		}
		labels := []string{}
		for _, label := range labelName.FindAllStringSubmatch(row[4], -1) {
			labels = append(labels, label[1])
		}
		slices.Sort(labels)
		documented[row[1]] = metric{Type: row[2], Labels: labels}
	}
	return documented
}

// exportedMetrics returns the metrics of services, without the usual ones of the Go runtime, the
// process and the exporter.
func exportedMetrics(t *testing.T, services ...measured) map[string]metric {
	t.Helper()
	usual := regexp.MustCompile("^(go|process|promhttp)_")
	exported := make(map[string]metric)
	for _, s := range services {
		for name, family := range s.scrape(t) {
			if usual.MatchString(name) {
				continue
			}
			labels := []string{}
			for _, label := range family.GetMetric()[0].GetLabel() {
				labels = append(labels, label.GetName())
			}
			slices.Sort(labels)
			exported[name] = metric{Type: strings.ToLower(family.GetType().String()), Labels: labels}
		}
	}
	return exported
}

// withTLS returns the flags of a service that serves TLS.
func withTLS(t *testing.T) []string {
	t.Helper()
	dir := t.TempDir()
	if err := (&terminal{Terminal: &cli.Terminal{Stdout: io.Discard}}).makeDevCerts(dir, []string{"client"}); err != nil {
		t.Fatal(err)
	}
	return []string{"--tls-cert", filepath.Join(dir, "server.pem"), "--tls-key", filepath.Join(dir, "server-key.pem"), "--tls-client-ca", filepath.Join(dir, "ca.pem")}
}

// TestDocumentedMetricsAreTheOnesExported compares docs/metrics.md with what a service with the
// simulator and one with EC2 export under load, and one with TLS without any, and has Prometheus' own linter check that. A
// metric whose labels are known beforehand has all of its series from the start; for one that
// this test does not see, extend load.
func TestDocumentedMetricsAreTheOnesExported(t *testing.T) {
	t.Parallel()
	sim, ec2 := measuredPair(t)
	ec2.load(t)
	sim.load(t)
	flags, admin := withMetrics(t)
	tls := measured{runServiceIn(t, nil, append(flags, withTLS(t)...)...), admin}
	if diff := cmp.Diff(documentedMetrics(t), exportedMetrics(t, sim, ec2, tls)); diff != "" {
		t.Errorf("metrics (-documented +exported):\n%s", diff)
	}
	for name, s := range map[string]measured{"simulator": sim, "ec2": ec2, "tls": tls} {
		t.Run("promtool/"+name, func(t *testing.T) {
			promtool := requireProgram(t, "promtool")
			resp, err := http.Get("http://" + s.admin + "/metrics")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = resp.Body.Close() }()
			check := exec.Command(promtool, "check", "metrics")
			check.Stdin = resp.Body
			if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("promtool check metrics: %v\n%s", err, out)
			}
		})
	}
}

// requireProgram returns the path of a program, or skips the test without it.
func requireProgram(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("SKIPPED: THERE IS NO %s HERE (Debian's package prometheus has it)", strings.ToUpper(name))
	}
	return path
}
