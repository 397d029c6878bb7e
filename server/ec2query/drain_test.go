package ec2query_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

func TestDrainingFinishesCallsAndSendsNewOnesAway(t *testing.T) {
	t.Parallel()
	log := &logged{}
	srv := servertest.New(t, servertest.Options{Logger: slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if _, err := srv.Simulator().SetFaults(patient(t), &instancedv1.SetFaultsRequest{Faults: []*instancedv1.Fault{{
		Kind: instancedv1.FaultKind_FAULT_KIND_SLOW_CALL, Delay: durationpb.New(2 * time.Second), Match: &instancedv1.FaultMatch{Verbs: []string{"StartInstances"}},
	}}}); err != nil {
		t.Fatal(err)
	}
	address := strings.TrimPrefix(srv.EC2(), "http://")
	client := sdk(t, srv, once)
	started := make(chan error, 1)
	go func() {
		out, err := client.StartInstances(context.WithoutCancel(t.Context()), &ec2.StartInstancesInput{InstanceIds: []string{documented}})
		if err == nil && len(out.StartingInstances) != 1 {
			err = errors.New("it has started nothing")
		}
		started <- err
	}()
	for len(log.lines(t, "msg", "fault")) == 0 { // the call is under way then
		time.Sleep(time.Millisecond)
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Shutdown(patient(t)) }()
	away := answered{}
	for away.status != 503 {
		away = post(t, httpClient(t), srv.EC2(), "Action=RebootInstances"+versioned+"&InstanceId.1=i-0a000000000000002")
	}
	if away.code != "Unavailable" || away.header.Get("X-Amzn-Requestid") == "" {
		t.Errorf("%d %s: %s", away.status, away.code, away.message)
	}
	if err := <-started; err != nil {
		t.Errorf("a call that was under way: %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the shutdown: %v", err)
	}
	if conn, err := net.Dial("tcp", address); err == nil {
		_ = conn.Close()
		t.Error("it still listens")
	}
}

func TestAHalfRequestDoesNotHoldUpTheEnd(t *testing.T) {
	srv := servertest.New(t, servertest.Options{})
	conn, err := net.Dial("tcp", strings.TrimPrefix(srv.EC2(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nAction="); err != nil {
		t.Fatal(err)
	}
	if got := post(t, httpClient(t), srv.EC2(), "Action=DescribeInstances"+versioned); got.status != 200 {
		t.Fatal(got)
	}
	begun := time.Now()
	if err := srv.Shutdown(patient(t)); err != nil || time.Since(begun) > 20*time.Second {
		t.Errorf("it ended after %v: %v", time.Since(begun), err)
	}
}
