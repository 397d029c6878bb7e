package servertest_test

import (
	"net"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTheBuiltinFleetIsThere(t *testing.T) {
	srv := servertest.New(t, servertest.Options{})
	resp, err := srv.Instances().DescribeInstances(t.Context(), &instancedv1.DescribeInstancesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.GetInstances()) < 12 {
		t.Errorf("%d instances", len(resp.GetInstances()))
	}
}

func TestAServerGoesOnWhereTheOneBeforeEnded(t *testing.T) {
	dir := t.TempDir()
	first := servertest.New(t, servertest.Options{DataDir: dir, Fleet: &instancedv1.CreateInstancesRequest{}})
	created, err := first.Simulator().CreateInstances(t.Context(), &instancedv1.CreateInstancesRequest{
		Instances: []*instancedv1.InstanceSpec{{Count: 3}},
	})
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	second := servertest.New(t, servertest.Options{DataDir: dir})
	resp, err := second.Instances().DescribeInstances(t.Context(), &instancedv1.DescribeInstancesRequest{MinCursor: created.GetCursor()})
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.GetInstances()) != 3 {
		t.Errorf("%d instances, want those that were created before", len(resp.GetInstances()))
	}
}

func TestAFurtherListener(t *testing.T) {
	srv := servertest.New(t, servertest.Options{})
	socket := filepath.Join(t.TempDir(), "socket")
	lis, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv.Serve(lis)
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	info, err := instancedv1.NewInstanceServiceClient(conn).GetServerInfo(t.Context(), &instancedv1.GetServerInfoRequest{})
	if err != nil || info.GetBackend() != "simulator" {
		t.Errorf("got %v, %v", info, err)
	}
}
