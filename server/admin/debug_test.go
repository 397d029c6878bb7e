package admin_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	channelzv1 "google.golang.org/grpc/channelz/grpc_channelz_v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/instanced/instanced/server/admin"
)

// config has everything that the admin endpoints can show.
func config(log *bytes.Buffer) (admin.Config, *slog.LevelVar) {
	level := new(slog.LevelVar)
	return admin.Config{
		Metrics:  prometheus.NewRegistry(),
		Logger:   slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: level})),
		LogLevel: level,
		ParseLevel: func(text string) (slog.Level, error) {
			if text != "debug" && text != "info" && text != "error" {
				return 0, fmt.Errorf("%q is not one of debug, info, error", text)
			}
			var l slog.Level
			return l, l.UnmarshalText([]byte(text))
		},
		Status: func() []admin.Section {
			return []admin.Section{
				{Title: "Process", Rows: [][]string{{"version", "v1"}}},
				{Title: "Slowest calls", Columns: []string{"principal", "took"}, Rows: [][]string{{"<script>alert(1)</script>\x1b[2J", "3s"}}},
				{Title: "Streams", Note: "There are none."},
			}
		},
	}, level
}

// send sends a request with a header, and with a Host other than the address if there is one.
func send(t *testing.T, method, url, body, host string, header ...string) (status int, answer string, h http.Header) {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(raw), resp.Header
}

// local are the endpoints that are served on loopback only.
var local = []string{"/debug/pprof/", "/debug/pprof/cmdline", "/debug/pprof/heap", "/loglevel", "/statusz"}

func TestLocalEndpointsAreServedOnLoopback(t *testing.T) {
	cfg, _ := config(&bytes.Buffer{})
	url := serve(t, cfg)
	port := url[strings.LastIndex(url, ":"):]
	for _, path := range local {
		for _, host := range []string{"", "localhost", "LOCALHOST.:8080", "127.0.0.1" + port, "127.9.9.9", "[::1]:1", "a.localhost"} {
			if status, body, _ := send(t, http.MethodGet, url+path, "", host); status != http.StatusOK {
				t.Errorf("GET %s with Host %q: %d %s", path, host, status, body)
			}
		}
	}
}

func TestLocalEndpointsRefuseOtherHostsAndSites(t *testing.T) {
	cfg, level := config(&bytes.Buffer{})
	url := serve(t, cfg)
	for _, path := range local {
		for _, host := range []string{"evil.example", "evil.example:9090", "127.0.0.1.evil.example", "10.0.0.1", "localhost.evil.example", "0.0.0.0", "[::]", "[::ffff:10.0.0.1]"} {
			status, body, _ := send(t, http.MethodGet, url+path, "", host)
			if status != http.StatusForbidden || !strings.Contains(body, "Host header must name loopback") {
				t.Errorf("GET %s with Host %q: %d %s; want 403", path, host, status, body)
			}
		}
		for _, header := range [][]string{{"Origin", "http://evil.example"}, {"Origin", "null"}, {"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}} {
			if status, _, _ := send(t, http.MethodGet, url+path, "", "", header...); status != http.StatusForbidden {
				t.Errorf("GET %s with %v: %d; want 403", path, header, status)
			}
		}
	}
	if status, _, _ := send(t, http.MethodPut, url+"/loglevel", "debug", "", "Origin", "http://evil.example"); status != http.StatusForbidden || level.Level() != slog.LevelInfo {
		t.Errorf("PUT /loglevel from another site: %d", status)
	}
	for _, path := range []string{"/metrics", "/livez", "/readyz"} {
		if status, _, _ := send(t, http.MethodGet, url+path, "", "pod.example:9090"); status != http.StatusOK {
			t.Errorf("GET %s under another name: %d; want 200", path, status)
		}
	}
}

func TestLocalEndpointsAreForbiddenOffLoopback(t *testing.T) {
	cfg, _ := config(&bytes.Buffer{})
	lis, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, lis, cfg)
	_, port, _ := net.SplitHostPort(lis.Addr().String())
	url := "http://127.0.0.1:" + port
	for _, path := range local {
		if status, body := get(t, url+path); status != http.StatusForbidden || !strings.Contains(body, "--admin-listen is a loopback address") {
			t.Errorf("GET %s: %d %s; want 403", path, status, body)
		}
	}
	for _, path := range []string{"/metrics", "/livez", "/readyz"} {
		if status, _ := get(t, url+path); status != http.StatusOK {
			t.Errorf("GET %s: %d; want 200", path, status)
		}
	}
	_, err = channelzv1.NewChannelzClient(dial(t, "127.0.0.1:"+port)).GetServers(t.Context(), &channelzv1.GetServersRequest{})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("channelz: %v; want PERMISSION_DENIED", err)
	}
}

func TestLogLevelIsShownAndChanged(t *testing.T) {
	var log bytes.Buffer
	cfg, level := config(&log)
	url := serve(t, cfg) + "/loglevel"
	if status, body := get(t, url); status != http.StatusOK || body != "info\n" {
		t.Errorf("GET: %d %q", status, body)
	}
	if status, body, _ := send(t, http.MethodPut, url, "debug\n", ""); status != http.StatusOK || body != "debug\n" || level.Level() != slog.LevelDebug {
		t.Errorf("PUT debug: %d %q, %v", status, body, level)
	}
	for _, bad := range []string{"", "loud", "DEBUG", strings.Repeat("debug ", 1000)} {
		if status, body, _ := send(t, http.MethodPut, url, bad, ""); status != http.StatusBadRequest || !strings.Contains(body, "is not one of debug, info") {
			t.Errorf("PUT %.20q: %d %q; want 400", bad, status, body)
		}
	}
	if level.Level() != slog.LevelDebug {
		t.Errorf("the level is %v after bad ones", level)
	}
	if status, _, _ := send(t, http.MethodPost, url, "level=info", "", "Content-Type", "application/x-www-form-urlencoded"); status != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d; want 405", status)
	}
	send(t, http.MethodPut, url, "error", "")
	for _, change := range []string{"was=info is=debug", "was=debug is=error"} {
		if !strings.Contains(log.String(), `level=INFO msg="the log level was changed through the admin listener" `+change+"\n") {
			t.Errorf("%s is not logged: %s", change, log.String())
		}
	}
}

func TestStatuszEscapesWhatCallersSay(t *testing.T) {
	cfg, _ := config(&bytes.Buffer{})
	url := serve(t, cfg) + "/statusz"
	status, page, header := send(t, http.MethodGet, url, "", "")
	if status != http.StatusOK || !strings.Contains(page, "&lt;script&gt;alert(1)&lt;/script&gt;") || strings.Contains(page, "<script") || strings.Contains(page, "\x1b") ||
		!strings.HasPrefix(header.Get("Content-Type"), "text/html") || !strings.HasPrefix(header.Get("Content-Security-Policy"), "default-src 'none'") {
		t.Errorf("GET: %d %v\n%s", status, header, page)
	}
	want := `# Process
version  v1

# Slowest calls
principal                      took
<script>alert(1)</script> [2J  3s

# Streams
There are none.
`
	for _, how := range []struct{ query, accept string }{{"?format=text", ""}, {"", "text/plain"}} {
		_, text, header := send(t, http.MethodGet, url+how.query, "", "", "Accept", how.accept)
		if text != want || !strings.HasPrefix(header.Get("Content-Type"), "text/plain") || header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%v: %v\n%s", how, header, text)
		}
	}
}

func dial(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// TestChannelzIsServedOnTheSamePort finds the sockets of another server of the process.
func TestChannelzIsServedOnTheSamePort(t *testing.T) {
	cfg, _ := config(&bytes.Buffer{})
	url := serve(t, cfg)
	other := grpc.NewServer()
	defer other.Stop()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = other.Serve(lis) }() // until it is stopped
	client := channelzv1.NewChannelzClient(dial(t, strings.TrimPrefix(url, "http://")))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		servers, err := client.GetServers(ctx, &channelzv1.GetServersRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(servers.GetServer(), func(s *channelzv1.Server) bool {
			return slices.ContainsFunc(s.GetListenSocket(), func(r *channelzv1.SocketRef) bool { return r.GetName() == lis.Addr().String() })
		}) {
			break
		}
	}
}

func TestProfilesHaveLimits(t *testing.T) {
	cfg, _ := config(&bytes.Buffer{})
	url := serve(t, cfg)
	for _, seconds := range []string{"601", "1e300", "NaN", "-1", "x"} {
		if status, body := get(t, url+"/debug/pprof/profile?seconds="+seconds); status != http.StatusBadRequest || !strings.Contains(body, "at most 600") {
			t.Errorf("seconds=%s: %d %s", seconds, status, body)
		}
	}
	// Of many at once, one profiles the processor, and the others are told why not.
	var all sync.WaitGroup
	statuses := make(chan int, 8)
	for range cap(statuses) {
		all.Go(func() {
			resp, err := http.Get(url + "/debug/pprof/profile?seconds=1")
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = resp.Body.Close() }()
			_, _ = io.Copy(io.Discard, resp.Body)
			statuses <- resp.StatusCode
		})
	}
	all.Wait()
	close(statuses)
	n := make(map[int]int)
	for status := range statuses {
		n[status]++
	}
	if n[http.StatusOK] == 0 || n[http.StatusOK]+n[http.StatusInternalServerError]+n[http.StatusServiceUnavailable] != 8 {
		t.Errorf("statuses of 8 profiles at once: %v", n)
	}
	if status, _ := get(t, url+"/debug/pprof/heap"); status != http.StatusOK {
		t.Errorf("after them: %d", status)
	}
}

// TestAClientElsewhereIsRefused shows that the address of the client counts too, as behind a
// packet filter that redirects to loopback.
func TestAClientElsewhereIsRefused(t *testing.T) {
	cfg, _ := config(&bytes.Buffer{})
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, fromElsewhere{inner}, cfg)
	url := "http://" + inner.Addr().String()
	if status, body := get(t, url+"/statusz"); status != http.StatusForbidden || !strings.Contains(body, "clients on the same machine") {
		t.Errorf("GET /statusz: %d %s", status, body)
	}
	if status, _ := get(t, url+"/readyz"); status != http.StatusOK {
		t.Errorf("GET /readyz: %d", status)
	}
}

// fromElsewhere is a listener whose clients seem to be on another machine.
type fromElsewhere struct{ net.Listener }

func (l fromElsewhere) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	return remoteConn{conn}, err
}

type remoteConn struct{ net.Conn }

func (remoteConn) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 40000}
}

func TestHugeHeadersAreRefused(t *testing.T) {
	cfg, _ := config(&bytes.Buffer{})
	url := serve(t, cfg)
	status, _, _ := send(t, http.MethodGet, url+"/readyz", "", "", "X-Filler", strings.Repeat("x", 64<<10))
	if status != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("64 KiB of header: %d; want 431", status)
	}
	if status, _ := get(t, url+"/readyz"); status != http.StatusOK {
		t.Errorf("afterwards: %d", status)
	}
}
