package admin_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/instanced/instanced/server/admin"
)

// TestOpenConnectionsAreLimited opens many connections of which most never send a whole request,
// and shows that requests are served nevertheless, and that a request in flight is not cut off.
func TestOpenConnectionsAreLimited(t *testing.T) {
	const limit, clients = 4, 40
	address := strings.TrimPrefix(serve(t, admin.Config{Metrics: prometheus.NewRegistry(), MaxConnections: limit}), "http://")
	open := func(request string) net.Conn {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	status := func(conn net.Conn) int {
		t.Helper()
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode
	}
	// Its body is still to come: it is in flight.
	slow := open(fmt.Sprintf("POST /debug/pprof/symbol HTTP/1.1\r\nHost: %s\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n", address))
	if got := status(slow); got != http.StatusContinue {
		t.Fatalf("the request in flight: %d", got)
	}
	var conns []net.Conn
	for i := range clients {
		request := []string{"", "GET /livez HTTP/1.1\r\nHost: x\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"}[i%3]
		conns = append(conns, open(request))
		probe := open("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
		if got := status(probe); got != http.StatusOK {
			t.Fatalf("a probe besides %d connections: %d", len(conns), got)
		}
	}
	for _, conn := range conns[:clients-limit] {
		if err := conn.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil { // less than the time for a header
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("a connection beyond the limit is still open")
		}
	}
	if _, err := io.WriteString(slow, "0"); err != nil {
		t.Fatal(err)
	}
	if got := status(slow); got != http.StatusOK {
		t.Errorf("the request in flight: %d", got)
	}
}
