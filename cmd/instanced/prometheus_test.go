package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// prometheusServer is a running Prometheus.
type prometheusServer struct{ url string }

// runPrometheus has a Prometheus scrape services until the test ends.
func runPrometheus(t *testing.T, services map[string]measured) prometheusServer {
	t.Helper()
	program := requireProgram(t, "prometheus")
	dir, address := t.TempDir(), freeAddress(t)
	config := "global: {scrape_interval: 200ms, scrape_timeout: 200ms}\nscrape_configs:\n"
	for job, s := range services {
		config += fmt.Sprintf("  - {job_name: %s, static_configs: [{targets: [%q]}]}\n", job, s.admin)
	}
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	log := &strings.Builder{}
	cmd := exec.Command(program, "--config.file", file, "--storage.tsdb.path", filepath.Join(dir, "data"), "--web.listen-address", address)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // killed below
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("prometheus says:\n%s", log)
		}
	})
	p := prometheusServer{"http://" + address}
	eventually(t, "Prometheus is ready", func() bool {
		resp, err := http.Get(p.url + "/-/ready")
		if err != nil {
			return false
		}
		defer func() { _ = resp.Body.Close() }()
		return resp.StatusCode == http.StatusOK
	})
	return p
}

// ask returns the answer to a query: the values by the labels.
func (p prometheusServer) ask(t *testing.T, query string) map[string]float64 {
	t.Helper()
	resp, err := http.Get(p.url + "/api/v1/query?query=" + url.QueryEscape(query))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var answer struct {
		Error string
		Data  struct {
			Result []struct {
				Metric map[string]string
				Value  [2]any
			}
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || answer.Error != "" {
		t.Fatalf("%s: %v %s", query, err, answer.Error)
	}
	values := make(map[string]float64)
	for _, r := range answer.Data.Result {
		labels := ""
		for _, name := range []string{"job", "endpoint", "action", "class", "principal", "reason"} {
			if value := r.Metric[name]; value != "" {
				labels += value + " "
			}
		}
		value, err := strconv.ParseFloat(r.Value[1].(string), 64)
		if err != nil {
			t.Fatal(err)
		}
		values[strings.TrimSuffix(labels, " ")] = value
	}
	return values
}

// documentedQuestions returns the queries of docs/metrics.md by question.
func documentedQuestions(t *testing.T) map[string][]string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(repository, "docs/metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	questions := make(map[string][]string)
	_, rest, _ := strings.Cut(string(page), "\n## Questions of an on-call engineer\n")
	rest, _, _ = strings.Cut(rest, "\n## ")
	for _, section := range strings.Split(rest, "\n### ")[1:] {
		title, body, _ := strings.Cut(section, "\n")
		for _, block := range fenced.FindAllStringSubmatch(body, -1) {
			questions[title] = append(questions[title], strings.TrimSpace(block[2]))
		}
	}
	return questions
}

// TestPrometheusAnswersTheQuestionsOfAnOnCallEngineer asks what docs/metrics.md asks, of a
// Prometheus that scrapes a service with the simulator and one in front of it, under load.
func TestPrometheusAnswersTheQuestionsOfAnOnCallEngineer(t *testing.T) {
	t.Parallel()
	requireProgram(t, "prometheus")
	sim, ec2 := measuredPair(t)
	p := runPrometheus(t, map[string]measured{"sim": sim, "ec2": ec2})
	lagging(t, sim)
	simAPI, ec2API := sim.instances(), ec2.instances()
	under(t, func(ctx context.Context) { startsAndStops(ctx, ec2API) })
	for _, id := range []string{"i-000000000000000fa", "i-0123456789abcdef9"} { // without capacity, and unknown
		if _, err := ec2API.StartInstances(t.Context(), &instancedv1.StartInstancesRequest{InstanceIds: []string{id}}); err == nil {
			t.Errorf("%s has started", id)
		}
	}
	under(t, func(ctx context.Context) { crowd(ctx, simAPI) })

	has := func(labels string, atLeast, below float64) func([]map[string]float64) bool {
		return func(answers []map[string]float64) bool {
			value, ok := answers[0][labels]
			return ok && value >= atLeast && value < below
		}
	}
	const many = 1e12
	wanted := map[string][]func(answers []map[string]float64) bool{
		"How many starts fail, and why?": {has("INSUFFICIENT_INSTANCE_CAPACITY", 1, many), has("INVALID_INSTANCE_ID_NOT_FOUND", 1, many)},
		"How long does a start take?":    {has("", .0001, 60)},
		"What waits for EC2's token buckets, and for how long?": {has("StartInstances", 0, 60), func(answers []map[string]float64) bool {
			_, ok := answers[1]["StartInstances"]
			return ok
		}},
		"How old is the newest change?": {has("", 0, 60)},
		"Who lags?":                     {has("slow", 1, 60)},
		"Is the journal filling, and when will it be full?": {has("", 1e-6, 1), func(answers []map[string]float64) bool {
			return answers[1][""] > 0
		}},
		"Which process is the owner?": {has("sim", 1, 2), has("ec2", 1, 2)},
		"Is EC2 throttling us?":       {has("StartInstances", .1, many)},
		"What does batching save?":    {has("StartInstances", 1.2, 1000)},
		"Are notices late or lost?": {func(answers []map[string]float64) bool {
			_, found := answers[1][""]
			return len(answers[0]) > 0 && found
		}},
		"What does admission refuse?": {has("grpc TOO_MANY_STREAMS", .1, many)},
	}
	for title, queries := range documentedQuestions(t) {
		checks, ok := wanted[title]
		if !ok {
			t.Errorf("no answer is known to %q", title)
		}
		delete(wanted, title)
		for i, check := range checks {
			var answers []map[string]float64
			if !comesAbout(storyTimeout, func() bool {
				answers = nil
				for _, query := range queries {
					answers = append(answers, p.ask(t, query))
				}
				return check(answers)
			}) {
				t.Errorf("%s (%d) The answers are %v", title, i, answers)
			}
		}
		t.Log(title, p.ask(t, queries[0]))
	}
	for title := range wanted {
		t.Errorf("docs/metrics.md does not ask %q", title)
	}
}

// under does something over and over until the test ends.
func under(t *testing.T, load func(context.Context)) {
	ctx, cancel := context.WithCancel(t.Context())
	var working sync.WaitGroup
	working.Go(func() {
		for ctx.Err() == nil {
			load(ctx)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		working.Wait()
	})
}

// lagging subscribes without reading, and has much recorded after that.
func lagging(t *testing.T, m measured) {
	t.Helper()
	conn := m.conn()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "instanced-principal", "slow")
	stream, err := instancedv1.NewInstanceServiceClient(conn).WatchInstances(ctx, &instancedv1.WatchInstancesRequest{FromNow: true})
	if err == nil {
		_, err = stream.Recv()
	}
	for n := 0; err == nil && n < 40; n++ {
		tags := make(map[string]string)
		for tag := range 40 {
			tags[fmt.Sprintf("tag-%d", tag)] = strings.Repeat(fmt.Sprint(n%10), 250)
		}
		_, err = instancedv1.NewSimulatorServiceClient(conn).ChangeInstances(t.Context(), &instancedv1.ChangeInstancesRequest{
			Changes: []*instancedv1.OutsideChange{{InstanceIds: []string{"i-0000000000000000a"}, SetTags: tags}},
		})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// startsAndStops has sixteen callers start and stop an instance each.
func startsAndStops(ctx context.Context, api instancedv1.InstanceServiceClient) {
	var callers sync.WaitGroup
	for n := range 16 {
		callers.Go(func() {
			ids := []string{measuredID(n)}
			_, _ = api.StartInstances(ctx, &instancedv1.StartInstancesRequest{InstanceIds: ids}) // fails now and then, as it should
			_, _ = api.StopInstances(ctx, &instancedv1.StopInstancesRequest{InstanceIds: ids})
		})
	}
	callers.Wait()
}

// crowd opens more watches than there is room for.
func crowd(ctx context.Context, api instancedv1.InstanceServiceClient) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var streams []instancedv1.InstanceService_WatchInstancesClient
	for range 20 {
		if stream, err := api.WatchInstances(ctx, &instancedv1.WatchInstancesRequest{FromNow: true}); err == nil {
			streams = append(streams, stream)
		}
	}
	for _, stream := range streams {
		_, _ = stream.Recv() // a subscription or a refusal
	}
}
