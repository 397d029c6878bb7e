package admin

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Limits of the transport. Slower clients are disconnected.
const (
	headerTimeout  = 5 * time.Second
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
}

// Server serves the admin endpoints over HTTP. It is safe for concurrent use.
type Server struct {
	http *http.Server
}

// New returns a server that is not listening yet.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	errorLog := slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelWarn)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(cfg.Metrics, promhttp.HandlerOpts{
		ErrorLog:            errorLog,
		ErrorHandling:       promhttp.ContinueOnError, // what can be gathered is better than nothing
		EnableOpenMetrics:   true,                     // for exemplars
		MaxRequestsInFlight: maxScrapes,
	}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok\n")) // the client may be gone
	})
	return &Server{http: &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          errorLog,
	}}
}

// Serve serves on a listener until [Server.Close], and then returns nil.
func (s *Server) Serve(lis net.Listener) error {
	if err := s.http.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Close stops serving and cuts off requests in flight.
func (s *Server) Close() error { return s.http.Close() }
