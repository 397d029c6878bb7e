package server

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/admission"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

// service implements InstanceService: it converts requests, calls the service layer, and
// converts responses.
type service struct {
	// A missing method does not compile.
	instancedv1.UnsafeInstanceServiceServer

	lifecycle *lifecycle.Service
	drain     *drain
	limits    admission.Limits
	memory    *memoryReport
	watches   *watches
	version   string
	backend   string
}

func (s *service) StartInstances(ctx context.Context, req *instancedv1.StartInstancesRequest) (*instancedv1.StartInstancesResponse, error) {
	resp, err := s.lifecycle.Command(ctx, callerOf(ctx), startRequest(req))
	if err != nil {
		return nil, err
	}
	return &instancedv1.StartInstancesResponse{
		StartingInstances: stateChangeMessages(resp.Changes),
		FailedInstances:   failureMessages(resp.Failures),
		Cursor:            resp.Cursor,
		EndCursor:         resp.EndCursor,
	}, nil
}

func (s *service) StopInstances(ctx context.Context, req *instancedv1.StopInstancesRequest) (*instancedv1.StopInstancesResponse, error) {
	resp, err := s.lifecycle.Command(ctx, callerOf(ctx), stopRequest(req))
	if err != nil {
		return nil, err
	}
	return &instancedv1.StopInstancesResponse{
		StoppingInstances: stateChangeMessages(resp.Changes),
		FailedInstances:   failureMessages(resp.Failures),
		Cursor:            resp.Cursor,
		EndCursor:         resp.EndCursor,
	}, nil
}

func (s *service) RebootInstances(ctx context.Context, req *instancedv1.RebootInstancesRequest) (*instancedv1.RebootInstancesResponse, error) {
	resp, err := s.lifecycle.Command(ctx, callerOf(ctx), rebootRequest(req))
	if err != nil {
		return nil, err
	}
	return &instancedv1.RebootInstancesResponse{
		RebootingInstances: stateChangeMessages(resp.Changes),
		FailedInstances:    failureMessages(resp.Failures),
		Cursor:             resp.Cursor,
		EndCursor:          resp.EndCursor,
	}, nil
}

func (s *service) TerminateInstances(ctx context.Context, req *instancedv1.TerminateInstancesRequest) (*instancedv1.TerminateInstancesResponse, error) {
	resp, err := s.lifecycle.Command(ctx, callerOf(ctx), terminateRequest(req))
	if err != nil {
		return nil, err
	}
	return &instancedv1.TerminateInstancesResponse{
		TerminatingInstances: stateChangeMessages(resp.Changes),
		FailedInstances:      failureMessages(resp.Failures),
		Cursor:               resp.Cursor,
		EndCursor:            resp.EndCursor,
	}, nil
}

func (s *service) DescribeInstances(ctx context.Context, req *instancedv1.DescribeInstancesRequest) (*instancedv1.DescribeInstancesResponse, error) {
	resp, err := s.lifecycle.Describe(ctx, callerOf(ctx), describeRequest(req))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	instances := make([]*instancedv1.Instance, len(resp.Instances))
	for i, inst := range resp.Instances {
		instances[i] = instanceNow(inst, now)
	}
	return &instancedv1.DescribeInstancesResponse{
		Instances:      instances,
		NextPageToken:  resp.NextPageToken,
		Cursor:         resp.Cursor,
		LastReconciled: timestamp(resp.LastReconciled),
	}, nil
}

func (s *service) WaitInstances(ctx context.Context, req *instancedv1.WaitInstancesRequest) (*instancedv1.WaitInstancesResponse, error) {
	resp, err := s.lifecycle.Wait(ctx, callerOf(ctx), waitRequest(req))
	if err != nil {
		return nil, err
	}
	return &instancedv1.WaitInstancesResponse{
		Results: waitResultMessages(resp.Results, time.Now()),
		Cursor:  resp.Cursor,
	}, nil
}

func (s *service) WatchInstances(req *instancedv1.WatchInstancesRequest, stream instancedv1.InstanceService_WatchInstancesServer) error {
	out, err := s.subscribe(req, stream)
	if err != nil {
		return err
	}
	defer out.delivery.end()
	err = out.run(stream.Context())
	reason, interrupted := s.drain.interruption(stream.Context(), err)
	if interrupted == nil {
		return err
	}
	if err := out.sendGoodbye(reason, interrupted.RetryAfter); err != nil {
		return err
	}
	return interrupted
}

// subscribe is a function of its own to keep the stack of a subscriber small.
func (s *service) subscribe(req *instancedv1.WatchInstancesRequest, stream instancedv1.InstanceService_WatchInstancesServer) (*watchStream, error) {
	ctx := stream.Context()
	watch, err := s.lifecycle.Watch(ctx, callerOf(ctx), watchRequest(req))
	if err != nil {
		return nil, err
	}
	return &watchStream{
		Watch: watch, stream: stream, lifecycle: s.lifecycle,
		delivery: s.watches.begin(callerOf(ctx).Principal, watch.Revision()),
	}, nil
}

func (s *service) ListEvents(ctx context.Context, req *instancedv1.ListEventsRequest) (*instancedv1.ListEventsResponse, error) {
	resp, err := s.lifecycle.Events(ctx, callerOf(ctx), eventsRequest(req))
	if err != nil {
		return nil, err
	}
	return &instancedv1.ListEventsResponse{
		Events:        eventMessages(resp.Events),
		NextPageToken: resp.NextPageToken,
		Cursor:        resp.Cursor,
	}, nil
}

func (s *service) GetServerInfo(context.Context, *instancedv1.GetServerInfoRequest) (*instancedv1.GetServerInfoResponse, error) {
	info := s.lifecycle.Info()
	return &instancedv1.GetServerInfoResponse{
		Version: s.version,
		Backend: s.backend,
		LogId:   info.LogID,
		Limits: &instancedv1.Limits{
			MaxInstanceIds:       lifecycle.MaxInstanceIDs,
			MaxFilterValues:      lifecycle.MaxFilterValues,
			MaxPageSize:          lifecycle.MaxPageSize,
			MaxClientTokenLength: lifecycle.MaxClientTokenLength,
			ClientTokenLifetime:  durationpb.New(info.TokenLifetime),
			Retention:            durationpb.New(info.Retention),
			JournalMaxBytes:      info.JournalMaxBytes,
			MaxWait:              durationpb.New(lifecycle.MaxWait),
			MaxRequestBytes:      maxRequestBytes,
			MaxRequests:          int32(s.limits.Requests),
			MaxStreams:           int32(s.limits.Streams),
			MaxConnections:       int32(s.limits.Connections),
		},
		Owner:          &instancedv1.Owner{Address: info.OwnerAddress, IsThisProcess: info.IsOwner},
		LastReconciled: timestamp(info.LastReconciled),
		Cursor:         info.Cursor,
		OldestCursor:   info.OldestCursor,
		JournalBytes:   info.JournalBytes,
		InstanceCount:  int64(info.InstanceCount),
		Impairment:     impairmentMessage(s.lifecycle.Impairment()),
		TokenBuckets:   bucketMessages(info.Buckets),
		Memory:         s.memory.use(),
	}, nil
}

func bucketMessages(buckets []instance.TokenBucket) []*instancedv1.TokenBucket {
	list := make([]*instancedv1.TokenBucket, len(buckets))
	for i, b := range buckets {
		list[i] = &instancedv1.TokenBucket{
			Name: b.Name, Level: b.Level, Capacity: b.Capacity, RefillPerSecond: b.Refill, WaitingInstances: int64(b.Waiting),
		}
	}
	return list
}
