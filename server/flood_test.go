package server_test

import (
	"context"
	"errors"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
	"github.com/instanced/instanced/server"
	"github.com/instanced/instanced/server/servertest"
)

const (
	tooManyRequests = "TOO_MANY_REQUESTS"
	tooManyStreams  = "TOO_MANY_STREAMS"
)

// stuck is a method whose calls stay under way until they are released.
type stuck struct {
	entered  atomic.Int64
	released chan struct{}
}

func newStuck() *stuck { return &stuck{released: make(chan struct{})} }

func (s *stuck) register(r grpc.ServiceRegistrar) {
	trouble{unary: func(ctx context.Context) error {
		s.entered.Add(1)
		select {
		case <-s.released:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}.register(r)
}

// wantShed checks that a call was refused for lack of a place, with a delay in both
// forms.
func wantShed(t testing.TB, err error, trailer metadata.MD, reason string) {
	t.Helper()
	wantRefusal(t, err, codes.ResourceExhausted, reason)
	var delay time.Duration
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			delay = info.GetRetryDelay().AsDuration()
		}
	}
	if delay <= 0 || delay > 5*time.Second || len(trailer.Get("grpc-retry-pushback-ms")) != 1 {
		t.Errorf("the caller is told to come back after %v, and by the trailer %v", delay, trailer)
	}
}

func TestACallerThatFloodsIsShedAndOthersAreNot(t *testing.T) {
	t.Parallel()
	for name, principals := range map[string][]string{
		"one principal":                   {"flood"},
		"a connection of many principals": {"a", "b", "c", "d", "e", "f", "g"},
		"callers that do not say who":     {""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const places, calls = 32, 100
			held := newStuck()
			srv := servertest.New(t, servertest.Options{MaxRequests: places, Register: held.register})
			conn := srv.Dial()
			var (
				flood      sync.WaitGroup
				shed, done atomic.Int64
			)
			for n := range calls {
				ctx := patient(t)
				if p := principals[n%len(principals)]; p != "" {
					ctx = as(ctx, p, "r")
				}
				flood.Go(func() {
					var trailer metadata.MD
					err := conn.Invoke(ctx, troubleUnary, &instancedv1.GetServerInfoRequest{}, &instancedv1.GetServerInfoResponse{}, grpc.Trailer(&trailer))
					if err == nil {
						done.Add(1)
						return
					}
					shed.Add(1)
					wantShed(t, err, trailer, tooManyRequests)
				})
			}
			eventually(t, "half of the places are taken and the rest is refused", func() bool {
				return held.entered.Load() == places/2 && shed.Load() == calls-places/2
			})
			for range 50 {
				if _, err := srv.Instances().GetServerInfo(as(patient(t), "alice", "r"), &instancedv1.GetServerInfoRequest{}); err != nil {
					t.Fatalf("another caller: %v", err)
				}
			}
			close(held.released)
			flood.Wait()
			if done.Load() != places/2 {
				t.Errorf("%d calls of the flood were answered, want %d", done.Load(), places/2)
			}
			if _, err := srv.Instances().GetServerInfo(as(patient(t), "flood", "r"), &instancedv1.GetServerInfoRequest{}); err != nil {
				t.Errorf("the caller, when the flood is over: %v", err)
			}
		})
	}
}

func TestAPrincipalIsTheSameCallerOnManyConnections(t *testing.T) {
	t.Parallel()
	const places = 32
	held := newStuck()
	srv := servertest.New(t, servertest.Options{MaxRequests: places, Register: held.register})
	var flood sync.WaitGroup
	var shed atomic.Int64
	for range 10 {
		conn := srv.Dial()
		for range 4 {
			flood.Go(func() {
				if err := callTrouble(as(patient(t), "flood", "r"), conn, troubleUnary); err != nil {
					shed.Add(1)
					wantRefusal(t, err, codes.ResourceExhausted, tooManyRequests)
				}
			})
		}
	}
	eventually(t, "half of the places are taken", func() bool { return held.entered.Load() == places/2 && shed.Load() == 40-places/2 })
	close(held.released)
	flood.Wait()
}

// TestARequestThatNeverComesTakesAPlace has a client begin calls and send nothing: it is
// refused before it has sent anything, and what it holds ends with its connection.
func TestARequestThatNeverComesTakesAPlace(t *testing.T) {
	t.Parallel()
	const places, calls = 32, 60
	srv := servertest.New(t, servertest.Options{MaxRequests: places})
	mute := srv.Dial()
	ctx, hangUp := context.WithCancel(patient(t))
	defer hangUp()
	var shed atomic.Int64
	var begun sync.WaitGroup
	for _, method := range []string{instancedv1.InstanceService_StartInstances_FullMethodName, instancedv1.InstanceService_WatchInstances_FullMethodName} {
		for range calls / 2 {
			stream, err := mute.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
			if err != nil {
				t.Fatal(err)
			}
			begun.Go(func() {
				if err := stream.RecvMsg(&instancedv1.GetServerInfoResponse{}); status.Code(err) == codes.ResourceExhausted {
					shed.Add(1)
				}
			})
		}
	}
	eventually(t, "what is beyond half of the places is refused", func() bool { return shed.Load() == calls-places/2 })
	if _, err := srv.Instances().GetServerInfo(patient(t), &instancedv1.GetServerInfoRequest{}); err != nil {
		t.Errorf("another caller: %v", err)
	}
	hangUp()
	begun.Wait()
	eventually(t, "all places are free again", func() bool {
		stream, err := mute.NewStream(patient(t), &grpc.StreamDesc{ServerStreams: true}, instancedv1.InstanceService_GetServerInfo_FullMethodName)
		if err != nil {
			t.Fatal(err)
		}
		_ = errors.Join(stream.SendMsg(&instancedv1.GetServerInfoRequest{}), stream.CloseSend())
		return stream.RecvMsg(&instancedv1.GetServerInfoResponse{}) == nil
	})
}

// TestARequestThatDoesNotComeInTimeLosesItsPlace has many connections take all places with
// calls of which the request never comes.
func TestARequestThatDoesNotComeInTimeLosesItsPlace(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{MaxRequests: 8, Deadline: time.Second})
	var muted sync.WaitGroup
	for range 8 {
		conn := srv.Dial()
		for _, method := range []string{
			instancedv1.InstanceService_StartInstances_FullMethodName,
			instancedv1.InstanceService_WatchInstances_FullMethodName,
			reflectionv1.ServerReflection_ServerReflectionInfo_FullMethodName,
		} {
			stream, err := conn.NewStream(patient(t), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
			if err != nil {
				t.Fatal(err)
			}
			muted.Go(func() {
				err := stream.RecvMsg(&instancedv1.GetServerInfoResponse{})
				// ResourceExhausted where there was no place for it.
				switch code := status.Code(err); code {
				case codes.ResourceExhausted, codes.Canceled, codes.Unavailable:
				default:
					t.Errorf("%s: a call without a request ended with %v", method, err)
				}
			})
		}
	}
	muted.Wait()
	if _, err := srv.Instances().GetServerInfo(patient(t), &instancedv1.GetServerInfoRequest{}); err != nil {
		t.Errorf("another caller, after all: %v", err)
	}
}

func TestSubscriptionsAndWaitsHavePlacesOfTheirOwn(t *testing.T) {
	t.Parallel()
	const places, calls = 8, 20
	srv := servertest.New(t, servertest.Options{MaxStreams: places})
	other := watch(t, srv, &instancedv1.WatchInstancesRequest{FromNow: true})
	ctx, hangUp := context.WithCancel(patient(t))
	defer hangUp()
	flooder := instancedv1.NewInstanceServiceClient(srv.Dial())
	var waits sync.WaitGroup
	var shed atomic.Int64
	for range calls {
		waits.Go(func() {
			var trailer metadata.MD
			_, err := flooder.WaitInstances(ctx, &instancedv1.WaitInstancesRequest{
				InstanceIds: []string{example}, States: []instancedv1.InstanceStateName{running},
			}, grpc.Trailer(&trailer))
			if status.Code(err) == codes.ResourceExhausted {
				shed.Add(1)
				wantShed(t, err, trailer, tooManyStreams)
			}
		})
	}
	// One place is that of the other's subscription: of those left, the waits get half.
	const got = places / 2
	eventually(t, "half of the places are taken and the rest is refused", func() bool { return shed.Load() == calls-got })
	stream, err := flooder.WatchInstances(patient(t), &instancedv1.WatchInstancesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	wantShed(t, err, stream.Trailer(), tooManyStreams)
	if _, err := flooder.GetServerInfo(patient(t), &instancedv1.GetServerInfoRequest{}); err != nil {
		t.Errorf("a call that is answered at once: %v", err)
	}
	start(t, srv, example)
	until(t, other, func(c *conformance.Connection) bool { return len(c.Events()) > 0 })
	waits.Wait()
	if shed.Load() != calls-got {
		t.Errorf("%d waits were refused, want %d", shed.Load(), calls-got)
	}
}

// TestOneClientWithTooManyStreams has one client ask for more streams than one may have,
// 10,000 of them in a soak: it is told so, at once and for each, and others have theirs.
func TestOneClientWithTooManyStreams(t *testing.T) {
	// Not in parallel with others: it looks at the memory of the process.
	places, streams := 1024, 2000
	if soaking() {
		places, streams = server.DefaultMaxStreams, 10_000
	}
	srv := servertest.New(t, servertest.Options{MaxStreams: places})
	client := instancedv1.NewInstanceServiceClient(srv.Dial())
	ctx, hangUp := context.WithCancel(patient(t))
	defer hangUp()
	before := memoryInUse()
	opened := make([]instancedv1.InstanceService_WatchInstancesClient, streams)
	for i := range opened {
		var err error
		if opened[i], err = client.WatchInstances(ctx, &instancedv1.WatchInstancesRequest{FromNow: true}); err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
	}
	established := 0
	for i, stream := range opened {
		_, err := stream.Recv()
		if err == nil {
			established++
			continue
		}
		opened[i] = nil
		wantShed(t, err, stream.Trailer(), tooManyStreams)
	}
	if established != places/2 {
		t.Errorf("%d streams are established, want %d", established, places/2)
	}
	// Both ends of a stream, and what they share; some 32 KB each in large numbers.
	const each, shared = 48 << 10, 32 << 20
	took := memoryInUse() - before
	t.Logf("%d idle subscriptions take %d MiB, both ends: %d bytes each", established, took>>20, took/established)
	if took > established*each+shared {
		t.Errorf("an idle subscription takes %d bytes, want at most %d", (took-shared)/established, each)
	}
	other := watch(t, srv, &instancedv1.WatchInstancesRequest{FromNow: true})
	start(t, srv, example)
	until(t, other, func(c *conformance.Connection) bool { return len(c.Events()) > 0 })
	hangUp()
}

// memoryInUse returns what the heap and the stacks hold that is not garbage, in bytes.
func memoryInUse() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}

// soaking reports whether there is time for the real numbers.
func soaking() bool { return os.Getenv("INSTANCED_SOAK") != "" }

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for ctx := patient(t); !holds(); {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("it never comes to it that %s", what)
		}
	}
}

func TestTheClientLibraryComesBackToACallThatWasShed(t *testing.T) {
	t.Parallel()
	held := newStuck()
	srv := servertest.New(t, servertest.Options{MaxRequests: 2, Register: held.register})
	conn := srv.Dial()
	var holding sync.WaitGroup
	holding.Go(func() { _ = callTrouble(patient(t), conn, troubleUnary) })
	eventually(t, "the caller has its place", func() bool { return held.entered.Load() == 1 })
	retried := 0
	library := client.New(conn, client.Options{OnRetry: func(cause error, delay time.Duration) {
		if e, ok := errors.AsType[*client.Error](cause); !ok || e.Reason != tooManyRequests || delay < e.RetryDelay || e.RetryDelay == 0 {
			t.Errorf("it tries again after %v because of %v", delay, cause)
		}
		if retried++; retried == 1 {
			close(held.released)
		}
	}})
	if _, err := library.Start(patient(t), &instancedv1.StartInstancesRequest{InstanceIds: []string{example}}); err != nil {
		t.Error(err)
	}
	if retried == 0 {
		t.Error("the call was not shed")
	}
	holding.Wait()
}
