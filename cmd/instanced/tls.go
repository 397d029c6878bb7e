package main

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/instanced/instanced/internal/certwatch"
	"github.com/instanced/instanced/internal/cli"
	"github.com/instanced/instanced/internal/policy"
)

// tlsFlags are the settings of TLS. The files are given all or none.
type tlsFlags struct {
	cert, key, clientCA string
	minVersion          uint16
}

func (f *tlsFlags) bind(flags *pflag.FlagSet) {
	flags.StringVar(&f.cert, "tls-cert", "", "PEM `file` of the server's certificate and its intermediates; callers use TLS then (default: plaintext)")
	flags.StringVar(&f.key, "tls-key", "", "PEM `file` of the private key of --tls-cert")
	flags.StringVar(&f.clientCA, "tls-client-ca", "", "PEM `file` of the authorities of client certificates, of which each caller needs one")
	cli.Bind(flags, &f.minVersion, "tls-min-version", "version", "1.3", "minimum version of TLS: 1.3, or 1.2 for old clients", parseTLSVersion)
}

// enabled reports whether the service serves TLS.
func (f *tlsFlags) enabled() bool { return f.cert != "" }

// watch returns what watches the files; nil in plaintext.
func (f *tlsFlags) watch(log *slog.Logger, metrics prometheus.Registerer) (*certwatch.Watcher, error) {
	if !f.enabled() {
		return nil, nil
	}
	w, err := certwatch.New(certwatch.Config{
		CertFile: f.cert, KeyFile: f.key, ClientCAFile: f.clientCA, MinVersion: f.minVersion,
		Logger: log, Metrics: metrics,
	})
	if err != nil {
		return nil, cli.Usagef("%v", err)
	}
	return w, nil
}

// checkTransport returns an error unless TLS is configured completely or not at all, and
// completely, with a policy, beyond loopback.
func (cfg *serveConfig) checkTransport(flags *pflag.FlagSet, from sources) error {
	var given, missing []string
	for _, f := range []struct{ name, value string }{{"tls-cert", cfg.tls.cert}, {"tls-key", cfg.tls.key}, {"tls-client-ca", cfg.tls.clientCA}} {
		if f.value == "" {
			missing = append(missing, "--"+f.name)
		} else {
			given = append(given, from.name(flags.Lookup(f.name)))
		}
	}
	needed := missing
	if cfg.policy == policy.AllowAll {
		needed = append(needed, "--policy allow-authenticated")
	}
	switch host, _, _ := net.SplitHostPort(cfg.listen); {
	case !onLoopback(host) && len(given) == 0 && len(needed) == 4:
		return cli.Usagef("%s: %q is not on loopback; without TLS the service listens on loopback only, such as 127.0.0.1:50051, [::1]:50051 or localhost:50051; for other addresses give %s",
			from.name(flags.Lookup("listen")), cfg.listen, listed(needed))
	case !onLoopback(host) && len(needed) > 0:
		return cli.Usagef("%s: %q is not on loopback; to listen there, give %s too", from.name(flags.Lookup("listen")), cfg.listen, listed(needed))
	case len(given) > 0 && len(missing) > 0:
		return cli.Usagef("%s needs %s", given[0], listed(missing))
	case len(given) == 0 && cfg.tls.minVersion != tls.VersionTLS13:
		return cli.Usagef("%s needs %s", from.name(flags.Lookup("tls-min-version")), listed(missing))
	case len(given) == 0 && cfg.policy != policy.AllowAll:
		return cli.Usagef("%s: callers are authenticated with TLS only; give %s", from.name(flags.Lookup("policy")), listed(missing))
	}
	return nil
}

// advertised returns the address by which other processes name this one: one that stands for
// all addresses of this machine is replaced by its name.
func advertised(address string, hostname func() (string, error)) string {
	host, port, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsUnspecified() {
		return address
	}
	name, err := hostname()
	if err != nil {
		return address
	}
	return net.JoinHostPort(name, port)
}

// listed returns a list of words as a sentence has it.
func listed(words []string) string {
	if len(words) == 1 {
		return words[0]
	}
	return strings.Join(words[:len(words)-1], ", ") + " and " + words[len(words)-1]
}

func parseTLSVersion(text string) (uint16, error) {
	switch text {
	case "1.2":
		return tls.VersionTLS12, nil
	case "1.3":
		return tls.VersionTLS13, nil
	}
	return 0, fmt.Errorf("%q is not one of 1.2, 1.3", text)
}

func parsePolicy(text string) (policy.Policy, error) {
	switch text {
	case "":
		return policy.AllowAll, nil
	case "allow-authenticated":
		return policy.AllowAuthenticated, nil
	}
	return policy.AllowAll, fmt.Errorf("%q is not a policy; want allow-authenticated", text)
}
