// Package servertest runs the whole service inside a test: the gRPC server on an in-memory
// connection, the simulator, and the journal on disk in a directory of the test. Nothing in
// it is a fake. Instances change their states without delays, unless a test sets
// Options.Speed.
//
// Control the simulator and inject faults through [Server.Simulator]. The server and its
// connections are closed when the test ends.
package servertest

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
	"github.com/instanced/instanced/internal/lifecycle"
	"github.com/instanced/instanced/internal/policy"
	"github.com/instanced/instanced/server"
	"github.com/instanced/instanced/server/ec2query"
	"github.com/instanced/instanced/server/simulator"
)

// timeout is the time limit for starting and shutting down.
const timeout = 30 * time.Second

// Options configure a [Server]. The zero value is the built-in fleet with its faults,
// without delays.
type Options struct {
	// Fleet is the initial instances and faults. Nil means the built-in fleet, an empty one
	// no instances and no faults.
	Fleet *instancedv1.CreateInstancesRequest
	// Seed determines the simulator's random numbers.
	Seed uint64
	// Speed divides the delays between states: at 1 they are like EC2's, at 5 a start
	// takes 2 to 5 seconds. At 0 there are none.
	Speed float64
	// Throttle turns on EC2's documented request limits.
	Throttle bool
	// DataDir is the directory of the journal; empty for a temporary one. A second server
	// on the directory of a closed one is that server restarted.
	DataDir string
	// Endpoints are the endpoints of an external etcd, in place of DataDir. Servers that share one
	// share the journal: the first commands the backend, the others follow.
	Endpoints []string
	// JournalMaxBytes and Retention limit the history; zero for the defaults of the
	// journal.
	JournalMaxBytes int64
	Retention       time.Duration
	// RingBytes is how much of the recent log is held in memory for watches; zero for the
	// default.
	RingBytes int64
	// PollInterval is when an instance in transition is polled if there was no notice; zero
	// for the default.
	PollInterval time.Duration
	// MaxRequests, MaxStreams and MaxConnections are the limits of the server; zero for its
	// defaults.
	MaxRequests, MaxStreams, MaxConnections int
	// EC2Credentials are the access keys with which the EC2 endpoint verifies signatures;
	// nil for an endpoint that does not verify them.
	EC2Credentials ec2query.Credentials
	// Deadline is for calls that have none, and limits how long a request may take to
	// arrive; zero for the default.
	Deadline time.Duration
	// TLS is the present configuration of TLS; nil for plaintext. With TLS, [Server.Conn] and the
	// clients that use it do not work: see [Server.Dial].
	TLS func() *tls.Config
	// Policy decides who may do what; the default permits everything.
	Policy policy.Policy
	// Logger is the server's; nil discards its log.
	Logger *slog.Logger
	// Tracing makes the spans of calls; nil for none.
	Tracing trace.TracerProvider
	// Metrics registers the metrics of the service; nil for none. MetricsPrincipals is how many
	// principals have some of their own; zero for what a server does by default.
	Metrics           prometheus.Registerer
	MetricsPrincipals int
	// Register registers further services of the test.
	Register func(grpc.ServiceRegistrar)
}

// Server is a running server.
type Server struct {
	t        testing.TB
	listener *bufconn.Listener
	server   *server.Server
	backend  *sim.Backend
	conn     *grpc.ClientConn
	ec2      *ec2query.Server
	ec2URL   func() string
	running  sync.WaitGroup
	stop     func()
}

// New starts a server and returns when it is ready.
func New(t testing.TB, opts Options) *Server {
	t.Helper()
	if opts.DataDir == "" && len(opts.Endpoints) == 0 {
		opts.DataDir = t.TempDir()
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	j, err := journal.Open(ctx, journal.Config{
		DataDir:     opts.DataDir,
		Endpoints:   opts.Endpoints,
		Logger:      opts.Logger,
		Metrics:     opts.Metrics,
		Retention:   opts.Retention,
		MaxBytes:    opts.JournalMaxBytes,
		RingBytes:   opts.RingBytes,
		MinFreeDisk: -1,
		Address:     "bufconn",
	})
	if err != nil {
		t.Fatalf("servertest: cannot open the journal: %v", err)
	}
	backend := sim.New(simulatorConfig(opts))
	layer := lifecycle.New(lifecycle.Config{Journal: j, Backend: backend, Logger: opts.Logger, Metrics: opts.Metrics, PollInterval: opts.PollInterval})
	layer.SetPolicy(opts.Policy)
	simulation := simulator.New(layer, backend)
	srv := server.New(server.Config{
		Lifecycle: layer,
		Version:   "test",
		Backend:   "simulator",
		Logger:    opts.Logger,
		Tracing:   opts.Tracing,
		TLS:       opts.TLS,

		Deadline:       opts.Deadline,
		MaxRequests:    opts.MaxRequests,
		MaxStreams:     opts.MaxStreams,
		MaxConnections: opts.MaxConnections,

		Metrics:           opts.Metrics,
		MetricsPrincipals: opts.MetricsPrincipals,

		Register: func(r grpc.ServiceRegistrar) {
			simulation.Register(r)
			if opts.Register != nil {
				opts.Register(r)
			}
		},
	})
	s := &Server{t: t, listener: bufconn.Listen(1 << 20), server: srv, backend: backend}
	s.ec2 = ec2query.New(ec2query.Config{
		Lifecycle:      layer,
		Simulator:      simulation,
		Credentials:    opts.EC2Credentials,
		Logger:         opts.Logger,
		Tracing:        opts.Tracing,
		MaxRequests:    opts.MaxRequests,
		MaxConnections: opts.MaxConnections,

		Metrics:           opts.Metrics,
		MetricsPrincipals: opts.MetricsPrincipals,
	})
	s.ec2URL = sync.OnceValue(s.serveEC2)

	runCtx, stopRunning := context.WithCancel(context.Background())
	s.running.Go(func() {
		if err := layer.Run(runCtx); err != nil {
			t.Errorf("servertest: the service layer ended: %v", err)
		}
	})
	s.Serve(s.listener)
	s.stop = sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		err := s.Shutdown(ctx)
		stopRunning()
		s.running.Wait()
		backend.Close()
		if err := errors.Join(err, j.Close(ctx)); err != nil {
			t.Errorf("servertest: cannot shut down: %v", err)
		}
	})
	t.Cleanup(s.stop)
	s.conn = s.Dial()
	select {
	case <-layer.Ready():
	case <-ctx.Done():
		t.Fatal("servertest: the server does not become ready")
	}
	return s
}

// simulatorConfig returns the configuration of the simulator.
func simulatorConfig(opts Options) sim.Config {
	config := sim.Config{
		Seed:     opts.Seed,
		Speed:    opts.Speed,
		Throttle: opts.Throttle,
		Logger:   opts.Logger,
		Fleet:    sim.BuiltinFleet(),
		Faults:   sim.BuiltinFaults(),
	}
	if opts.Fleet != nil {
		config.Fleet, config.Faults = simulator.Fleet(opts.Fleet)
	}
	return config
}

// Dial opens another connection, which is closed when the test ends.
func (s *Server) Dial(opts ...grpc.DialOption) *grpc.ClientConn {
	s.t.Helper()
	opts = append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.listener.DialContext(ctx) }),
	}, opts...)
	conn, err := grpc.NewClient("passthrough:///servertest", opts...)
	if err != nil {
		s.t.Fatalf("servertest: cannot connect: %v", err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// Conn is a connection to the server.
func (s *Server) Conn() *grpc.ClientConn { return s.conn }

// Instances is a client of InstanceService.
func (s *Server) Instances() instancedv1.InstanceServiceClient {
	return instancedv1.NewInstanceServiceClient(s.conn)
}

// Simulator is a client of SimulatorService.
func (s *Server) Simulator() instancedv1.SimulatorServiceClient {
	return instancedv1.NewSimulatorServiceClient(s.conn)
}

// Serve serves on another listener, such as one that other processes can reach, until the
// server is closed.
func (s *Server) Serve(lis net.Listener) {
	s.running.Go(func() {
		if err := s.server.Serve(lis); err != nil {
			s.t.Errorf("servertest: the server ended: %v", err)
		}
	})
}

// EC2 is the URL of the EC2 endpoint, on a port of loopback, for the AWS CLI and SDKs.
func (s *Server) EC2() string { return s.ec2URL() }

func (s *Server) serveEC2() string {
	s.t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatalf("servertest: cannot listen: %v", err)
	}
	s.running.Go(func() {
		if err := s.ec2.Serve(lis); err != nil {
			s.t.Errorf("servertest: the EC2 endpoint ended: %v", err)
		}
	})
	return "http://" + lis.Addr().String()
}

// BackendStates returns the states of all instances from the simulator itself, not from the
// journal.
func (s *Server) BackendStates(ctx context.Context) (map[string]instancedv1.InstanceStateName, error) {
	states := make(map[string]instancedv1.InstanceStateName)
	for query := (instance.DescribeQuery{All: true}); ; {
		page, err := s.backend.Describe(ctx, query)
		if err != nil {
			return nil, err
		}
		for _, i := range page.Instances {
			// The contract numbers the states as the simulator does.
			states[string(i.ID)] = instancedv1.InstanceStateName(i.State)
		}
		if query.PageToken = page.NextPageToken; query.PageToken == "" {
			return states, nil
		}
	}
}

// Shutdown shuts the server down as a signal would, and returns when all calls, or ctx,
// have ended.
func (s *Server) Shutdown(ctx context.Context) error {
	return errors.Join(s.ec2.Shutdown(ctx), s.server.Shutdown(ctx))
}

// Close shuts the server down completely. A test needs it only to start another server on
// the same directory.
func (s *Server) Close() { s.stop() }
