package server

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
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
	// What a stream, and a connection, may send before the server wants it.
	streamWindow     = 64 << 10
	connectionWindow = 1 << 20
	// A connection has so long to say that it speaks HTTP/2.
	handshakeTimeout = 10 * time.Second
	// Handlers run on goroutines that are used again, so that their stacks need not
	// grow anew with each call. When all are taken, calls get goroutines of their own.
	streamWorkers = 1024
	// A caller that is silent for so long is asked whether it is there, and may ask
	// the server no more often than every minPing.
	keepaliveTime    = 30 * time.Second
	keepaliveTimeout = 15 * time.Second
	minPing          = 10 * time.Second
)

// What may be under way at once, unless a [Config] says otherwise.
const (
	DefaultMaxRequests    = admission.DefaultMaxRequests
	DefaultMaxStreams     = admission.DefaultMaxStreams
	DefaultMaxConnections = admission.DefaultMaxConnections
)

// Config is what a [Server] needs, and what may be tuned: a zero value means its
// default.
type Config struct {
	// Lifecycle answers. It is needed.
	Lifecycle *lifecycle.Service
	// Version and Backend are told by GetServerInfo.
	Version string
	Backend string
	Logger  *slog.Logger
	// Register registers further services, such as that of the simulator. They get
	// the same chain, and may return errors as the service layer does.
	Register func(grpc.ServiceRegistrar)
	// Deadline is that of unary calls that bring none, and how long a request may take to
	// arrive; default 30 seconds.
	Deadline time.Duration
	// MaxRequests is how many calls may be under way at once; default 2,048.
	MaxRequests int
	// MaxStreams is how many subscriptions and waits may be under way at once, beside
	// the calls that are answered as soon as may be; default 8,192.
	MaxStreams int
	// MaxConnections is how many connections there may be; default 5,000. A principal may
	// have as many as it leaves free. When there are more, one without a call is closed.
	MaxConnections int
	// RetryDelay is the longest time after which callers are told to come back when
	// the server shuts down; default 2 seconds.
	RetryDelay time.Duration
}

// Server serves InstanceService, health and reflection by gRPC.
type Server struct {
	grpc   *grpc.Server
	health *health.Server
	drain  *drain
	// lifecycle tells whether calls can be served.
	lifecycle *lifecycle.Service
	memory    *memoryReport
}

// New returns a server that listens nowhere yet.
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
	conns := newConnections(cfg.Logger, admission.Limits{
		Requests:    cmp.Or(cfg.MaxRequests, DefaultMaxRequests),
		Streams:     cmp.Or(cfg.MaxStreams, DefaultMaxStreams),
		Connections: cmp.Or(cfg.MaxConnections, DefaultMaxConnections),
	})
	s := &Server{
		health: health.NewServer(), drain: newDrain(cfg.RetryDelay), lifecycle: cfg.Lifecycle,
		memory: &memoryReport{cfg.Lifecycle, conns.Admission, cfg.Logger},
	}
	g := newGate(arrival(cfg.Deadline))
	methods := make(map[string]bool)
	s.grpc = grpc.NewServer(slices.Concat(transport(conns, methods), chain{callLog{cfg.Logger}, s.drain, g, cfg.Deadline}.options())...)
	guarded := g.guard(s.grpc)
	instancedv1.RegisterInstanceServiceServer(guarded, &service{
		lifecycle: cfg.Lifecycle,
		drain:     s.drain,
		version:   cfg.Version,
		backend:   cfg.Backend,
		limits:    conns.Limits(),
		memory:    s.memory,
	})
	if cfg.Register != nil {
		cfg.Register(guarded)
	}
	grpc_health_v1.RegisterHealthServer(guarded, s.health)
	reflection.Register(s.grpc)
	for service, info := range s.grpc.GetServiceInfo() {
		for _, m := range info.Methods {
			methods["/"+service+"/"+m.Name] = true
		}
	}
	s.setHealth(grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	return s
}

// transport returns the options of the transport. A connection may have more streams
// than are admitted, so that those beyond are refused rather than held up unheard.
func transport(conns *connections, methods map[string]bool) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(counted{insecure.NewCredentials(), conns}),
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
		grpc.InTapHandle(begin(methods)),
		grpc.WaitForHandlers(true),
		grpc.NumStreamWorkers(streamWorkers),
	}
}

// setHealth sets the health of the server as a whole and of each of its services.
func (s *Server) setHealth(status grpc_health_v1.HealthCheckResponse_ServingStatus) {
	s.health.SetServingStatus("", status)
	for name := range s.grpc.GetServiceInfo() {
		if name != grpc_health_v1.Health_ServiceDesc.ServiceName && !isReflection(name) {
			s.health.SetServingStatus(name, status)
		}
	}
}

func isReflection(service string) bool { return strings.HasPrefix(service, "grpc.reflection.") }

// healthEvery is how often the health is looked at.
const healthEvery = time.Second

// Serve serves on a listener until [Server.Shutdown]. It is healthy once the service
// layer is ready, and for as long as that can reach the journal; calls are answered
// before that, and without it, as well as they can be.
func (s *Server) Serve(lis net.Listener) error {
	var announcing sync.WaitGroup
	defer announcing.Wait()
	stop := make(chan struct{})
	defer close(stop)
	announcing.Go(func() { s.announce(stop) })
	announcing.Go(func() { s.memory.run(stop) })
	if err := s.grpc.Serve(lis); !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil // it was shut down before it got here
}

// announce keeps the health up to date.
func (s *Server) announce(stop <-chan struct{}) {
	select {
	case <-s.lifecycle.Ready():
	case <-stop:
		return
	}
	ticker := time.NewTicker(healthEvery)
	defer ticker.Stop()
	status := grpc_health_v1.HealthCheckResponse_UNKNOWN
	for {
		now := grpc_health_v1.HealthCheckResponse_SERVING
		if s.lifecycle.Reachable() != nil {
			now = grpc_health_v1.HealthCheckResponse_NOT_SERVING
		}
		if now != status {
			status = now
			s.setHealth(status)
		}
		select {
		case <-ticker.C:
		case <-stop:
			return
		}
	}
}

// Shutdown ends the server: it is no longer healthy, streams get a goodbye and waits
// are sent away, calls that are under way finish. When ctx is done first, they are
// cut off, and the error is that of ctx.
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
