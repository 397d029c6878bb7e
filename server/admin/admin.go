package admin

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Limits of the transport. Slower clients are disconnected.
const (
	headerTimeout = 5 * time.Second
	readTimeout   = 10 * time.Second
	// writeTimeout is how long a response may take, beside the time that a profile takes.
	writeTimeout   = 30 * time.Second
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 16 << 10
	// A scrape beyond maxScrapes at a time is answered with 503.
	maxScrapes = 4
)

// Config configures a [Server].
type Config struct {
	// Metrics are what /metrics shows. It is required.
	Metrics prometheus.Gatherer
	Logger  *slog.Logger
	// LogLevel is what /loglevel shows and changes, and ParseLevel returns the level for a
	// name, or an error that says which there are. Without them there is no /loglevel.
	LogLevel   *slog.LevelVar
	ParseLevel func(text string) (slog.Level, error)
	// Status returns what /statusz shows. Without it there is no /statusz.
	Status func() []Section
	// MaxConnections limits the open connections. Beyond it the one that has been idle for the
	// longest is closed. 0 means DefaultMaxConnections.
	MaxConnections int
}

// Server serves the admin endpoints over HTTP. It is safe for concurrent use.
type Server struct {
	http *http.Server
	// listener is the address that it serves on; nil before it serves.
	listener    atomic.Pointer[net.Addr]
	live, ready *probe
	stopped     context.Context // ends with Close
	stop        context.CancelFunc
}

// New returns a server that is not listening yet. Without checks, /livez and /readyz pass.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		live:  &probe{name: "livez", maxSilence: maxLiveSilence},
		ready: &probe{name: "readyz", maxSilence: maxReadySilence},
	}
	s.stopped, s.stop = context.WithCancel(context.Background())
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true) // for gRPC
	s.http = &http.Server{
		Handler:           s.handler(cfg),
		Protocols:         &protocols,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ConnState:         newConnections(cmp.Or(cfg.MaxConnections, DefaultMaxConnections)).changed,
		ErrorLog:          slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelWarn),
	}
	return s
}

// index is the page at /, for whoever follows the address in the log.
const index = `instanced admin endpoints

/metrics            Prometheus and OpenMetrics
/livez              whether the process is alive
/readyz?verbose     whether it is ready, check by check
On loopback only:
/statusz            what it is doing
/debug/pprof/       profiles
/loglevel           the log level; PUT changes it
`

// handler returns the handler of all endpoints.
func (s *Server) handler(cfg Config) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(cfg.Metrics, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError, // what can be gathered is better than nothing
		EnableOpenMetrics:   true,                     // for exemplars
		MaxRequestsInFlight: maxScrapes,
	}))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(index)) // the client may be gone
	})
	mux.Handle("GET /livez", s.live)
	mux.Handle("GET /readyz", s.ready)

	local := func(pattern string, h http.Handler) { mux.Handle(pattern, loopbackOnly(s.listenerAddr, h)) }
	local("/debug/pprof/", profiles())
	if cfg.LogLevel != nil {
		l := logLevel{cfg.LogLevel, cfg.ParseLevel, cfg.Logger}
		local("GET /loglevel", http.HandlerFunc(l.get))
		local("PUT /loglevel", http.HandlerFunc(l.put))
	}
	if cfg.Status != nil {
		local("GET /statusz", statusPage(cfg.Status))
	}
	debug := loopbackOnly(s.listenerAddr, newDebugServer())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		extendWriteDeadline(w, 0)
		if isGRPC(r) {
			debug.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// extendWriteDeadline lets a response take writeTimeout and so much more. Only connections of
// tests have no deadlines.
func extendWriteDeadline(w http.ResponseWriter, more time.Duration) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout + more))
}

func (s *Server) listenerAddr() net.Addr {
	if addr := s.listener.Load(); addr != nil {
		return *addr
	}
	return nil
}

// AddLive adds checks to /livez. None of them may fail merely because something outside of the
// process is unreachable.
func (s *Server) AddLive(checks ...Check) { s.live.add(checks) }

// AddReady adds checks to /readyz.
func (s *Server) AddReady(checks ...Check) { s.ready.add(checks) }

// Serve serves on a listener until [Server.Close], and then returns nil.
func (s *Server) Serve(lis net.Listener) error {
	s.listener.Store(new(lis.Addr()))
	go s.evaluateRegularly()
	if err := s.http.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// evaluateRegularly evaluates all checks every checkInterval until the server is closed.
func (s *Server) evaluateRegularly() {
	ticker := time.NewTicker(checkInterval)
	defer ticker.Stop()
	for {
		for _, p := range []*probe{s.live, s.ready} {
			for _, m := range p.list() {
				m.evaluate()
			}
		}
		select {
		case <-ticker.C:
		case <-s.stopped.Done():
			return
		}
	}
}

// Close stops serving and cuts off requests in flight.
func (s *Server) Close() error {
	s.stop()
	return s.http.Close()
}
