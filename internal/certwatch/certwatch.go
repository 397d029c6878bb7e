// Package certwatch keeps the TLS configuration of a server up to date with the files of its
// certificate, its key and the certificate authorities of its clients.
//
// The folders of the files are watched, since Kubernetes replaces files by swapping a symbolic
// link, which ends a watch on the file itself; and the files are read again at an interval,
// since some file systems do not report changes at all. Files that do not go together change
// nothing: the last good ones stay in use, the log says so once, and a metric as long as it
// lasts.
package certwatch

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/prometheus/client_golang/prometheus"
)

const (
	// defaultInterval is the default of [Config.Interval].
	defaultInterval = 10 * time.Second
	// settleTime is how long after a change the files are read: several are replaced one
	// after the other.
	settleTime = 100 * time.Millisecond
	// maxFileBytes bounds each file.
	maxFileBytes = 4 << 20
)

// Config says which files a [Watcher] watches. All files are PEM.
type Config struct {
	// CertFile has the certificate of the server and its intermediates, KeyFile its private
	// key.
	CertFile, KeyFile string
	// ClientCAFile has the certificate authorities of the clients, each of which needs a
	// certificate of one of them.
	ClientCAFile string
	// MinVersion is the minimum version of TLS; the default is TLS 1.3.
	MinVersion uint16
	// Interval is how often the files are read although no change was reported; the default is
	// 10 seconds.
	Interval time.Duration
	// Logger is where reloads are logged; nil for nowhere.
	Logger *slog.Logger
	// Metrics is where metrics are registered; nil for nowhere.
	Metrics prometheus.Registerer
}

// Watcher keeps a TLS configuration. It is safe for concurrent use.
type Watcher struct {
	cfg     Config
	current atomic.Pointer[loaded]
	// failing is whether the files, as they were read last, are unusable.
	failing atomic.Bool
	metrics *metrics

	// lastRead belongs to the goroutine that reads the files.
	lastRead contents
}

// contents are the bytes of the files.
type contents struct{ cert, key, clientCAs []byte }

func (c contents) equal(d contents) bool {
	return bytes.Equal(c.cert, d.cert) && bytes.Equal(c.key, d.key) && bytes.Equal(c.clientCAs, d.clientCAs)
}

// loaded is a configuration, and when its certificates expire.
type loaded struct {
	config *tls.Config
	// serverNotAfter is that of the certificate of the server; clientCANotAfter that of the
	// authority that expires first.
	serverNotAfter, clientCANotAfter time.Time
}

// New reads the files. It fails if they are unusable.
func New(cfg Config) (*Watcher, error) {
	cfg.MinVersion = cmp.Or(cfg.MinVersion, tls.VersionTLS13)
	cfg.Interval = cmp.Or(cfg.Interval, defaultInterval)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	w := &Watcher{cfg: cfg}
	read, err := w.read()
	if err != nil {
		return nil, err
	}
	now, err := w.load(read)
	if err != nil {
		return nil, err
	}
	w.lastRead = read
	w.current.Store(now)
	w.metrics = newMetrics(cfg.Metrics, w)
	return w, nil
}

// Config returns the present configuration, which must not be modified. It is another one
// whenever the files have changed.
func (w *Watcher) Config() *tls.Config { return w.current.Load().config }

// Run reads the files again when they change, until ctx is done.
func (w *Watcher) Run(ctx context.Context) {
	changed, stop := w.watch()
	defer stop()
	interval := time.NewTicker(w.cfg.Interval)
	defer interval.Stop()
	var settled <-chan time.Time // nil while no change is reported
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			if settled == nil {
				settled = time.After(settleTime)
			}
		case <-settled:
			settled = nil
			w.reload()
		case <-interval.C:
			w.reload()
		}
	}
}

// watch watches the folders. Where that is not possible, the interval has to do.
func (w *Watcher) watch() (changed <-chan fsnotify.Event, stop func()) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		w.cfg.Logger.Warn("changes of the TLS files are not reported here; reading them at an interval", "interval", w.cfg.Interval, "error", err)
		return nil, func() {}
	}
	for _, file := range []string{w.cfg.CertFile, w.cfg.KeyFile, w.cfg.ClientCAFile} {
		if err := watcher.Add(filepath.Dir(file)); err != nil {
			w.cfg.Logger.Warn("changes of a TLS file are not reported here; reading it at an interval", "file", file, "interval", w.cfg.Interval, "error", err)
		}
	}
	errs := make(chan struct{})
	go func() {
		defer close(errs)
		for range watcher.Errors {
		}
	}()
	return watcher.Events, func() {
		_ = watcher.Close()
		<-errs
	}
}

// reload reads the files, and replaces the configuration if they have changed and are usable.
func (w *Watcher) reload() {
	read, err := w.read()
	if err == nil {
		if read.equal(w.lastRead) {
			return
		}
		w.lastRead = read
		var now *loaded
		if now, err = w.load(read); err == nil {
			w.current.Store(now)
			w.failing.Store(false)
			w.metrics.reloads.Inc()
			w.cfg.Logger.Info("the TLS files have changed and are in use", "expires", now.serverNotAfter)
			return
		}
	} else {
		if w.lastRead.equal(contents{}) {
			return // as unreadable as before
		}
		w.lastRead = contents{}
	}
	w.failing.Store(true)
	w.metrics.failures.Inc()
	w.cfg.Logger.Error("the TLS files have changed and cannot be used; keeping the earlier ones", "error", err)
}

func (w *Watcher) read() (c contents, err error) {
	for _, file := range []struct {
		name string
		into *[]byte
	}{{w.cfg.CertFile, &c.cert}, {w.cfg.KeyFile, &c.key}, {w.cfg.ClientCAFile, &c.clientCAs}} {
		if *file.into, err = readFile(file.name); err != nil {
			return contents{}, err
		}
	}
	return c, nil
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("cannot read the TLS file %s: %w", name, cause(err))
	}
	defer func() { _ = f.Close() }() // only read
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read the TLS file %s: %w", name, cause(err))
	}
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("the TLS file %s has more than %d MiB", name, maxFileBytes>>20)
	}
	return data, nil
}

// cause returns the operating system's own error, without the path.
func cause(err error) error {
	if e, ok := errors.AsType[*os.PathError](err); ok {
		return e.Err
	}
	return err
}

// load makes a configuration of the contents of the files.
func (w *Watcher) load(c contents) (*loaded, error) {
	pair, err := tls.X509KeyPair(c.cert, c.key)
	if err != nil {
		return nil, fmt.Errorf("the certificate %s and the key %s cannot be used: %w", w.cfg.CertFile, w.cfg.KeyFile, err)
	}
	pool, caNotAfter, err := authorities(c.clientCAs)
	if err != nil {
		return nil, fmt.Errorf("the certificate authorities %s cannot be used: %w", w.cfg.ClientCAFile, err)
	}
	if time.Now().After(pair.Leaf.NotAfter) {
		return nil, fmt.Errorf("the certificate %s has expired: it was valid until %s", w.cfg.CertFile, pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return &loaded{
		config: &tls.Config{
			Certificates: []tls.Certificate{pair},
			ClientCAs:    pool,
			ClientAuth:   tls.RequireAndVerifyClientCert,
			MinVersion:   w.cfg.MinVersion,
			NextProtos:   []string{"h2"},
			// A resumed session would keep a client in whose authority was withdrawn.
			SessionTicketsDisabled: true,
		},
		serverNotAfter:   pair.Leaf.NotAfter,
		clientCANotAfter: caNotAfter,
	}, nil
}

// authorities parses certificate authorities: at least one, and nothing else.
func authorities(text []byte) (pool *x509.CertPool, firstNotAfter time.Time, err error) {
	pool = x509.NewCertPool()
	found := 0
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, time.Time{}, fmt.Errorf("it has a %s; want certificates only", block.Type)
		}
		authority, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, time.Time{}, err
		}
		if !authority.IsCA {
			return nil, time.Time{}, fmt.Errorf("the certificate of %q is not one of an authority", authority.Subject)
		}
		pool.AddCert(authority)
		if found++; found == 1 || authority.NotAfter.Before(firstNotAfter) {
			firstNotAfter = authority.NotAfter
		}
	}
	if found == 0 {
		return nil, time.Time{}, errors.New("it has no certificate in PEM")
	}
	return pool, firstNotAfter, nil
}
