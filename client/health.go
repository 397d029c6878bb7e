package client

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
)

// HealthServing is the status of a service that is healthy.
const HealthServing = "SERVING"

// Health returns the health of a name at one process of the service, by the protocol
// grpc.health.v1: [HealthServing], or another status of it such as "NOT_SERVING". The empty name
// is the service as a whole, and "instanced.v1.commands" is serving only where commands are
// taken. An unknown name is NOT_FOUND. It does not retry.
func (c *Client) Health(ctx context.Context, name string) (status string, err error) {
	var trailer metadata.MD
	resp, err := c.health.Check(c.outgoing(ctx), &grpc_health_v1.HealthCheckRequest{Service: name}, grpc.Trailer(&trailer))
	if err != nil {
		return "", newError(err, trailer)
	}
	return resp.GetStatus().String(), nil
}
