package server_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/conformance"
	"github.com/instanced/instanced/server/servertest"
)

// trouble is a service of the tests whose calls end as they are made to.
type trouble struct {
	unary  func(context.Context) error
	stream func(grpc.ServerStream) error
}

// What it is called.
const (
	troubleUnary  = "/test.Trouble/Unary"
	troubleStream = "/test.Trouble/Stream"
)

func (s trouble) register(r grpc.ServiceRegistrar) {
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Trouble",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: func(srv any, ctx context.Context, dec func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
			in := &instancedv1.GetServerInfoRequest{}
			if err := dec(in); err != nil {
				return nil, err
			}
			return interceptor(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: troubleUnary}, func(ctx context.Context, _ any) (any, error) {
				return &instancedv1.GetServerInfoResponse{}, s.unary(ctx)
			})
		}}},
		Streams: []grpc.StreamDesc{{StreamName: "Stream", ServerStreams: true, Handler: func(_ any, stream grpc.ServerStream) error { return s.stream(stream) }}},
	}, s)
}

// call makes a call, unary or streaming, and returns how it ended.
func callTrouble(ctx context.Context, conn *grpc.ClientConn, method string) error {
	if method == troubleUnary {
		return conn.Invoke(ctx, method, &instancedv1.GetServerInfoRequest{}, &instancedv1.GetServerInfoResponse{})
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		return err
	}
	if err := errors.Join(stream.SendMsg(&instancedv1.GetServerInfoRequest{}), stream.CloseSend()); err != nil {
		return err
	}
	if err := stream.RecvMsg(&instancedv1.GetServerInfoResponse{}); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func TestPanicsAndBugsAreRedactedAndLogged(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func() error{
		"a panic":       func() error { panic("the secret") },
		"a nil pointer": func() error { var s *servertest.Server; s.Close(); return nil },
		"a bug":         func() error { return errors.New("the secret") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log logBuffer
			srv := servertest.New(t, servertest.Options{Logger: log.logger(), Register: trouble{
				unary:  func(context.Context) error { return fail() },
				stream: func(grpc.ServerStream) error { return fail() },
			}.register})
			for _, method := range []string{troubleUnary, troubleStream} {
				err := callTrouble(as(patient(t), "alice", "request-of"+strings.ReplaceAll(method, "/", "-")), srv.Conn(), method)
				wantRefusal(t, err, codes.Internal, "INTERNAL")
				if strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "nil pointer") {
					t.Errorf("the caller is told: %v", err)
				}
				line := lineWith(&log, "request-of"+strings.ReplaceAll(method, "/", "-"))
				if !strings.Contains(line, "level=ERROR") || !strings.Contains(line, "secret") && !strings.Contains(line, "nil pointer") {
					t.Errorf("the log does not have the cause: %s", line)
				}
			}
		})
	}
}

func TestUnaryCallsHaveADeadline(t *testing.T) {
	t.Parallel()
	deadlines := make(chan time.Duration, 2)
	note := func(ctx context.Context) error {
		deadline, ok := ctx.Deadline()
		if !ok {
			deadlines <- 0
			return nil
		}
		deadlines <- time.Until(deadline)
		return nil
	}
	srv := servertest.New(t, servertest.Options{Register: trouble{
		unary:  note,
		stream: func(s grpc.ServerStream) error { return note(s.Context()) },
	}.register})
	if err := callTrouble(t.Context(), srv.Conn(), troubleUnary); err != nil {
		t.Fatal(err)
	}
	if got := <-deadlines; got <= 25*time.Second || got > 30*time.Second {
		t.Errorf("a call without a deadline has %v", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if err := callTrouble(ctx, srv.Conn(), troubleUnary); err != nil {
		t.Fatal(err)
	}
	if got := <-deadlines; got < 4*time.Minute {
		t.Errorf("a call with a deadline of 5 minutes has %v", got)
	}
	if err := callTrouble(t.Context(), srv.Conn(), troubleStream); err != nil {
		t.Fatal(err)
	}
	if got := <-deadlines; got != 0 {
		t.Errorf("a stream has %v", got)
	}
}

func TestAWaitMayTakeItsTimeout(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{})
	resp, err := srv.Instances().WaitInstances(t.Context(), &instancedv1.WaitInstancesRequest{
		InstanceIds: []string{example},
		States:      []instancedv1.InstanceStateName{running},
		Timeout:     durationpb.New(100 * time.Millisecond),
	})
	if err != nil || resp.GetResults()[0].GetOutcome() != timedOut {
		t.Errorf("got %v, %v", resp, err)
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	var log logBuffer
	srv := servertest.New(t, servertest.Options{Logger: log.logger()})
	health := grpc_health_v1.NewHealthClient(srv.Conn())
	ctx := patient(t)
	for _, service := range []string{"", "instanced.v1.InstanceService", "instanced.v1.SimulatorService"} {
		stream, err := health.Watch(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
		if err != nil {
			t.Fatal(err)
		}
		for {
			resp, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if resp.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING {
				break
			}
		}
	}
	if line := lineWith(&log, "grpc.health"); line != "" {
		t.Errorf("a probe is logged: %s", line)
	}
}

func TestShutdownEndsEverythingThatLasts(t *testing.T) {
	t.Parallel()
	inHandler, goOn := make(chan struct{}), make(chan struct{})
	srv := servertest.New(t, servertest.Options{Register: trouble{unary: func(context.Context) error {
		close(inHandler)
		<-goOn
		return nil
	}}.register})
	ctx := patient(t)

	probe, err := grpc_health_v1.NewHealthClient(srv.Conn()).Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := probe.Recv(); err != nil {
		t.Fatal(err)
	}
	reflecting, err := reflectionv1.NewServerReflectionClient(srv.Conn()).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	reflected(t, reflecting, "instanced.v1.InstanceService")
	watching := watch(t, srv, &instancedv1.WatchInstancesRequest{})
	snapshot := until(t, watching, conformance.SnapshotSeen)

	// The request of the wait is on its way before the call below begins, whose handler tells
	// that the server has read what came before it.
	waiting, err := srv.Conn().NewStream(ctx, &grpc.StreamDesc{}, instancedv1.InstanceService_WaitInstances_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(waiting.SendMsg(&instancedv1.WaitInstancesRequest{
		InstanceIds: []string{example},
		States:      []instancedv1.InstanceStateName{running},
		AfterCursor: snapshot.Cursor(),
	}), waiting.CloseSend()); err != nil {
		t.Fatal(err)
	}
	callEnd := make(chan error, 1)
	go func() { callEnd <- callTrouble(ctx, srv.Conn(), troubleUnary) }()
	<-inHandler

	down := make(chan error, 1)
	go func() { down <- srv.Shutdown(ctx) }()
	if err := waiting.RecvMsg(&instancedv1.WaitInstancesResponse{}); err == nil {
		t.Error("the wait ended well")
	} else {
		wantRefusal(t, err, codes.Unavailable, "DRAINING")
	}
	if len(waiting.Trailer().Get("grpc-retry-pushback-ms")) != 1 {
		t.Errorf("the trailer of the wait is %v", waiting.Trailer())
	}
	c, err := watching.End(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := conformance.Goodbye(c, instancedv1.GoodbyeReason_GOODBYE_REASON_DRAIN); err != nil {
		t.Error(err)
	}
	for err = nil; err == nil; {
		_, err = probe.Recv()
	}
	wantCode(t, err, codes.Unavailable)
	_, err = reflecting.Recv()
	wantCode(t, err, codes.Unavailable)

	close(goOn)
	if err := <-callEnd; err != nil {
		t.Errorf("the call that was under way: %v", err)
	}
	if err := <-down; err != nil {
		t.Errorf("the shutdown: %v", err)
	}
}

func TestShutdownHasADeadline(t *testing.T) {
	t.Parallel()
	inHandler := make(chan struct{})
	srv := servertest.New(t, servertest.Options{Register: trouble{unary: func(ctx context.Context) error {
		close(inHandler)
		<-ctx.Done()
		return ctx.Err()
	}}.register})
	callEnd := make(chan error, 1)
	go func() { callEnd <- callTrouble(patient(t), srv.Conn(), troubleUnary) }()
	<-inHandler
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := srv.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the shutdown: %v", err)
	}
	wantCode(t, <-callEnd, codes.Unavailable)
}

func TestReflectionResolvesTheDetailsOfErrors(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{})
	v1, err := reflectionv1.NewServerReflectionClient(srv.Conn()).ServerReflectionInfo(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, symbol := range []string{
		"instanced.v1.InstanceService", "instanced.v1.SimulatorService", "grpc.health.v1.Health",
		"google.rpc.ErrorInfo", "google.rpc.BadRequest", "google.rpc.RetryInfo",
	} {
		reflected(t, v1, symbol)
	}
}

// Older tools speak v1alpha only. Its messages are v1's under another name.
func TestReflectionV1Alpha(t *testing.T) {
	t.Parallel()
	srv := servertest.New(t, servertest.Options{})
	stream, err := srv.Conn().NewStream(patient(t), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true},
		"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
	if err != nil {
		t.Fatal(err)
	}
	reflected(t, &grpc.GenericClientStream[reflectionv1.ServerReflectionRequest, reflectionv1.ServerReflectionResponse]{ClientStream: stream}, "google.rpc.ErrorInfo")
}

// reflected asks for the file of a symbol.
func reflected(t *testing.T, stream grpc.BidiStreamingClient[reflectionv1.ServerReflectionRequest, reflectionv1.ServerReflectionResponse], symbol string) {
	t.Helper()
	if err := stream.Send(&reflectionv1.ServerReflectionRequest{
		MessageRequest: &reflectionv1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: symbol},
	}); err != nil {
		t.Fatal(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	files := resp.GetFileDescriptorResponse().GetFileDescriptorProto()
	if len(files) == 0 {
		t.Errorf("%s: %v", symbol, resp.GetErrorResponse())
		return
	}
	if err := proto.Unmarshal(files[0], &descriptorpb.FileDescriptorProto{}); err != nil {
		t.Errorf("%s: %v", symbol, err)
	}
}

func TestAServerThatIsShutDownBeforeItServesEndsWell(t *testing.T) {
	srv := servertest.New(t, servertest.Options{})
	if err := srv.Shutdown(patient(t)); err != nil {
		t.Fatal(err)
	}
	srv.Serve(bufconn.Listen(1)) // which fails the test if it ends with an error
}
