package server

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
	"github.com/instanced/instanced/internal/admission"
	"github.com/instanced/instanced/internal/lifecycle"
)

// What the transport allows.
const (
	maxRequestBytes = 1 << 20
	maxHeaderBytes  = 32 << 10
	// How much a stream and a connection may send ahead of the server's reading.
	streamWindow     = 64 << 10
	connectionWindow = 1 << 20
	// How long a connection may take to send the HTTP/2 preface.
	handshakeTimeout = 10 * time.Second
	// Handlers run on reused goroutines, whose stacks need not grow with every call. When
	// all are busy, calls get goroutines of their own.
	streamWorkers = 1024
	// A client that is silent for keepaliveTime is pinged. Clients may ping the server at
	// most every minPing.
	keepaliveTime    = 30 * time.Second
	keepaliveTimeout = 15 * time.Second
	minPing          = 10 * time.Second
)

// Defaults of the limits in [Config].
const (
	DefaultMaxRequests    = admission.DefaultMaxRequests
	DefaultMaxStreams     = admission.DefaultMaxStreams
	DefaultMaxConnections = admission.DefaultMaxConnections

	DefaultMetricsPrincipals = admission.DefaultMetricsPrincipals
)

// Config configures a [Server]. Zero values mean the defaults.
type Config struct {
	// Lifecycle is the service layer. It is required.
	Lifecycle *lifecycle.Service
	// Version and Backend are for GetServerInfo.
	Version string
	Backend string
	Logger  *slog.Logger
	// Register registers further services, such as the simulator's. Their calls pass through
	// the same chain, and may return the errors of the service layer.
	Register func(grpc.ServiceRegistrar)
	// Deadline is for unary calls that have none, and limits how long a request may take to
	// arrive. The default is 30 seconds.
	Deadline time.Duration
	// MaxRequests limits the unary calls in flight. The default is 2,048.
	MaxRequests int
	// MaxStreams limits the watches and waits in flight, apart from MaxRequests. The default
	// is 8,192.
	MaxStreams int
	// MaxConnections limits the open connections. The default is 5,000. A principal may have
	// as many as it leaves free. Beyond the limit, an idle connection is closed.
	MaxConnections int
	// RetryDelay is the longest delay after which callers are told to retry when the server
	// shuts down. The default is 2 seconds.
	RetryDelay time.Duration
	// Metrics registers the metrics; nil for none.
	Metrics prometheus.Registerer
	// MetricsPrincipals is how many principals have metrics of their own: the first ones to
	// call. The default is 50, a negative number means none.
	MetricsPrincipals int
	// TLS returns the present configuration of TLS, which must require client certificates. It
	// is called for each handshake, and regularly to check the certificates of connections that
	// are open. Nil means plaintext, in which names that callers claim are believed.
	TLS func() *tls.Config
	// Tracing makes the spans of calls, which continue the caller's trace (W3C Trace Context);
	// nil for none.
	Tracing trace.TracerProvider
}

// Server serves InstanceService, health and reflection over gRPC. Its methods are safe for
// concurrent use.
type Server struct {
	grpc      *grpc.Server
	health    *health.Server
	drain     *drain
	lifecycle *lifecycle.Service
	memory    *memoryReport
	slow      slowCalls
	watches   *watches
	conns     *connections
	// tls is nil in plaintext.
	tls func() *tls.Config
}

// New returns a server that is not listening yet.
func New(cfg Config) *Server {
	if cfg.Deadline <= 0 {
		cfg.Deadline = 30 * time.Second
	}
	if cfg.RetryDelay <= 0 {
		cfg.RetryDelay = 2 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	conns := newConnections(admission.Config{
		Limits: admission.Limits{
			Requests:    cmp.Or(cfg.MaxRequests, DefaultMaxRequests),
			Streams:     cmp.Or(cfg.MaxStreams, DefaultMaxStreams),
			Connections: cmp.Or(cfg.MaxConnections, DefaultMaxConnections),
		},
		Logger:            cfg.Logger,
		Metrics:           cfg.Metrics,
		Endpoint:          "grpc",
		MetricsPrincipals: max(0, cmp.Or(cfg.MetricsPrincipals, admission.DefaultMetricsPrincipals)),
	})
	s := &Server{
		health: health.NewServer(), drain: newDrain(cfg.RetryDelay), lifecycle: cfg.Lifecycle,
		memory: &memoryReport{cfg.Lifecycle, conns.Admission, cfg.Logger},
		conns:  conns, tls: cfg.TLS,
	}
	metrics := newMetrics(cfg.Metrics, conns.Admission)
	s.watches = newWatches(cfg.Metrics, conns.Admission, cfg.Lifecycle)
	early := newEarlyAdmission(receiveTimeout(cfg.Deadline), metrics)
	interceptors := chain{log: callLog{cfg.Logger}, metrics: metrics, drain: s.drain, early: early, deadline: cfg.Deadline, slow: &s.slow}
	if cfg.Tracing != nil {
		interceptors.tracer = cfg.Tracing.Tracer(scope)
	}
	s.grpc = grpc.NewServer(slices.Concat(transport(conns, cfg.TLS, metrics), interceptors.options())...)
	wrapped := early.wrap(s.grpc)
	instancedv1.RegisterInstanceServiceServer(wrapped, &service{
		lifecycle: cfg.Lifecycle,
		drain:     s.drain,
		version:   cfg.Version,
		backend:   cfg.Backend,
		limits:    conns.Limits(),
		memory:    s.memory,
		watches:   s.watches,
	})
	if cfg.Register != nil {
		cfg.Register(wrapped)
	}
	grpc_health_v1.RegisterHealthServer(wrapped, s.health)
	reflection.Register(s.grpc)
	for service, info := range s.grpc.GetServiceInfo() {
		for _, m := range info.Methods {
			metrics.register("/" + service + "/" + m.Name)
		}
	}
	s.setHealth(grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	s.health.SetServingStatus(commandsHealth, grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	return s
}

// transport returns the options of the transport. A connection may open more streams than
// are admitted, so that those beyond are rejected rather than silently delayed.
func transport(conns *connections, present func() *tls.Config, metrics *metrics) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(trackedCredentials{transportCredentials(present), conns, present}),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(maxRequestBytes),
		grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connectionWindow),
		grpc.MaxConcurrentStreams(uint32((conns.Limits().Requests+conns.Limits().Streams)/2 + maxArriving)),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
		grpc.InTapHandle(onHeaders(metrics)),
		grpc.WaitForHandlers(true),
		grpc.NumStreamWorkers(streamWorkers),
	}
}

// setHealth sets the health of the server as a whole and of each of its services, but not that
// of commands.
func (s *Server) setHealth(status grpc_health_v1.HealthCheckResponse_ServingStatus) {
	s.health.SetServingStatus("", status)
	for name := range s.grpc.GetServiceInfo() {
		if name != grpc_health_v1.Health_ServiceDesc.ServiceName && !isReflection(name) {
			s.health.SetServingStatus(name, status)
		}
	}
}

func isReflection(service string) bool { return strings.HasPrefix(service, "grpc.reflection.") }

const (
	// healthInterval is how often the health is updated, beside changes of the owner.
	healthInterval = time.Second
	// commandsHealth is the name in grpc.health.v1 that is SERVING only where commands are
	// taken.
	commandsHealth = "instanced.v1.commands"
)

// Serve serves on a listener until [Server.Shutdown]. The server is healthy while the
// service layer is ready and reaches the journal. Calls are served before that and without
// it, as far as possible.
func (s *Server) Serve(lis net.Listener) error {
	var background sync.WaitGroup
	defer background.Wait()
	stop := make(chan struct{})
	defer close(stop)
	background.Go(func() { s.updateHealth(stop) })
	background.Go(func() { s.memory.run(stop) })
	background.Go(func() { s.reauthenticate(stop) })
	if err := s.grpc.Serve(lis); !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil // shut down before it began to serve
}

// updateHealth updates the health every healthInterval, and at once when this process begins or
// ceases to take commands, until stop is closed.
func (s *Server) updateHealth(stop <-chan struct{}) {
	select {
	case <-s.lifecycle.Ready():
	case <-stop:
		return
	}
	ticker := time.NewTicker(healthInterval)
	defer ticker.Stop()
	status := grpc_health_v1.HealthCheckResponse_UNKNOWN
	for {
		now, commands := grpc_health_v1.HealthCheckResponse_SERVING, grpc_health_v1.HealthCheckResponse_SERVING
		if s.lifecycle.Reachable() != nil {
			now = grpc_health_v1.HealthCheckResponse_NOT_SERVING
		}
		commanding, changed := s.lifecycle.Commanding()
		if !commanding || now != grpc_health_v1.HealthCheckResponse_SERVING {
			commands = grpc_health_v1.HealthCheckResponse_NOT_SERVING
		}
		if now != status {
			status = now
			s.setHealth(status)
		}
		s.health.SetServingStatus(commandsHealth, commands) // watchers are told only of changes
		select {
		case <-changed:
		case <-ticker.C:
		case <-stop:
			return
		}
	}
}

// Shutdown shuts the server down gracefully: it reports itself unhealthy, ends streams with
// a goodbye, rejects waits, and lets other calls in flight finish. If ctx ends first, it
// cuts them off and returns the error of ctx.
func (s *Server) Shutdown(ctx context.Context) error {
	s.health.Shutdown()
	s.drain.begin()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.grpc.GracefulStop()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		s.grpc.Stop()
		<-done
		return ctx.Err()
	}
}
