package server

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"

	"github.com/instanced/instanced/internal/admission"
)

// BenchmarkEarlyAdmission measures a unary call with and without early admission. Both
// identify the caller; nothing is received or answered.
func BenchmarkEarlyAdmission(b *testing.B) {
	a := newConnections(admission.Config{Logger: slog.New(slog.DiscardHandler), Limits: admission.Limits{Requests: DefaultMaxRequests, Streams: DefaultMaxStreams, Connections: DefaultMaxConnections}})
	conn, err := a.connect(nil)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(peer.NewContext(b.Context(), &peer.Peer{AuthInfo: peerInfo{conn: conn}}))
	defer cancel(nil)
	ctx = context.WithValue(ctx, cancelReceiveKey{}, cancel)
	handler := func(_ any, _ context.Context, receive func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		return new(instancedv1.GetServerInfoResponse), receive(new(instancedv1.GetServerInfoRequest))
	}
	receive := func(any) error { return nil }
	for name, method := range map[string]grpc.MethodHandler{
		"with": newEarlyAdmission(receiveTimeout(time.Minute), newMetrics(nil, a.Admission)).unary(instancedv1.InstanceService_GetServerInfo_FullMethodName, handler),
		"without": func(srv any, ctx context.Context, receive func(any) error, chain grpc.UnaryServerInterceptor) (any, error) {
			return handler(srv, identify(ctx), receive, chain)
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				resp, err := method(nil, ctx, receive, nil)
				if err != nil {
					b.Fatal(err)
				}
				if sent, ok := resp.(frame); ok {
					sent.data.Free() // as the transport does
				}
			}
		})
	}
}
