package ec2query_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/instanced/instanced/server/ec2query"
	"github.com/instanced/instanced/server/servertest"
)

// keptAlive is one connection of a caller.
type keptAlive struct {
	net.Conn
	responses *bufio.Reader
	key       string
}

func open(t *testing.T, srv *servertest.Server, key string) *keptAlive {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(srv.EC2(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &keptAlive{conn, bufio.NewReader(conn), key}
}

// call makes a call on the connection, which must be open.
func (c *keptAlive) call(t *testing.T) answered {
	t.Helper()
	got, err := c.try(t)
	if err != nil {
		t.Fatalf("a call of %s: %v", c.key, err)
	}
	return got
}

// try makes a call on the connection. The error is that it is closed.
func (c *keptAlive) try(t *testing.T) (answered, error) {
	t.Helper()
	const form = "Action=DescribeInstances&Version=2016-11-15&InstanceId.1=" + documented
	if _, err := fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\nAuthorization: AWS4-HMAC-SHA256 Credential=%s/20260101/us-east-1/ec2/aws4_request, SignedHeaders=host, Signature=0\r\n\r\n%s", len(form), c.key, form); err != nil {
		return answered{}, err
	}
	response, err := http.ReadResponse(c.responses, nil)
	if err != nil {
		return answered{}, err
	}
	return read(t, response), nil
}

func TestIdleConnectionsOfOneCallerDoNotCloseThoseOfOthers(t *testing.T) {
	t.Parallel()
	const connections = 20
	srv := servertest.New(t, servertest.Options{MaxConnections: connections})
	wantOK := func(c *keptAlive) {
		t.Helper()
		if got := c.call(t); got.status != http.StatusOK {
			t.Errorf("%s is answered %d: %s", c.key, got.status, got.body)
		}
	}
	alice, first := open(t, srv, "alice"), open(t, srv, "greedy")
	wantOK(alice)
	wantOK(first)
	for range 3 * connections {
		wantOK(open(t, srv, "greedy"))
	}
	for n := range 3 * connections { // that make no call
		open(t, srv, fmt.Sprint("silent", n))
	}
	wantOK(alice) // though it was idle for longest
	if _, err := first.try(t); err == nil {
		t.Error("the first of the greedy one's connections is still open")
	}
}

// TestConnectionsThatAreNotVerifiedHaveNoOwner has somebody who does not know the secret
// of a key use it anyway: that does not cost the owner of the key a connection.
func TestConnectionsThatAreNotVerifiedHaveNoOwner(t *testing.T) {
	t.Parallel()
	const connections = 20
	known, err := ec2query.ParseCredentials(strings.NewReader(keys))
	if err != nil {
		t.Fatal(err)
	}
	srv := servertest.New(t, servertest.Options{EC2Credentials: known, MaxConnections: connections})
	var dials atomic.Int64
	transport := &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		dials.Add(1)
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport}
	describe := func() {
		t.Helper()
		request := signing{presign: true, service: "ec2", at: time.Now(), form: "Action=DescribeInstances" + versioned + "&InstanceId.1=" + documented}
		if got := request.do(t, client, srv.EC2()); got.status != http.StatusOK {
			t.Fatalf("the caller is answered %d: %s", got.status, got.body)
		}
	}
	describe()
	for range 3 * connections {
		if got := open(t, srv, "AKIAALICE").call(t); got.code != "IncompleteSignature" {
			t.Fatalf("an impostor is answered %d: %s", got.status, got.body)
		}
	}
	describe()
	if n := dials.Load(); n != 1 {
		t.Errorf("the caller had to connect %d times", n)
	}
}
