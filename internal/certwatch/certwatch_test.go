package certwatch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/instanced/instanced/internal/devcert"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lines is a log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), text)
}

func newAuthority(t *testing.T) *devcert.Authority {
	t.Helper()
	a, err := devcert.NewAuthority("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newPair(t *testing.T, a *devcert.Authority, complete func(*x509.Certificate)) devcert.Pair {
	t.Helper()
	pair, err := a.Issue("test", complete)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func unchanged(*x509.Certificate) {}

// put writes the files of a pair into a directory.
func put(t *testing.T, dir string, pair devcert.Pair, ca []byte) {
	t.Helper()
	for name, data := range map[string][]byte{"tls.crt": pair.Cert, "tls.key": pair.Key, "ca.crt": ca} {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(file+".new", data, 0o600), os.Rename(file+".new", file)); err != nil {
			t.Fatal(err)
		}
	}
}

func configOf(dir string) Config {
	return Config{CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key"), ClientCAFile: filepath.Join(dir, "ca.crt")}
}

// watched is a running watcher.
type watched struct {
	*Watcher
	registry *prometheus.Registry
	log      *lines
}

func run(t *testing.T, cfg Config) watched {
	t.Helper()
	w := watched{registry: prometheus.NewRegistry(), log: &lines{}}
	cfg.Logger, cfg.Metrics = slog.New(slog.NewTextHandler(w.log, nil)), w.registry
	var err error
	if w.Watcher, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { w.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return w
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not %s", what)
		}
	}
}

// uses reports whether the certificate of a pair is in use.
func (w watched) uses(pair devcert.Pair) bool {
	want, err := tls.X509KeyPair(pair.Cert, pair.Key)
	return err == nil && w.Config().Certificates[0].Leaf.Equal(want.Leaf)
}

func (w watched) gauge(t *testing.T, name string) float64 {
	t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

func TestChangedFilesAreUsed(t *testing.T) {
	t.Parallel()
	for name, interval := range map[string]time.Duration{
		"as soon as they are reported": time.Hour,
		"at the interval":              20 * time.Millisecond,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, a := t.TempDir(), newAuthority(t)
			put(t, dir, newPair(t, a, unchanged), a.Cert)
			cfg := configOf(dir)
			cfg.Interval = interval
			w := run(t, cfg)
			first := w.Config()
			next := newPair(t, a, unchanged)
			// The watch begins a moment after Run.
			eventually(t, "in use", func() bool { put(t, dir, next, a.Cert); return w.uses(next) })
			if w.Config().ClientCAs == first.ClientCAs {
				t.Error("the authorities are the same object")
			}
			if got := w.gauge(t, "instanced_tls_reloads_total"); got < 1 {
				t.Errorf("%v reloads are counted", got)
			}
		})
	}
}

// TestASwappedLinkIsFollowed replaces the files as Kubernetes does: they are links into a
// directory that is a link itself, which is replaced.
func TestASwappedLinkIsFollowed(t *testing.T) {
	t.Parallel()
	dir, a := t.TempDir(), newAuthority(t)
	swap := func(to string, pair devcert.Pair) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, to), 0o700); err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(dir, to), pair, a.Cert)
		if err := os.Symlink(to, filepath.Join(dir, "..tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	swap("..1", newPair(t, a, unchanged))
	for _, name := range []string{"tls.crt", "tls.key", "ca.crt"} {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	cfg := configOf(dir)
	cfg.Interval = time.Second
	w := run(t, cfg)
	for _, to := range []string{"..2", "..3"} {
		next := newPair(t, a, unchanged)
		swap(to, next)
		eventually(t, "in use after "+to, func() bool { return w.uses(next) })
	}
}

func TestBrokenFilesKeepTheEarlierOnes(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	good := newPair(t, a, unchanged)
	for name, broken := range map[string]struct {
		pair devcert.Pair
		ca   []byte
		want string
	}{
		"a key of another certificate": {devcert.Pair{Cert: newPair(t, a, unchanged).Cert, Key: good.Key}, a.Cert, "private key does not match"},
		"half a certificate":           {devcert.Pair{Cert: good.Cert[:100], Key: good.Key}, a.Cert, "failed to find"},
		"no authority":                 {good, nil, "no certificate in PEM"},
		"a key for an authority":       {good, good.Key, "want certificates only"},
		"no authority but a client":    {good, good.Cert, "not one of an authority"},
		"an expired certificate": {newPair(t, a, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(-time.Minute)
		}), a.Cert, "has expired"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			put(t, dir, broken.pair, broken.ca)
			if _, err := New(configOf(dir)); err == nil || !strings.Contains(err.Error(), broken.want) {
				t.Errorf("at the start: %v, want %q", err, broken.want)
			}
			put(t, dir, good, a.Cert)
			cfg := configOf(dir)
			cfg.Interval = 10 * time.Millisecond
			w := run(t, cfg)
			before := w.Config()
			put(t, dir, broken.pair, broken.ca)
			eventually(t, "reported", func() bool { return w.log.count(broken.want) > 0 })
			failures := w.gauge(t, "instanced_tls_reload_failures_total")
			if w.gauge(t, "instanced_tls_last_reload_successful") != 0 {
				t.Error("the metric does not say that the files are unusable")
			}
			// The interval passes a few times.
			time.Sleep(5 * cfg.Interval)
			if got := w.log.count(broken.want); got != 1 {
				t.Errorf("logged %d times", got)
			}
			if got := w.gauge(t, "instanced_tls_reload_failures_total"); got != failures {
				t.Errorf("counted again: %v after %v", got, failures)
			}
			if w.Config() != before {
				t.Error("the configuration has changed")
			}
			put(t, dir, good, a.Cert)
			eventually(t, "usable again", func() bool { return w.gauge(t, "instanced_tls_last_reload_successful") == 1 })
		})
	}
}

func TestMissingFilesAreNamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, err := New(configOf(dir))
	if want := "cannot read the TLS file " + filepath.Join(dir, "tls.crt") + ": no such file or directory"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestTheExpirationIsAMetric(t *testing.T) {
	t.Parallel()
	dir, a := t.TempDir(), newAuthority(t)
	put(t, dir, newPair(t, a, unchanged), a.Cert)
	w := run(t, configOf(dir))
	if got := w.gauge(t, "instanced_tls_certificate_expiry_timestamp_seconds"); time.Until(time.Unix(int64(got), 0)) > time.Hour || time.Until(time.Unix(int64(got), 0)) < 50*time.Minute {
		t.Errorf("the certificate expires at %v", got)
	}
}
