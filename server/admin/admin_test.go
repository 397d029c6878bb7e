package admin_test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/instanced/instanced/server/admin"
)

func TestMetricsAreServed(t *testing.T) {
	registry := prometheus.NewRegistry()
	promauto.With(registry).NewCounter(prometheus.CounterOpts{Name: "starts_total", Help: "Starts."}).Add(3)
	url := serve(t, admin.Config{Metrics: registry})

	status, body := get(t, url+"/metrics")
	if status != http.StatusOK || !strings.Contains(body, "\nstarts_total 3\n") {
		t.Errorf("GET /metrics: %d\n%s", status, body)
	}
}

func TestLivezAnswersOK(t *testing.T) {
	url := serve(t, admin.Config{Metrics: prometheus.NewRegistry()})
	if status, body := get(t, url+"/livez"); status != http.StatusOK || body != "ok\n" {
		t.Errorf("GET /livez: %d %q; want 200 ok", status, body)
	}
}

func TestUnknownPathsAndMethodsAreRejected(t *testing.T) {
	url := serve(t, admin.Config{Metrics: prometheus.NewRegistry()})
	if status, _ := get(t, url+"/nosuch"); status != http.StatusNotFound {
		t.Errorf("GET /nosuch: %d; want 404", status)
	}
	resp, err := http.Post(url+"/metrics", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST /metrics: %d; want 405", resp.StatusCode)
	}
}

// serve serves the admin endpoints and returns their base URL.
func serve(t *testing.T, cfg admin.Config) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, lis, cfg)
	return "http://" + lis.Addr().String()
}

// serveOn serves the admin endpoints on a listener until the test ends.
func serveOn(t *testing.T, lis net.Listener, cfg admin.Config) {
	t.Helper()
	srv := admin.New(cfg)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(raw)
}

func TestTheIndexNamesTheEndpoints(t *testing.T) {
	url := serve(t, admin.Config{Metrics: prometheus.NewRegistry()})
	if status, body := get(t, url+"/"); status != http.StatusOK || !strings.Contains(body, "/readyz?verbose") {
		t.Errorf("GET /: %d %q; want a list of the endpoints", status, body)
	}
}
