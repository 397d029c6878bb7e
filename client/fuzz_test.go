package client_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/instanced/instanced/client"
	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// refusing is a connection on which every call fails with a status and a trailer, as far
// as the library sees.
type refusing struct {
	grpc.ClientConnInterface
	status  *status.Status
	trailer metadata.MD
}

func (r refusing) Invoke(_ context.Context, _ string, _, _ any, opts ...grpc.CallOption) error {
	for _, opt := range opts {
		if t, ok := opt.(grpc.TrailerCallOption); ok {
			*t.TrailerAddr = r.trailer
		}
	}
	return r.status.Err()
}

// FuzzError takes errors apart, whatever a server, or what lies before it, has put into
// them.
func FuzzError(f *testing.F) {
	seed := func(code codes.Code, trailer string, details ...proto.Message) {
		s := &statuspb.Status{Code: int32(code), Message: "message"}
		for _, d := range details {
			packed, err := anypb.New(d)
			if err != nil {
				f.Fatal(err)
			}
			s.Details = append(s.Details, packed)
		}
		raw, err := proto.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, trailer)
	}
	seed(codes.FailedPrecondition, "", &errdetails.ErrorInfo{
		Domain: "ec2.amazonaws.com", Reason: "INCORRECT_INSTANCE_STATE",
		Metadata: map[string]string{"ec2_error_code": "IncorrectInstanceState", "instance_ids": "i-1,,i-2", "outcome": "unknown", "owner": "a:1"},
	})
	seed(codes.FailedPrecondition, "", &errdetails.ErrorInfo{Reason: client.ReasonDryRun})
	seed(codes.Unavailable, "1000", &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)})
	seed(codes.Unavailable, "-1", &errdetails.RetryInfo{RetryDelay: &durationpb.Duration{Seconds: -1 << 63, Nanos: -5}})
	seed(codes.ResourceExhausted, "99999999999999999999", &errdetails.RetryInfo{RetryDelay: &durationpb.Duration{Seconds: 1<<63 - 1}})
	seed(codes.InvalidArgument, "x", &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{nil, {Field: "f"}}})
	f.Add([]byte("\x08\x0e\x1a\x05\x0a\x03a/b"), "\x00")
	f.Fuzz(func(t *testing.T, raw []byte, trailer string) {
		var s statuspb.Status
		if proto.Unmarshal(raw, &s) != nil || s.GetCode() == 0 {
			return
		}
		var told []time.Duration
		// The context ends at the first retry: what matters is what is made of the error.
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c := client.New(refusing{status: status.FromProto(&s), trailer: metadata.Pairs("grpc-retry-pushback-ms", trailer)}, client.Options{
			OnRetry: func(_ error, delay time.Duration) {
				told = append(told, delay)
				cancel()
			},
		})
		_, err := c.Start(ctx, &instancedv1.StartInstancesRequest{})
		if err == nil {
			if codes.Code(s.GetCode()) != codes.FailedPrecondition {
				t.Fatalf("%v is taken for success", &s)
			}
			return
		}
		e, ok := errors.AsType[*client.Error](err)
		if !ok || e.Error() == "" || e.Code != codes.Code(s.GetCode()) || e.RetryDelay < 0 || e.GRPCStatus().Message() != s.GetMessage() {
			t.Errorf("%v became %#v", &s, err)
		}
		for _, delay := range told {
			if delay < 0 || delay > 25*time.Hour {
				t.Errorf("%v is retried after %v", &s, delay)
			}
		}
	})
}
