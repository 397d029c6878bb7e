package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"

	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/cli"
	"github.com/instanced/instanced/internal/journal"
	"github.com/instanced/instanced/internal/lifecycle"
	"github.com/instanced/instanced/internal/policy"
	"github.com/instanced/instanced/server"
	"github.com/instanced/instanced/server/admin"
	"github.com/instanced/instanced/server/ec2query"
	"github.com/instanced/instanced/server/simulator"
)

// closeGrace is how long the journal may take to close after the drain's deadline.
const closeGrace = 2 * time.Second

// serveConfig holds the flags of serve.
type serveConfig struct {
	listen      string
	adminListen string
	// maxAdminConnections is derived from how many files may be open.
	maxAdminConnections int
	tls                 tlsFlags
	policy              policy.Policy
	backend             string
	aws                 awsFlags

	dataDir         string
	etcdEndpoints   []string
	etcdPrefix      string
	etcd            journal.EtcdSecurity
	retention       time.Duration
	journalMaxBytes int64
	minFreeDisk     int64
	maxClientTokens int

	maxRequests    int
	maxStreams     int
	maxConnections int

	metricsPrincipals int

	simSpeed    float64
	simSeed     uint64
	simThrottle bool
	simFleet    string

	ec2Listen      string
	ec2Credentials string

	reconcileInterval time.Duration

	logFormat    string
	logLevel     slog.Level
	drainTimeout time.Duration
}

func newServeCommand(t *terminal) *cobra.Command {
	var cfg serveConfig
	cmd := &cobra.Command{
		Use:   "serve [flags]",
		Short: "Run the service",
		Long: `Serve runs the service: gRPC with reflection and health checks, in plaintext and
therefore on loopback only. Its state is kept in the data directory and survives restarts
and crashes.

With --tls-cert, --tls-key and --tls-client-ca it serves TLS, and each caller needs a client
certificate, which says who calls. With --policy allow-authenticated as well, it listens on
any address of --listen. The files are read again when they change. "instanced dev-certs"
makes certificates to try it with.

With --backend ec2 it manages the instances of an AWS account in one region. Credentials,
region and endpoint come from the usual places of the AWS SDKs.

With --ec2-listen it also speaks EC2's own protocol, for the AWS CLI, boto3 and every AWS
SDK. With --ec2-credentials it verifies the signatures of requests; without, it listens on
loopback only and trusts what callers say.

SIGTERM, an interrupt or closing the terminal shuts it down gracefully: health turns to
NOT_SERVING, streams get a goodbye, requests in flight finish, the journal closes, and the
exit status is 0. A second signal exits at once.

--config names a YAML file of settings; flags and environment variables take precedence over
it. "instanced config print" shows the effective settings, "instanced config check" checks a
file. SIGHUP reloads the file, the AWS credentials and the file of --ec2-credentials, and logs
which changes take effect only after a restart.

Traces are exported by OTLP if OTEL_EXPORTER_OTLP_ENDPOINT, or another of OpenTelemetry's
standard variables, asks for it.`,
		Example: t.Examples(
			"instanced serve",
			"instanced serve --sim-speed 1 --sim-throttle",
			"instanced serve --sim-fleet fleet.yaml --data-dir \"$(mktemp -d)\"",
			"instanced serve --ec2-listen 127.0.0.1:8580",
			"instanced serve --backend ec2 --aws-region eu-central-1 --manage-filter team=payments",
			"instanced serve --listen 0.0.0.0:50051 --tls-cert tls.crt --tls-key tls.key --tls-client-ca ca.crt --policy allow-authenticated",
			"instanced serve --config instanced.yaml",
			"INSTANCED_LISTEN=127.0.0.1:6000 instanced serve --log-format json",
		),
		Args:                  cli.NoArgs,
		DisableFlagsInUseLine: true,
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	cfg.bind(flags)
	t.addConfig(cmd)
	cli.CompleteWords(cmd, "backend", backendSimulator, backendEC2)
	cli.CompleteWords(cmd, "log-format", logAuto, logText, logJSON)
	cli.CompleteWords(cmd, "log-level", "debug", "info", "warn", "error")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		for _, name := range []string{"tls-cert", "tls-key"} {
			if flag := cmd.Root().Flags().Lookup(name); flag != nil && flag.Changed {
				return cli.Usagef("--%s before the verb is a flag of the client; give it after serve", name)
			}
		}
		t.Accept()
		if err := cfg.check(flags, t.sources); err != nil {
			return err
		}
		return journalError(serve(cmd.Context(), cfg, t, &settings{flags: flags, sources: t.sources, file: t.configFile}))
	}
	return cmd
}

// bind declares the flags of serve, and with them the keys of the configuration file: it is
// the one table of settings.
func (cfg *serveConfig) bind(flags *pflag.FlagSet) {
	flags.SortFlags = false
	section(flags, "", "", func(flags *pflag.FlagSet) {
		cli.Bind(flags, &cfg.listen, "listen", "address", "127.0.0.1:50051", "address to listen on, on loopback unless there are TLS and a policy; port 0 picks a free one", parseListen)
		cli.Bind(flags, &cfg.adminListen, "admin-listen", "address", "", "serve metrics and health on this address, such as 127.0.0.1:9090 (default: off)", parseAdminListen)
		cli.Bind(flags, &cfg.backend, "backend", "name", "simulator", "what manages the instances: simulator or ec2", cli.OneOf(backendSimulator, backendEC2))
	})
	section(flags, "tls", "tls-", cfg.tls.bind)
	section(flags, "", "", func(flags *pflag.FlagSet) {
		cli.Bind(flags, &cfg.policy, "policy", "name", "", "allow-authenticated: authenticated callers may read, start and stop, and nothing else (default: everything is permitted)", parsePolicy)
	})
	cfg.bindJournal(flags)
	section(flags, "journal", "journal-", func(flags *pflag.FlagSet) {
		cli.Bind(flags, &cfg.retention, "retention", "duration", "24h", "how long to keep history", cli.ParsePositiveDuration)
		cli.Bind(flags, &cfg.journalMaxBytes, "journal-max-bytes", "size", "1GiB", "maximum size of the history", parseJournalSize)
		cli.Bind(flags, &cfg.minFreeDisk, "min-free-disk", "size", "512MiB", "reject commands when the disk has less free space; 128MiB always stay reserved for the journal", parseSize)
		cli.Bind(flags, &cfg.maxClientTokens, "max-client-tokens", "number", "200000", "maximum number of client tokens to keep; one principal may use half of them", cli.ParseCount(1))
	})
	section(flags, "limits", "", func(flags *pflag.FlagSet) {
		cli.Bind(flags, &cfg.maxRequests, "max-requests", "number", strconv.Itoa(server.DefaultMaxRequests), "maximum concurrent requests; one caller may use half of them", cli.ParseCount(2))
		cli.Bind(flags, &cfg.maxStreams, "max-streams", "number", strconv.Itoa(server.DefaultMaxStreams), "maximum concurrent watches and waits; one caller may use half of them", cli.ParseCount(2))
		cli.Bind(flags, &cfg.maxConnections, "max-connections", "number", strconv.Itoa(server.DefaultMaxConnections), "maximum open connections; one caller may use half of them, and beyond the limit idle ones are closed", cli.ParseCount(1))
		cli.Bind(flags, &cfg.metricsPrincipals, "metrics-principals", "number", strconv.Itoa(server.DefaultMetricsPrincipals), "maximum number of principals with metrics of their own", cli.ParseCount(0))
	})
	section(flags, "", "", func(flags *pflag.FlagSet) {
		cli.Bind(flags, &cfg.reconcileInterval, "reconcile-interval", "duration", "5m", "interval between full reconciliations with the backend", cli.ParsePositiveDuration)
	})
	cfg.aws.bind(flags)
	section(flags, "simulator", "sim-", func(flags *pflag.FlagSet) {
		cli.Bind(flags, &cfg.simSpeed, "sim-speed", "number", strconv.FormatFloat(sim.DefaultSpeed, 'f', -1, 64), "speed of the simulator: 1 is like EC2, 0 means no delays", parseSpeed)
		cli.Bind(flags, &cfg.simSeed, "sim-seed", "number", "1", "seed of the simulator's delays and probabilities", parseSeed)
		flags.BoolVar(&cfg.simThrottle, "sim-throttle", false, "throttle requests as EC2 does")
		flags.StringVar(&cfg.simFleet, "sim-fleet", "", "YAML or JSON `file` of the initial instances (default: the built-in fleet)")
	})
	section(flags, "ec2-endpoint", "ec2-", func(flags *pflag.FlagSet) {
		cli.Bind(flags, &cfg.ec2Listen, "ec2-listen", "address", "", "also serve EC2's Query protocol on this address, such as 127.0.0.1:8580", parseEC2Listen)
		flags.StringVar(&cfg.ec2Credentials, "ec2-credentials", "", "JSON `file` of the access keys to verify signatures with there (default: signatures are not verified)")
	})
	section(flags, "log", "log-", func(flags *pflag.FlagSet) {
		cli.Bind(flags, &cfg.logFormat, "log-format", "format", logAuto, "text, json, or auto: text on a terminal, otherwise json", cli.OneOf(logAuto, logText, logJSON))
		cli.Bind(flags, &cfg.logLevel, "log-level", "level", "info", "debug, info, warn or error", parseLevel)
	})
	section(flags, "", "", func(flags *pflag.FlagSet) {
		cli.Bind(flags, &cfg.drainTimeout, "drain-timeout", "duration", "10s", "how long requests in flight may take to finish at shutdown", cli.ParseDuration)
	})
}

// check returns an error unless the settings go together.
func (cfg *serveConfig) check(flags *pflag.FlagSet, from sources) error {
	if err := cfg.checkJournal(flags, from); err != nil {
		return err
	}
	if err := cfg.checkTransport(flags, from); err != nil {
		return err
	}
	if cfg.ec2Credentials != "" && cfg.ec2Listen == "" {
		return cli.Usagef("%s needs --ec2-listen, which opens the EC2 endpoint", from.name(flags.Lookup("ec2-credentials")))
	}
	return checkBackendFlags(cfg.backend, flags, from)
}

// bindJournal declares the flags that locate the journal.
func (cfg *serveConfig) bindJournal(flags *pflag.FlagSet) {
	section(flags, "journal", "", func(flags *pflag.FlagSet) {
		flags.StringVar(&cfg.dataDir, "data-dir", defaultDataDir(), "`directory` of the embedded journal, for one process at a time")
	})
	section(flags, "journal.etcd", "etcd-", func(flags *pflag.FlagSet) {
		cli.Bind(flags, &cfg.etcdEndpoints, "etcd-endpoints", "urls", "", "keep the journal in this etcd cluster, such as http://127.0.0.1:2379 or https://etcd.example.com:2379; separate several by commas", parseEndpoints)
		cli.Bind(flags, &cfg.etcdPrefix, "etcd-prefix", "prefix", "/instanced", "prefix of the journal's keys in etcd", parsePrefix)
		flags.StringVar(&cfg.etcd.CAFile, "etcd-ca", "", "PEM `file` of the certificate authorities of etcd (default: the system's)")
		flags.StringVar(&cfg.etcd.CertFile, "etcd-cert", "", "PEM `file` of the client certificate for etcd")
		flags.StringVar(&cfg.etcd.KeyFile, "etcd-key", "", "PEM `file` of the private key of --etcd-cert")
		flags.StringVar(&cfg.etcd.ServerName, "etcd-server-name", "", "`name` that etcd's certificates must have (default: the host of the endpoint)")
		flags.StringVar(&cfg.etcd.Username, "etcd-username", "", "log in to etcd as this `user`; its password is in --etcd-password-file or INSTANCED_ETCD_PASSWORD")
		flags.StringVar(&cfg.etcd.PasswordFile, "etcd-password-file", "", "`file` of the password of --etcd-username")
		cli.Bind(flags, &cfg.etcd.Password, etcdPassword, secret, "", "", func(text string) (string, error) { return text, nil })
		flags.Lookup(etcdPassword).Hidden = true // and rejected
	})
}

// etcdPassword is a setting of the environment and the file only.
const etcdPassword = "etcd-password"

// checkEtcd returns an error unless the settings of etcd go together.
func (cfg *serveConfig) checkEtcd(flags *pflag.FlagSet, from sources) error {
	name := func(flag string) string { return from.name(flags.Lookup(flag)) }
	for _, flag := range etcdSecurity {
		if flags.Lookup(flag).Value.String() == "" {
			continue
		}
		if len(cfg.etcdEndpoints) == 0 {
			return cli.Usagef("%s needs --etcd-endpoints, which keeps the journal in etcd", name(flag))
		}
		if strings.HasPrefix(flag, "etcd-user") || strings.HasPrefix(flag, etcdPassword) {
			continue
		}
		for _, endpoint := range cfg.etcdEndpoints {
			if !strings.HasPrefix(endpoint, "https://") {
				return cli.Usagef("%s is for TLS, but %s in %s does not begin with https://", name(flag), masked(endpoint), name("etcd-endpoints"))
			}
		}
	}
	s := cfg.etcd
	switch {
	case s.CertFile != "" && s.KeyFile == "":
		return cli.Usagef("%s needs --etcd-key, the private key of the certificate", name("etcd-cert"))
	case s.KeyFile != "" && s.CertFile == "":
		return cli.Usagef("%s needs --etcd-cert, the certificate of the private key", name("etcd-key"))
	case s.PasswordFile != "" && s.Password != "":
		return cli.Usagef("%s and %s are mutually exclusive", name("etcd-password-file"), name(etcdPassword))
	case s.Username != "" && s.PasswordFile == "" && s.Password == "":
		return cli.Usagef("%s needs the password of the user, in --etcd-password-file or INSTANCED_ETCD_PASSWORD", name("etcd-username"))
	case s.Username == "" && s.PasswordFile != "":
		return cli.Usagef("%s needs --etcd-username, the user whose password it is", name("etcd-password-file"))
	case s.Username == "" && s.Password != "":
		return cli.Usagef("%s needs --etcd-username, the user whose password it is", name(etcdPassword))
	}
	return nil
}

// etcdSecurity are the settings of TLS and the user of etcd.
var etcdSecurity = []string{"etcd-ca", "etcd-cert", "etcd-key", "etcd-server-name", "etcd-username", "etcd-password-file", etcdPassword}

// checkJournal returns an error unless the flags locate exactly one journal.
func (cfg *serveConfig) checkJournal(flags *pflag.FlagSet, from sources) error {
	switch {
	case flags.Changed("data-dir") && cfg.dataDir == "":
		return cli.Usagef("%s is empty; give a directory, such as %s", from.name(flags.Lookup("data-dir")), cmp.Or(defaultDataDir(), "/var/lib/instanced"))
	case len(cfg.etcdEndpoints) > 0 && flags.Changed("data-dir"):
		return cli.Usagef("%s and %s are mutually exclusive", from.name(flags.Lookup("data-dir")), from.name(flags.Lookup("etcd-endpoints")))
	case len(cfg.etcdEndpoints) == 0 && cfg.dataDir == "":
		return cli.Usagef("there is no home directory to keep the journal in; give another directory with --data-dir")
	}
	return cfg.checkEtcd(flags, from)
}

// serve is the composition root: it creates every part, connects them, and closes them in
// reverse order.
func serve(ctx context.Context, cfg serveConfig, t *terminal, effective *settings) (err error) {
	// A hangup during startup is ignored.
	t.OnHangup(func() {})
	// A closed standard error must not end the process: log lines are lost instead.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	level := new(slog.LevelVar)
	level.Set(cfg.logLevel)
	log, closeLog := newLogger(cfg.logFormat, level, t.Stderr)
	defer closeLog()
	var stopping time.Time
	defer func() {
		if !stopping.IsZero() {
			log.Info("stopped", "took", time.Since(stopping).Round(time.Millisecond))
		}
	}()

	if err := adoptLimits(memlimit.FromCgroup).fit(&cfg, effective, log); err != nil {
		return err
	}
	registry := newRegistry()
	stage := newStage()
	status := &statusPage{cfg: cfg, level: level, stage: stage, started: time.Now()}
	certificates, err := cfg.tls.watch(log.With("part", "tls"), registry)
	if err != nil {
		return err
	}
	adminServer := admin.New(admin.Config{
		Metrics: registry, Logger: log.With("part", "admin"),
		LogLevel: level, ParseLevel: parseLevel, Status: status.sections,
		MaxConnections: cfg.maxAdminConnections,
	})
	adminServer.AddReady(stage.checks()...)
	if err := serveAdmin(cfg, adminServer, log); err != nil {
		return err
	}
	// It answers until everything else has ended.
	defer func() { _ = adminServer.Close() }() // nothing is lost with a scrape

	tracing, flushTraces, err := startTracing(ctx, log.With("part", "tracing"))
	if err != nil {
		return err
	}
	defer flushTraces()

	backend, err := newBackendSetup(ctx, cfg, registry, log)
	if err != nil {
		return err
	}
	defer backend.Close()

	ec2Listener, credentials, err := listenEC2(cfg, log)
	if err != nil {
		return err
	}
	if ec2Listener != nil {
		defer func() { _ = ec2Listener.Close() }() // closed already once it was served
	}
	lis, err := net.Listen("tcp", cfg.listen)
	if err != nil {
		return cfg.errListen(cfg.listen, "--listen", err)
	}
	defer func() { _ = lis.Close() }() // closed already once it was served
	if ec2Listener != nil {
		// The port is free. EC2's clients know no health checks, so it opens only once
		// their requests can be served.
		_ = ec2Listener.Close()
	}

	stage.waitFor("the journal to open")
	j, err := journal.Open(ctx, journal.Config{
		DataDir:         cfg.dataDir,
		Endpoints:       cfg.etcdEndpoints,
		Prefix:          cfg.etcdPrefix,
		Security:        cfg.etcd,
		Logger:          log.With("part", "journal"),
		Retention:       cfg.retention,
		MaxBytes:        cfg.journalMaxBytes,
		MinFreeDisk:     cmp.Or(cfg.minFreeDisk, -1),
		MaxClientTokens: cfg.maxClientTokens,
		Metrics:         registry,
		Version:         cli.Version(),
		Address:         advertised(lis.Addr().String(), os.Hostname),
	})
	if len(cfg.etcdEndpoints) == 0 && (errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.ENOTDIR)) {
		return fmt.Errorf("%w; choose another directory with --data-dir", err)
	}
	if err != nil {
		return err
	}
	// The drain may use the whole deadline; closing the journal gets closeGrace beyond it.
	deadline := &drainDeadline{}
	deadline.timeout.Store(int64(cfg.drainTimeout))
	defer func() {
		ctx, cancel := deadline.context(closeGrace)
		defer cancel()
		err = errors.Join(err, j.Close(ctx))
	}()

	// The simulator restores its instances from the journal if it has any.
	records := j.Snapshot().Records
	restored := len(records)
	if restored > 0 && cfg.simFleet != "" {
		log.Warn("ignoring the instances of the fleet file: the journal already has instances", "file", cfg.simFleet, "instances", restored)
	}

	stage.waitFor("the backend to be checked")
	if err := backend.check(ctx, records); err != nil {
		return err
	}

	svc := lifecycle.New(lifecycle.Config{
		Journal:           j,
		Backend:           backend.Backend,
		Logger:            log.With("part", "lifecycle"),
		Metrics:           registry,
		ReconcileInterval: cfg.reconcileInterval,
	})
	adminServer.AddLive(liveChecks(svc)...)
	adminServer.AddReady(readyChecks(svc)...)
	stage.waitFor("the first comparison with the backend")
	svc.SetPolicy(cfg.policy)
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- svc.Run(running) }()
	defer func() {
		stop()
		err = errors.Join(err, <-ended)
	}()

	settings := server.Config{
		Lifecycle: svc,
		Version:   cli.Version(),
		Backend:   cfg.backend,
		Logger:    log.With("part", "server"),
		Tracing:   tracing,

		MaxRequests:    cfg.maxRequests,
		MaxStreams:     cfg.maxStreams,
		MaxConnections: cfg.maxConnections,

		Metrics:           registry,
		MetricsPrincipals: cmp.Or(cfg.metricsPrincipals, -1),
	}
	if certificates != nil {
		settings.TLS = certificates.Config
		var watching sync.WaitGroup
		watching.Go(func() { certificates.Run(running) })
		defer watching.Wait()
		defer stop()
	}
	var controls ec2query.Simulator
	if backend.simulator != nil {
		simulation := simulator.New(svc, backend.simulator)
		settings.Register = func(r grpc.ServiceRegistrar) { simulation.Register(r) }
		controls = simulation
	}
	reload := &reload{
		log: log, cfg: cfg, backend: backend, settings: effective, environ: t.Environ,
		parts: changeableParts{level: level, deadline: deadline},
	}
	t.OnHangup(func() { reload.run(ctx) })
	srv := server.New(settings)
	status.parts.Store(&statusParts{svc, srv})
	served := make(chan error, 2)
	go func() { served <- srv.Serve(lis) }()
	drainers := []drainer{srv}
	defer func() {
		ctx, cancel := deadline.context(0)
		defer cancel()
		if shutDown(ctx, drainers) != nil {
			err = errors.Join(err, fmt.Errorf("requests did not finish within --drain-timeout %v and were cut off", deadline.duration()))
		}
		for range drainers {
			err = errors.Join(err, <-served)
		}
	}()
	var door *ec2query.Server
	if ec2Listener != nil {
		door = ec2query.New(ec2query.Config{
			Lifecycle:   svc,
			Simulator:   controls,
			Credentials: credentials,
			Logger:      log.With("part", "ec2query"),
			Tracing:     tracing,

			MaxRequests:    cfg.maxRequests,
			MaxConnections: cfg.maxConnections,

			Metrics:           registry,
			MetricsPrincipals: cmp.Or(cfg.metricsPrincipals, -1),
		})
		reload.door.Store(door)
	}

	ready := svc.Ready()
	for {
		select {
		case <-ready:
			ready = nil
			g := &banner{
				cfg: cfg, address: lis.Addr().String(), info: svc.Info(), restored: restored > 0,
				faults: backend.faults, awsRegion: backend.aws.Region, records: j.Snapshot().Records,
			}
			if door != nil {
				again, err := listenForEC2(cfg, ec2Listener.Addr().String())
				if err != nil {
					return err
				}
				g.ec2Listen = again.Addr()
				drainers = append(drainers, door)
				go func() { served <- door.Serve(again) }()
			}
			stage.waitFor("")
			log.Info("serving", g.logAttrs()...)
			g.print(t.Stdout)
		case runErr := <-ended:
			ended <- nil
			if runErr == nil {
				runErr = errors.New("the service layer stopped unexpectedly")
			}
			return runErr
		case serveErr := <-served:
			served <- nil
			return fmt.Errorf("cannot serve: %w", serveErr)
		case <-ctx.Done():
			stage.draining.Store(true)
			stopping = time.Now()
			log.Info("shutting down", "cause", context.Cause(ctx), "within", deadline.duration())
			j.Drain()
			return nil
		}
	}
}

// drainer is a server that shuts down gracefully.
type drainer interface{ Shutdown(context.Context) error }

// shutDown shuts servers down concurrently.
func shutDown(ctx context.Context, servers []drainer) error {
	ended := make(chan error, len(servers))
	for _, s := range servers {
		go func() { ended <- s.Shutdown(ctx) }()
	}
	var err error
	for range servers {
		err = errors.Join(err, <-ended)
	}
	return err
}

// drainDeadline is the deadline of the shutdown, counted from the first call of context.
type drainDeadline struct {
	timeout atomic.Int64 // a time.Duration, which a reload may change
	at      time.Time
}

func (d *drainDeadline) duration() time.Duration { return time.Duration(d.timeout.Load()) }

// context returns a context that ends at the deadline, but no sooner than minTimeout from now.
func (d *drainDeadline) context(minTimeout time.Duration) (context.Context, context.CancelFunc) {
	if d.at.IsZero() {
		d.at = time.Now().Add(d.duration())
	}
	at := d.at
	if soonest := time.Now().Add(minTimeout); at.Before(soonest) {
		at = soonest
	}
	return context.WithDeadline(context.Background(), at)
}

// errListen says why the address of a flag cannot be listened on.
func (cfg *serveConfig) errListen(address, flag string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		for other, taken := range map[string]string{"--listen": cfg.listen, "--admin-listen": cfg.adminListen, "--ec2-listen": cfg.ec2Listen} {
			if other != flag && portOf(taken) == portOf(address) {
				return cli.Usagef("%s and %s both use port %s; give each its own", flag, other, portOf(address))
			}
		}
	}
	cause := innermost(err)
	if errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT) {
		cause = fmt.Errorf("%w, so this machine does not have the address, or no IPv6", cause)
	}
	return fmt.Errorf("cannot listen on %s: %w; choose another address with %s", address, cause, flag)
}

// innermost returns the operating system's own error, without the path or address, which the
// surrounding message already names.
func innermost(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

// defaultDataDir returns the XDG state directory of instanced, or "" without a home directory.
func defaultDataDir() string {
	if state := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(state) {
		return filepath.Join(state, "instanced")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".local", "state", "instanced")
}
