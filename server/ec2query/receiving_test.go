package ec2query_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ec2"

	"github.com/instanced/instanced/server/servertest"
)

// slowClients are connections whose request bodies never arrive. They send the body when the
// server asks for it, so they know how many of them it is reading from.
type slowClients struct {
	asked atomic.Int64 // connections that were asked for the body
	conns []net.Conn
}

// open opens connections, each with a request by an access key.
func (s *slowClients) open(t *testing.T, srv *servertest.Server, count int, key func(n int) string) {
	t.Helper()
	for n := range count {
		conn, err := net.Dial("tcp", strings.TrimPrefix(srv.EC2(), "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		s.conns = append(s.conns, conn)
		go func() {
			line, err := bufio.NewReader(conn).ReadString('\n')
			if err == nil && strings.Contains(line, "100 Continue") {
				s.asked.Add(1)
			}
		}()
		if _, err := fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n"+
			"Authorization: AWS4-HMAC-SHA256 Credential=%s/20260101/us-east-1/ec2/aws4_request, SignedHeaders=host, Signature=0\r\n\r\n", key(n)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "Action="); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSlowBodiesOfOneKeyLeaveRoomForOthers(t *testing.T) {
	t.Parallel()
	const places, clients = 256, 300
	for name, c := range map[string]struct {
		key  func(n int) string
		want int64
	}{
		"a key of theirs":            {func(int) string { return "AKIA/BOB" }, places / 2},
		"unknown keys":               {func(n int) string { return fmt.Sprint("AKIA", n) }, places / 2},
		"a key that is not readable": {func(int) string { return "" }, places / 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv, _ := verifying(t)
			var slow slowClients
			slow.open(t, srv, clients, c.key)
			eventually(t, "half of the places are taken", func() bool { return slow.asked.Load() >= c.want })
			alice := sdk(t, srv, signedBy("AKIAALICE", "wJalr/XUtn+FEMI", ""), once)
			for range 20 {
				if _, err := alice.DescribeInstances(patient(t), &ec2.DescribeInstancesInput{InstanceIds: []string{documented}}); err != nil {
					t.Fatalf("another caller: %v", err)
				}
			}
			if n := slow.asked.Load(); n != c.want {
				t.Errorf("%d slow bodies are received, want %d", n, c.want)
			}
			for _, conn := range slow.conns {
				_ = conn.Close()
			}
		})
	}
}

// TestARequestWaitsForAPlaceOfItsKey has slow clients leave one after the other: those who
// wait take their places.
func TestARequestWaitsForAPlaceOfItsKey(t *testing.T) {
	t.Parallel()
	const places, waiting = 256 / 2, 3
	srv := servertest.New(t, servertest.Options{})
	var slow slowClients
	slow.open(t, srv, places, func(int) string { return "bob" })
	eventually(t, "the places of the key are taken", func() bool { return slow.asked.Load() == places })
	slow.open(t, srv, waiting, func(int) string { return "bob" })
	for n := range waiting {
		_ = slow.conns[n].Close()
		eventually(t, "the next one is received", func() bool { return slow.asked.Load() == int64(places+n+1) })
	}
}

// TestACallerWhoDoesNotReadKeepsItsPlace has a caller ask for a response larger than what the
// kernel buffers, and not read it: the call counts as in flight until it does, or leaves.
func TestACallerWhoDoesNotReadKeepsItsPlace(t *testing.T) {
	t.Parallel()
	const instances = 500
	fleet := fleetOf(instances + 1)
	for _, spec := range fleet.GetInstances()[:instances] {
		spec.Tags = make(map[string]string)
		for n := range 50 {
			spec.Tags[fmt.Sprint("tag", n)] = strings.Repeat("x", 256)
		}
	}
	srv := servertest.New(t, servertest.Options{Fleet: fleet, MaxRequests: 2})
	slow := open(t, srv, "alice")
	if err := slow.Conn.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	const all = "Action=DescribeInstances&Version=2016-11-15"
	if _, err := fmt.Fprintf(slow, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n"+
		"Authorization: AWS4-HMAC-SHA256 Credential=alice/20260101/us-east-1/ec2/aws4_request, SignedHeaders=host, Signature=0\r\n\r\n%s", len(all), all); err != nil {
		t.Fatal(err)
	}
	one := func(key string) error {
		_, err := sdk(t, srv, signedBy(key, "any", "")).DescribeInstances(patient(t), &ec2.DescribeInstancesInput{InstanceIds: []string{id(instances)}}, once)
		return err
	}
	if _, err := slow.Read(make([]byte, 1)); err != nil { // it is being written
		t.Fatal(err)
	}
	for range 20 {
		if err := one("bob"); err != nil {
			t.Fatalf("another caller: %v", err)
		}
	}
	wantAPIError(t, one("alice"), http.StatusServiceUnavailable, "RequestLimitExceeded", "")
	_ = slow.Close()
	eventually(t, "the place is free again", func() bool { return one("alice") == nil })
}
