package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// patient is the context of a test that waits for conditions: it ends when one of them
// has plainly failed to come.
func patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// etcd runs an etcd outside of the servers and returns where it is.
func etcd(t *testing.T) string {
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

// serve lets processes outside of the test reach a server, and returns its address.
func serve(t *testing.T, srv *servertest.Server) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv.Serve(lis)
	return lis.Addr().String()
}

// name returns what Dial takes for a name that stands for several addresses.
func name(addresses ...string) (target string, opt grpc.DialOption) {
	r := manual.NewBuilderWithScheme("replicas")
	var state resolver.State
	for _, address := range addresses {
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: address}}})
	}
	r.InitialState(state)
	return "replicas:///instanced", grpc.WithResolvers(r)
}

// fleet returns so many stopped instances and their ids.
func fleet(count int) (*instancedv1.CreateInstancesRequest, []string) {
	req := &instancedv1.CreateInstancesRequest{}
	var ids []string
	for i := range count {
		ids = append(ids, fmt.Sprintf("i-%017x", i+1))
		req.Instances = append(req.Instances, &instancedv1.InstanceSpec{InstanceId: ids[i]})
	}
	return req, ids
}

// startAndStop starts an instance and stops it again.
func startAndStop(ctx context.Context, c *client.Client, id string) error {
	if _, err := c.StartAndWait(ctx, &instancedv1.StartInstancesRequest{InstanceIds: []string{id}}); err != nil {
		return fmt.Errorf("start %s: %w", id, err)
	}
	stopping, err := c.Stop(ctx, &instancedv1.StopInstancesRequest{InstanceIds: []string{id}})
	if err != nil {
		return fmt.Errorf("stop %s: %w", id, err)
	}
	_, err = c.Wait(ctx, &instancedv1.WaitInstancesRequest{
		InstanceIds: []string{id}, AfterCursor: stopping.GetCursor(),
		States: []instancedv1.InstanceStateName{instancedv1.InstanceStateName_INSTANCE_STATE_NAME_STOPPED},
	})
	return err
}

// watched is what a watch has seen so far.
type watched struct {
	mu       sync.Mutex
	events   []*instancedv1.Event
	messages []*instancedv1.WatchInstancesResponse
	changed  chan struct{}
}

// watchAll watches until ctx ends, which is its only legal end, and returns when the
// first snapshot is complete.
func watchAll(ctx context.Context, t *testing.T, running *sync.WaitGroup, c *client.Client) *watched {
	t.Helper()
	w := &watched{changed: make(chan struct{}, 1)}
	running.Go(func() {
		for msg, err := range c.Watch(ctx, &instancedv1.WatchInstancesRequest{ProgressInterval: durationpb.New(time.Second)}) {
			if err != nil {
				if ctx.Err() == nil {
					t.Errorf("a watch ended: %v", err)
				}
				return
			}
			w.mu.Lock()
			w.messages = append(w.messages, msg)
			w.events = append(w.events, msg.GetEvents().GetEvents()...)
			w.mu.Unlock()
			select {
			case w.changed <- struct{}{}:
			default:
			}
		}
	})
	w.until(ctx, t, func(msg *instancedv1.WatchInstancesResponse) bool { return msg.GetSnapshot().GetLast() })
	return w
}

// until waits for a message.
func (w *watched) until(ctx context.Context, t *testing.T, enough func(*instancedv1.WatchInstancesResponse) bool) {
	t.Helper()
	for {
		w.mu.Lock()
		found := slices.ContainsFunc(w.messages, enough)
		w.mu.Unlock()
		if found {
			return
		}
		select {
		case <-w.changed:
		case <-ctx.Done():
			t.Fatal("it does not come")
		}
	}
}

// wantHistory waits until the watch has passed the end of the log, and compares what it
// has seen with the recorded history, which it returns.
func (w *watched) wantHistory(ctx context.Context, t *testing.T, c *client.Client, ids []string, after string) []*instancedv1.Event {
	t.Helper()
	history := listHistory(ctx, t, c, ids, after)
	// The process that served the history may be behind the one that serves the watch.
	for history[len(history)-1].GetRevision() < w.lastRevision() {
		history = listHistory(ctx, t, c, ids, after)
	}
	end := history[len(history)-1]
	w.until(ctx, t, func(msg *instancedv1.WatchInstancesResponse) bool {
		return slices.ContainsFunc(msg.GetEvents().GetEvents(), func(e *instancedv1.Event) bool {
			return e.GetRevision() == end.GetRevision() && e.GetIndex() == end.GetIndex()
		})
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	if diff := cmp.Diff(history, w.events, protocmp.Transform(), protocmp.IgnoreFields(&instancedv1.Event{}, "match")); diff != "" {
		t.Error(diff)
	}
	return history
}

func listHistory(ctx context.Context, t *testing.T, c *client.Client, ids []string, after string) (history []*instancedv1.Event) {
	t.Helper()
	for page, err := range c.Events(ctx, &instancedv1.ListEventsRequest{InstanceIds: ids, AfterCursor: after, PageSize: 1000}) {
		if err != nil {
			t.Fatal(err)
		}
		history = append(history, page.GetEvents()...)
	}
	return history
}

// lastRevision returns the revision of the last event that the watch has seen, 0 for none.
func (w *watched) lastRevision() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.events) == 0 {
		return 0
	}
	return w.events[len(w.events)-1].GetRevision()
}

func TestSeveralProcessesBehindOneNameAreUsedAsOne(t *testing.T) {
	t.Parallel()
	endpoints := []string{etcd(t)}
	instances, ids := fleet(8)
	owner := servertest.New(t, servertest.Options{Endpoints: endpoints, Fleet: instances, Speed: 1000})
	follower := servertest.New(t, servertest.Options{Endpoints: endpoints, Speed: 1000})
	target, addresses := name(serve(t, owner), serve(t, follower))
	var sentOn atomic.Int64
	c, err := client.Dial(target, client.Options{
		DialOptions: []grpc.DialOption{addresses},
		OnRetry: func(err error, _ time.Duration) {
			if e, ok := errors.AsType[*client.Error](err); ok && e.Reason == "NOT_OWNER" {
				sentOn.Add(1)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	ctx := patient(t)
	begin, err := c.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}

	watching, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	first, second := watchAll(watching, t, &running, c), watchAll(watching, t, &running, c)

	served := make(map[bool]int)
	for len(served) < 2 {
		info, err := c.Info(ctx)
		if err != nil {
			t.Fatalf("only one process is asked: %v", err)
		}
		served[info.GetOwner().GetIsThisProcess()]++
	}

	everybody := func() {
		var callers sync.WaitGroup
		for _, id := range ids {
			callers.Go(func() {
				for range 5 {
					if err := startAndStop(ctx, c, id); err != nil {
						t.Error(err)
					}
				}
			})
		}
		callers.Wait()
	}
	everybody()
	if sentOn.Load() == 0 {
		t.Error("no command came to the process that is not the owner")
	}
	first.wantHistory(ctx, t, c, ids, begin.GetCursor())
	second.wantHistory(ctx, t, c, ids, begin.GetCursor())

	owner.Close()
	everybody()
	first.wantHistory(ctx, t, c, ids, begin.GetCursor())
	second.wantHistory(ctx, t, c, ids, begin.GetCursor())
}

// TestACommandAtAFollowerFailsAtOnce: to ask the same process again would lead nowhere.
func TestACommandAtAFollowerFailsAtOnce(t *testing.T) {
	t.Parallel()
	endpoints := []string{etcd(t)}
	servertest.New(t, servertest.Options{Endpoints: endpoints})
	const ownerAddress = "bufconn" // where such a server says that it is
	var log bytes.Buffer
	var mu sync.Mutex
	follower := servertest.New(t, servertest.Options{Endpoints: endpoints, Logger: slog.New(slog.NewTextHandler(writer(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return log.Write(p)
	}), nil))})
	address := serve(t, follower)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{address, "localhost:" + port, "dns:///" + address} {
		c, err := client.Dial(target, client.Options{OnRetry: func(err error, _ time.Duration) { t.Errorf("it tries again after %v", err) }})
		if err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		log.Reset()
		mu.Unlock()
		_, err = c.Start(patient(t), &instancedv1.StartInstancesRequest{InstanceIds: []string{"i-1234567890abcdef0"}})
		e, ok := errors.AsType[*client.Error](err)
		if !ok || e.Reason != "NOT_OWNER" || e.OutcomeUnknown || e.Metadata["owner"] != ownerAddress || !strings.Contains(e.Message, ownerAddress) {
			t.Errorf("got %v from %s, want the address of the owner, %s", err, target, ownerAddress)
		}
		mu.Lock()
		if lines := strings.Count(log.String(), "StartInstances"); lines != 1 {
			t.Errorf("%d lines in the log:\n%s", lines, log.String())
		}
		mu.Unlock()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestACommandAmongFollowersEnds: what all of them say twice is not going to change.
func TestACommandAmongFollowersEnds(t *testing.T) {
	t.Parallel()
	endpoints := []string{etcd(t)}
	servertest.New(t, servertest.Options{Endpoints: endpoints})
	var followers []string
	for range 3 {
		followers = append(followers, serve(t, servertest.New(t, servertest.Options{Endpoints: endpoints})))
	}
	target, addresses := name(followers...)
	var tries int
	var waited time.Duration
	c, err := client.Dial(target, client.Options{
		DialOptions: []grpc.DialOption{addresses},
		OnRetry:     func(_ error, delay time.Duration) { tries++; waited += delay },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, err = c.Start(patient(t), &instancedv1.StartInstancesRequest{InstanceIds: []string{"i-1234567890abcdef0"}})
	e, ok := errors.AsType[*client.Error](err)
	if !ok || e.Reason != "NOT_OWNER" || e.OutcomeUnknown || e.Metadata["owner"] != "bufconn" {
		t.Errorf("got %v", err)
	}
	// A second round is the last one, unless one of them was still being connected.
	if tries >= 20 || waited > 5*time.Second {
		t.Errorf("it was tried again %d times, after %v", tries, waited)
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

func TestDialTakesAnyTarget(t *testing.T) {
	srv := servertest.New(t, servertest.Options{})
	address := serve(t, srv)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "socket")
	lis, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv.Serve(lis)
	for _, target := range []string{address, "localhost:" + port, "dns:///" + address, "dns:///localhost:" + port, "passthrough:///" + address, "unix:" + socket} {
		t.Run(target, func(t *testing.T) {
			c, err := client.Dial(target, client.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			if _, err := c.Info(patient(t)); err != nil {
				t.Error(err)
			}
		})
	}
}
