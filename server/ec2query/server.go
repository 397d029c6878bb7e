package ec2query

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/instanced/instanced/internal/admission"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

// Limits of the transport. Slower clients are disconnected.
const (
	headerTimeout  = 10 * time.Second
	readTimeout    = 30 * time.Second
	writeTimeout   = 2 * time.Minute // from the end of the header to the end of the response
	idleTimeout    = 2 * time.Minute
	maxReceiving   = 256      // requests whose bodies are being received or in memory
	maxHeaderBytes = 64 << 10 // including the request line, and so the parameters of a GET
)

// Simulator is what the endpoint needs of the simulator: launching instances, changing their
// attributes, and reading as from EC2. Launch and Modify return after their changes are
// recorded.
type Simulator interface {
	// Launch launches instances and returns them. If its client token was used for the same
	// launch before, it returns those instances as they are now.
	Launch(ctx context.Context, launch instance.Launch) ([]*instance.Instance, error)
	// Modify changes attributes of all instances or, on an error, of none.
	Modify(ctx context.Context, change instance.Modification) error
	// Read admits a read, which it may delay or reject. It returns a function that maps a
	// recorded instance to what the read sees of it, which is nil if it is not visible yet.
	// The function is nil if all instances look as they are recorded.
	Read(ctx context.Context, read instance.Read) (func(*instance.Instance) *instance.Instance, error)
	// StatusDelay returns how long after its launch an instance passes its status checks.
	StatusDelay() time.Duration
}

// Config configures a [Server]. Zero values mean the defaults.
type Config struct {
	// Lifecycle is the service layer. It is required.
	Lifecycle *lifecycle.Service
	// Simulator is nil with other backends, which do not have the actions that need it.
	Simulator Simulator
	// Credentials are the access keys of the callers, whose signatures are verified. Without
	// them, the access key id of a request is the name of its principal, unverified, and the
	// endpoint must listen on loopback only.
	Credentials Credentials
	Logger      *slog.Logger
	// Deadline is the deadline of each call. The default is 30 seconds.
	Deadline time.Duration
	// MaxRequests limits the calls in flight. The default is 2,048.
	MaxRequests int
	// MaxConnections limits the open connections. The default is 5,000. A principal may have
	// as many as it leaves free. Beyond the limit, an idle connection is closed.
	MaxConnections int
	// Metrics registers the metrics; nil for none.
	Metrics prometheus.Registerer
	// MetricsPrincipals is how many principals have metrics of their own: the first ones to
	// call. The default is 50, a negative number means none.
	MetricsPrincipals int
	// Tracing makes the spans of calls, which continue the caller's trace (W3C Trace Context);
	// nil for none.
	Tracing trace.TracerProvider
}

// Server serves EC2's Query protocol over HTTP. It is safe for concurrent use.
type Server struct {
	lifecycle   *lifecycle.Service
	simulator   Simulator
	credentials atomic.Pointer[Credentials]
	log         *slog.Logger
	metrics     *metrics
	deadline    time.Duration
	http        *http.Server
	admission   *admission.Admission
	dedup       *dedup
	tracer      trace.Tracer // nil if calls are not traced
	// receiveLimiter bounds the request bodies in memory: a request has a place from before
	// its body is read until its parameters have been. The holder is a claimed access key.
	receiveLimiter *instance.Places
	// parseLimiter bounds the requests that are parsed and checked at once, which takes only
	// processor time, but up to fifty times the memory of the body. One access key gets
	// half of them, which is one for each processor.
	parseLimiter *instance.Places
}

// New returns a server that is not listening yet.
func New(cfg Config) *Server {
	if cfg.Deadline <= 0 {
		cfg.Deadline = 30 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		lifecycle:      cfg.Lifecycle,
		simulator:      cfg.Simulator,
		log:            cfg.Logger,
		deadline:       cfg.Deadline,
		receiveLimiter: instance.NewPlaces(maxReceiving),
		parseLimiter:   instance.NewPlaces(2 * runtime.GOMAXPROCS(0)),
		dedup:          newDedup(maxRemembered),
		metrics:        newMetrics(cfg.Metrics),
		admission: admission.New(admission.Config{
			Limits: admission.Limits{
				Requests:    cmp.Or(cfg.MaxRequests, admission.DefaultMaxRequests),
				Connections: cmp.Or(cfg.MaxConnections, admission.DefaultMaxConnections),
			},
			Logger:            cfg.Logger,
			Metrics:           cfg.Metrics,
			Endpoint:          "ec2",
			MetricsPrincipals: max(0, cmp.Or(cfg.MetricsPrincipals, admission.DefaultMetricsPrincipals)),
		}),
	}
	if cfg.Tracing != nil {
		s.tracer = cfg.Tracing.Tracer(scope)
	}
	s.http = &http.Server{
		Handler:           s,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ConnContext:       withAccount,
		ErrorLog:          slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
	}
	if cfg.Credentials != nil {
		s.SetCredentials(cfg.Credentials)
	}
	return s
}

// SetCredentials replaces the access keys of the callers, from the next call on. It must not
// be called on a server that was made without any.
func (s *Server) SetCredentials(c Credentials) { s.credentials.Store(&c) }

// keys returns the access keys of the callers; nil if callers are not verified.
func (s *Server) keys() Credentials {
	if c := s.credentials.Load(); c != nil {
		return *c
	}
	return nil
}

// Serve serves on a listener until [Server.Shutdown], and then returns nil.
func (s *Server) Serve(lis net.Listener) error {
	if err := s.http.Serve(listener{lis, s.admission}); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
