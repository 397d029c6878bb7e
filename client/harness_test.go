package client_test

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// service answers as each test says. What a test does not set is unimplemented.
type service struct {
	instancedv1.UnimplementedInstanceServiceServer

	start    func(context.Context, *instancedv1.StartInstancesRequest) (*instancedv1.StartInstancesResponse, error)
	describe func(context.Context, *instancedv1.DescribeInstancesRequest) (*instancedv1.DescribeInstancesResponse, error)
	wait     func(context.Context, *instancedv1.WaitInstancesRequest) (*instancedv1.WaitInstancesResponse, error)
	watch    func(*instancedv1.WatchInstancesRequest, grpc.ServerStreamingServer[instancedv1.WatchInstancesResponse]) error
}

func (s *service) StartInstances(ctx context.Context, req *instancedv1.StartInstancesRequest) (*instancedv1.StartInstancesResponse, error) {
	return s.start(ctx, req)
}

func (s *service) DescribeInstances(ctx context.Context, req *instancedv1.DescribeInstancesRequest) (*instancedv1.DescribeInstancesResponse, error) {
	return s.describe(ctx, req)
}

func (s *service) WaitInstances(ctx context.Context, req *instancedv1.WaitInstancesRequest) (*instancedv1.WaitInstancesResponse, error) {
	return s.wait(ctx, req)
}

func (s *service) WatchInstances(req *instancedv1.WatchInstancesRequest, stream grpc.ServerStreamingServer[instancedv1.WatchInstancesResponse]) error {
	return s.watch(req, stream)
}

// dial serves s and returns a client of it. Inside of a synctest bubble both end
// with the returned function, which has to be called before the bubble ends.
func dial(t *testing.T, s *service, opts client.Options) (*client.Client, func()) {
	t.Helper()
	return dialUnless(t, func() bool { return false }, s, opts)
}

// dialUnless is dial, of a server that refuses connections as long as it is down and
// breaks its connection when a call ends then.
func dialUnless(t *testing.T, down func() bool, s *service, opts client.Options) (*client.Client, func()) {
	t.Helper()
	lis := bufconn.Listen(1 << 20)
	var open atomic.Value // a net.Conn
	server := grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}), grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		resp, err := handler(ctx, req)
		if down() {
			_ = open.Load().(net.Conn).Close()
		}
		return resp, err
	}))
	instancedv1.RegisterInstanceServiceServer(server, s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(lis)
	}()
	opts.DialOptions = append(opts.DialOptions, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		if down() {
			return nil, errors.New("connection refused")
		}
		conn, err := lis.DialContext(ctx)
		if err == nil {
			open.Store(conn)
		}
		return conn, err
	}))
	c, err := client.Dial("passthrough:///bufconn", opts)
	if err != nil {
		t.Fatal(err)
	}
	return c, func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		server.Stop()
		<-done
	}
}

// failure returns the error of a status with details.
func failure(t *testing.T, code codes.Code, message string, details ...protoadapt.MessageV1) error {
	t.Helper()
	s, err := status.New(code, message).WithDetails(details...)
	if err != nil {
		t.Fatal(err)
	}
	return s.Err()
}

func subscribed(cursor string) *instancedv1.WatchInstancesResponse {
	return &instancedv1.WatchInstancesResponse{Cursor: cursor, Message: &instancedv1.WatchInstancesResponse_Subscribed{
		Subscribed: &instancedv1.Subscribed{LogId: "log", ProgressInterval: durationpb.New(interval)},
	}}
}

func progress(cursor string) *instancedv1.WatchInstancesResponse {
	return &instancedv1.WatchInstancesResponse{Cursor: cursor, Message: &instancedv1.WatchInstancesResponse_Progress{Progress: &instancedv1.Progress{}}}
}

func snapshot(cursor string, first, last bool, ids ...string) *instancedv1.WatchInstancesResponse {
	part := &instancedv1.Snapshot{First: first, Last: last}
	for _, id := range ids {
		part.Instances = append(part.Instances, &instancedv1.Instance{InstanceId: id})
	}
	return &instancedv1.WatchInstancesResponse{Cursor: cursor, Message: &instancedv1.WatchInstancesResponse_Snapshot{Snapshot: part}}
}

// events has one event for each index of a revision.
func events(cursor string, revision uint64, indexes ...uint32) *instancedv1.WatchInstancesResponse {
	list := &instancedv1.Events{}
	for _, index := range indexes {
		list.Events = append(list.Events, &instancedv1.Event{Revision: revision, Index: index})
	}
	return &instancedv1.WatchInstancesResponse{Cursor: cursor, Message: &instancedv1.WatchInstancesResponse_Events{Events: list}}
}
