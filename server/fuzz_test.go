package server_test

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/server/servertest"
)

// FuzzRequests sends requests as they may come from anywhere. Whatever is in them, the
// answer is an answer or a refusal, never a bug.
func FuzzRequests(f *testing.F) {
	srv := servertest.New(f, servertest.Options{Fleet: fleet(3)})
	methods := []string{
		instancedv1.InstanceService_StartInstances_FullMethodName,
		instancedv1.InstanceService_StopInstances_FullMethodName,
		instancedv1.InstanceService_RebootInstances_FullMethodName,
		instancedv1.InstanceService_TerminateInstances_FullMethodName,
		instancedv1.InstanceService_DescribeInstances_FullMethodName,
		instancedv1.InstanceService_WaitInstances_FullMethodName,
		instancedv1.InstanceService_ListEvents_FullMethodName,
		instancedv1.InstanceService_GetServerInfo_FullMethodName,
		instancedv1.InstanceService_WatchInstances_FullMethodName,
		instancedv1.SimulatorService_CreateInstances_FullMethodName,
		instancedv1.SimulatorService_ChangeInstances_FullMethodName,
		instancedv1.SimulatorService_SetFaults_FullMethodName,
	}
	for i, seed := range []proto.Message{
		&instancedv1.StartInstancesRequest{InstanceIds: ids(2), ClientToken: "t", FailureMode: 7},
		&instancedv1.StopInstancesRequest{InstanceIds: []string{""}, Hibernate: true},
		&instancedv1.RebootInstancesRequest{InstanceIds: ids(1), DryRun: true},
		&instancedv1.TerminateInstancesRequest{InstanceIds: ids(1), ClientToken: "t"},
		&instancedv1.DescribeInstancesRequest{Filter: &instancedv1.InstanceFilter{States: []instancedv1.InstanceStateName{9}, Tags: []*instancedv1.TagFilter{nil}}, PageToken: "AAAA"},
		&instancedv1.WaitInstancesRequest{InstanceIds: ids(1), States: []instancedv1.InstanceStateName{running}, Timeout: &durationpb.Duration{Seconds: -1, Nanos: 5}},
		&instancedv1.ListEventsRequest{InstanceIds: ids(1), PageSize: -1},
		&instancedv1.GetServerInfoRequest{},
		&instancedv1.WatchInstancesRequest{AfterCursor: "AQ", ProgressInterval: &durationpb.Duration{Seconds: 1 << 62}},
		&instancedv1.CreateInstancesRequest{Instances: []*instancedv1.InstanceSpec{{Count: -5, State: 99}}},
		&instancedv1.ChangeInstancesRequest{Changes: []*instancedv1.OutsideChange{{InstanceIds: ids(1), Action: 77}}},
		&instancedv1.SetFaultsRequest{Faults: []*instancedv1.Fault{{Kind: 3, Probability: -1}}},
	} {
		body, err := proto.Marshal(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), body)
	}
	f.Fuzz(func(t *testing.T, method uint8, body []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		name := methods[int(method)%len(methods)]
		stream, err := srv.Conn().NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, name, grpc.ForceCodecV2(rawCodec{}))
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.SendMsg(body); err != nil {
			t.Fatal(err)
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		var answer []byte
		err = stream.RecvMsg(&answer)
		if code := status.Code(err); code == codes.Internal && !undecodable(err) || code == codes.Unknown && status.Convert(err).Message() != "EOF" {
			t.Errorf("%s: %v", name, err)
		}
	})
}
