package server_test

import (
	"context"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

func TestAPrincipalBeyondItsShareOfConnectionsIsRefused(t *testing.T) {
	t.Parallel()
	const connections = 20
	srv := servertest.New(t, servertest.Options{MaxConnections: connections})
	subscribe := func(principal string) error {
		stream, err := instancedv1.NewInstanceServiceClient(srv.Dial()).WatchInstances(as(patient(t), principal, "r"), &instancedv1.WatchInstancesRequest{FromNow: true})
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	}
	admitted := 0
	for range connections {
		err := subscribe("greedy")
		if err == nil {
			admitted++
			continue
		}
		wantRefusal(t, err, codes.ResourceExhausted, "TOO_MANY_CONNECTIONS")
	}
	if admitted != connections/2 {
		t.Errorf("a principal has calls on %d connections of %d, want half", admitted, connections)
	}
	if err := subscribe("alice"); err != nil {
		t.Errorf("another principal: %v", err)
	}
}

func TestIdleConnectionsOfOnePrincipalDoNotCloseThoseOfOthers(t *testing.T) {
	t.Parallel()
	const connections = 20
	srv := servertest.New(t, servertest.Options{MaxConnections: connections})
	// A stream that needs a connection fails when that is closed; calls would connect again.
	alice := srv.Dial()
	ask := func(ctx context.Context, conn instancedv1.InstanceServiceClient) {
		t.Helper()
		if _, err := conn.GetServerInfo(ctx, &instancedv1.GetServerInfoRequest{}); err != nil {
			t.Fatal(status.Convert(err))
		}
	}
	ask(as(patient(t), "alice", "r"), instancedv1.NewInstanceServiceClient(alice))
	for n := range 3 * connections {
		ask(as(patient(t), "greedy", fmt.Sprint(n)), instancedv1.NewInstanceServiceClient(srv.Dial()))
	}
	if s := alice.GetState(); s.String() != "READY" {
		t.Errorf("another principal's connection, which was idle for longest, is %v", s)
	}
}
