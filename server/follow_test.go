package server_test

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
	"github.com/instanced/instanced/server/servertest"
)

func TestWatchesThatResumeByThemselvesKeepAllPromisesAcrossRestarts(t *testing.T) {
	t.Parallel()
	dir, address := t.TempDir(), "127.0.0.1:0"
	serve := func(fleet *instancedv1.CreateInstancesRequest) *servertest.Server {
		srv := servertest.New(t, servertest.Options{DataDir: dir, Fleet: fleet, Seed: 7, Speed: 2000})
		lis, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		address = lis.Addr().String()
		srv.Serve(lis)
		return srv
	}
	srv := serve(fleet(12))
	c, err := client.Dial(address, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // nothing is lost with it
	ctx, leave := context.WithCancel(patient(t))
	follow := func(filter *instancedv1.InstanceFilter) *conformance.Recorder {
		req := &instancedv1.WatchInstancesRequest{Filter: filter, ProgressInterval: durationpb.New(time.Second)}
		r := conformance.Follow(req, c.Watch(ctx, req))
		until(t, r, conformance.SnapshotSeen)
		return r
	}
	all := follow(nil)
	subscribers := map[string]*conformance.Recorder{"the reference": all}
	for name, filter := range filters() {
		subscribers[name] = follow(filter)
	}
	const restarts = 2
	for n := range restarts {
		busy(t, srv, ids(12), 10)
		srv.Close()
		srv = serve(nil)
		for _, r := range subscribers {
			until(t, r, func(c *conformance.Connection) bool { return len(c.Streams()) > n+1 })
		}
	}
	busy(t, srv, ids(12), 10)
	log := logUpTo(t, all, settled(t, srv, ids(12)))
	if err := log.Agrees(history(t, srv, ids(12), log.Begin())); err != nil {
		t.Error(err)
	}
	for name, r := range subscribers {
		seen := passed(t, r, log)
		if err := conformance.All(log, seen); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	leave()
	for name, r := range subscribers {
		if _, err := r.End(patient(t)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
