package main

import (
	"log/slog"
	"net"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/instanced/instanced/internal/cli"
	"github.com/instanced/instanced/server/admin"
)

// newRegistry returns the registry of the process's metrics, including the ones about the process itself.
func newRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	promauto.With(registry).NewGaugeVec(prometheus.GaugeOpts{
		Name: "instanced_build_info",
		Help: "Always 1. The labels say what is running.",
	}, []string{"version", "go_version"}).WithLabelValues(cli.Version(), runtime.Version()).Set(1)
	return registry
}

// serveAdmin serves the admin endpoints, if --admin-listen asks for them, until the server is
// closed.
func serveAdmin(cfg serveConfig, srv *admin.Server, log *slog.Logger) error {
	if cfg.adminListen == "" {
		return nil
	}
	lis, err := net.Listen("tcp", cfg.adminListen)
	if err != nil {
		return cfg.errListen(cfg.adminListen, "--admin-listen", err)
	}
	go func() {
		if err := srv.Serve(lis); err != nil {
			log.Error("the admin endpoints have stopped", "error", err)
		}
	}()
	log.Info("serving the admin endpoints", "url", "http://"+lis.Addr().String())
	return nil
}

// parseAdminListen accepts an address, or none.
func parseAdminListen(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	return parseAddress(text, "127.0.0.1:9090")
}
