package server_test

import (
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
	"github.com/instanced/instanced/server/servertest"
)

// etcd runs an etcd outside of the servers and returns where it is.
func etcd(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	config := embed.NewConfig()
	config.Dir = filepath.Join(dir, "etcd")
	config.LogLevel = "panic"
	clients := url.URL{Scheme: "unix", Path: filepath.Join(dir, "client")}
	peers := url.URL{Scheme: "unix", Path: filepath.Join(dir, "peer")}
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{clients}, []url.URL{clients}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{peers}, []url.URL{peers}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	config.TickMs, config.ElectionMs = 10, 100
	server, err := embed.StartEtcd(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	select {
	case <-server.Server.ReadyNotify():
	case <-patient(t).Done():
		t.Fatal("etcd does not become ready")
	}
	return clients.String()
}

func TestReadYourStartOnAnotherProcess(t *testing.T) {
	t.Parallel()
	endpoints := []string{etcd(t)}
	owner := servertest.New(t, servertest.Options{Endpoints: endpoints, Fleet: fleet(20), Speed: 2000})
	follower := servertest.New(t, servertest.Options{Endpoints: endpoints})
	all := reference(t, owner)
	there := watch(t, follower, &instancedv1.WatchInstancesRequest{AfterCursor: head(t, owner), ProgressInterval: durationpb.New(time.Second)})
	for n := range 20 {
		begun, err := owner.Instances().StartInstances(as(patient(t), "alice", id(n)), &instancedv1.StartInstancesRequest{InstanceIds: []string{id(n)}})
		if err != nil {
			t.Fatal(err)
		}
		c := until(t, watch(t, follower, &instancedv1.WatchInstancesRequest{AfterCursor: begun.GetCursor()}), func(c *conformance.Connection) bool {
			return hasCursor(c, begun.GetEndCursor())
		})
		if err := conformance.ReadYourStart(c, begun, id(n)); err != nil {
			t.Error(err)
		}
		described, err := follower.Instances().DescribeInstances(patient(t), &instancedv1.DescribeInstancesRequest{
			Filter:    &instancedv1.InstanceFilter{InstanceIds: []string{id(n)}},
			MinCursor: begun.GetEndCursor(),
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := described.GetInstances()[0].GetState().GetName(); got == stopped {
			t.Errorf("%s is still stopped elsewhere", id(n))
		}
	}
	log := logUpTo(t, all, settled(t, owner, ids(20)))
	if err := conformance.All(log, passed(t, there, log)); err != nil {
		t.Error(err)
	}

	_, err := follower.Instances().StartInstances(patient(t), &instancedv1.StartInstancesRequest{InstanceIds: ids(1)})
	wantRefusal(t, err, codes.Unavailable, "NOT_OWNER")
	_, err = follower.Simulator().ChangeInstances(patient(t), &instancedv1.ChangeInstancesRequest{Changes: []*instancedv1.OutsideChange{{
		InstanceIds: ids(1), Action: instancedv1.OutsideAction_OUTSIDE_ACTION_STOP,
	}}})
	wantRefusal(t, err, codes.Unavailable, "NOT_OWNER")
	if info, err := follower.Instances().GetServerInfo(patient(t), &instancedv1.GetServerInfoRequest{}); err != nil || info.GetOwner().GetIsThisProcess() || info.GetOwner().GetAddress() == "" {
		t.Errorf("the follower says of the owner: %v, %v", info.GetOwner(), err)
	}
}
