package ec2query_test

import (
	"fmt"
	"net/http"
	"net/url"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// TestRequestsAreMeasuredByActionAndCode makes requests with many actions that do not exist, and
// one with an action that does.
func TestRequestsAreMeasuredByActionAndCode(t *testing.T) {
	registry := prometheus.NewRegistry()
	srv := servertest.New(t, servertest.Options{Fleet: &instancedv1.CreateInstancesRequest{}, Metrics: registry})
	post := func(form url.Values) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.EC2(), http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.URL.RawQuery = form.Encode()
		req.Header.Set("X-Amz-Date", "20261128T000000Z") // as no web page can
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
	const hostile = 300
	for n := range hostile {
		post(url.Values{"Action": {fmt.Sprintf("Hostile%d", n)}, "Version": {"2016-11-15"}})
	}
	post(url.Values{"Action": {"DescribeInstances"}, "Version": {"2016-11-15"}})
	post(url.Values{"Action": {"StartInstances"}, "Version": {"2016-11-15"}, "InstanceId.1": {"i-0123456789abcdef0"}})
	srv.Close() // all requests are counted then

	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counts := make(map[string]uint64)
	for _, family := range families {
		if family.GetName() != "instanced_ec2query_request_duration_seconds" {
			continue
		}
		for _, m := range family.GetMetric() {
			if count := m.GetHistogram().GetSampleCount(); count > 0 {
				counts[m.GetLabel()[0].GetValue()+" "+m.GetLabel()[1].GetValue()] = count
			}
		}
	}
	want := map[string]uint64{"_OTHER InvalidAction": hostile, "DescribeInstances OK": 1, "StartInstances InvalidInstanceID.NotFound": 1}
	if fmt.Sprint(counts) != fmt.Sprint(want) {
		t.Errorf("requests are counted as %v, want %v", counts, want)
	}
}
