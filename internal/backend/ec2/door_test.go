package ec2

import (
	"testing"

	"github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/backend/backendtest"
	"github.com/instanced/instanced/internal/lifecycle"
	"github.com/instanced/instanced/server/servertest"
)

// TestContractOverHTTP has the service itself for EC2: its EC2 endpoint, with the
// simulator and its throttles behind it.
func TestContractOverHTTP(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) lifecycle.Backend {
		srv := servertest.New(t, servertest.Options{
			Speed: 500, Throttle: true,
			Fleet: &instancedv1.CreateInstancesRequest{Instances: []*instancedv1.InstanceSpec{{Count: 2 * backendtest.Needed}}},
		})
		return connect(t, nil, func(c *Config) {
			c.AWS.HTTPClient, c.AWS.BaseEndpoint = nil, new(srv.EC2())
		})
	})
}
