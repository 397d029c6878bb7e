package certwatch

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics are about the files of a [Watcher].
type metrics struct {
	reloads, failures prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, w *Watcher) *metrics {
	factory := promauto.With(reg)
	expiration := func(certificate string, at func(*loaded) time.Time) {
		factory.NewGaugeFunc(prometheus.GaugeOpts{
			Name:        "instanced_tls_certificate_expiry_timestamp_seconds",
			Help:        "When a certificate in use expires; of several authorities, the first.",
			ConstLabels: prometheus.Labels{"certificate": certificate},
		}, func() float64 { return float64(at(w.current.Load()).Unix()) })
	}
	expiration("server", func(l *loaded) time.Time { return l.serverNotAfter })
	expiration("client_ca", func(l *loaded) time.Time { return l.clientCANotAfter })
	factory.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "instanced_tls_last_reload_successful",
		Help: "1 if the TLS files, as they were read last, are in use; 0 if they are unusable and earlier ones are in use.",
	}, func() float64 {
		if w.failing.Load() {
			return 0
		}
		return 1
	})
	return &metrics{
		reloads: factory.NewCounter(prometheus.CounterOpts{
			Name: "instanced_tls_reloads_total",
			Help: "Changes of the TLS files that were put in use.",
		}),
		failures: factory.NewCounter(prometheus.CounterOpts{
			Name: "instanced_tls_reload_failures_total",
			Help: "Changes of the TLS files that were unusable.",
		}),
	}
}
