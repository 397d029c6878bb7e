package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/instanced/instanced/internal/backend/ec2"
	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/cli"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
	"github.com/instanced/instanced/internal/lifecycle"
	"github.com/instanced/instanced/server/simulator"
)

// The values of --backend.
const (
	backendSimulator = "simulator"
	backendEC2       = "ec2"
)

// checkBackendFlags rejects flags that configure the other backend.
func checkBackendFlags(backend string, flags *pflag.FlagSet, from sources) (err error) {
	ofAWS := make(map[string]bool)
	for _, name := range awsFlagNames() {
		ofAWS[name] = true
	}
	flags.Visit(func(flag *pflag.Flag) {
		switch {
		case backend == backendEC2 && strings.HasPrefix(flag.Name, "sim-"):
			err = errors.Join(err, cli.Usagef("%s configures the simulator and cannot be used with --backend ec2", from.name(flag)))
		case backend == backendSimulator && ofAWS[flag.Name]:
			err = errors.Join(err, cli.Usagef("%s needs --backend ec2; the simulator does not use AWS", from.name(flag)))
		}
	})
	return err
}

// backendSetup is the backend that the flags select, with what serve needs to manage it.
type backendSetup struct {
	lifecycle.Backend
	log *slog.Logger

	simulator *sim.Backend // nil with EC2
	// faults is whether the fleet file has faults.
	faults bool

	ec2 *ec2.Backend // nil with the simulator
	aws aws.Config
	// credentials are the AWS credentials as last loaded; the SDK reads them through cache.
	credentials *awsCredentials
	cache       *aws.CredentialsCache
}

func newBackendSetup(ctx context.Context, cfg serveConfig, metrics prometheus.Registerer, log *slog.Logger) (*backendSetup, error) {
	if cfg.backend == backendEC2 {
		log = log.With("part", "ec2")
		settings, err := loadAWS(ctx, cfg.aws, log)
		if err != nil {
			return nil, err
		}
		settings.Metrics = metrics
		credentials, cache := replaceable(&settings.AWS)
		b := ec2.New(settings)
		return &backendSetup{Backend: b, log: log, ec2: b, aws: settings.AWS, credentials: credentials, cache: cache}, nil
	}
	fleet, faults, err := readFleet(cfg.simFleet)
	if err != nil {
		return nil, err
	}
	log = log.With("part", "simulator")
	b := sim.New(sim.Config{
		Seed:     cfg.simSeed,
		Speed:    cfg.simSpeed,
		Throttle: cfg.simThrottle,
		Fleet:    fleet,
		Faults:   faults,
		Logger:   log,
		Metrics:  metrics,
	})
	if err := b.Err(); err != nil {
		b.Close()
		return nil, fleetError(cfg.simFleet, err)
	}
	return &backendSetup{Backend: b, log: log, simulator: b, faults: cfg.simFleet != "" && len(faults) > 0}, nil
}

// Close closes the backend.
func (b *backendSetup) Close() {
	if b.ec2 != nil {
		b.ec2.Close()
		return
	}
	b.simulator.Close()
}

// check returns why the backend cannot be used with the recorded instances. If AWS cannot be
// reached, that is an error only without recorded instances to serve meanwhile.
func (b *backendSetup) check(ctx context.Context, records []*journal.Record) error {
	for _, r := range records {
		if err := b.belongs(r.Instance); err != nil {
			return err
		}
	}
	if b.ec2 == nil {
		return nil
	}
	err := checkCredentials(ctx, b.aws)
	if err == nil {
		err = checkDescribe(ctx, b.ec2)
	}
	switch {
	case ctx.Err() != nil:
		return nil // stopped during startup
	case len(records) > 0 && errors.Is(err, errUnreachable):
		b.log.Warn("AWS cannot be reached; serving the recorded instances and rejecting commands", "error", err)
		return nil
	}
	return err
}

// belongs returns an error for an instance of another backend: reconciling its journal with
// this backend would remove everything.
func (b *backendSetup) belongs(i *instance.Instance) error {
	const advice = "choose another journal with --data-dir or --etcd-prefix"
	switch {
	case b.ec2 == nil && i.Simulator == nil:
		return fmt.Errorf("the journal has instances of EC2 (%s), and --backend is %s; %s", i.ID, backendSimulator, advice)
	case b.ec2 != nil && i.Simulator != nil:
		return fmt.Errorf("the journal has instances of the simulator (%s), and --backend is %s; %s", i.ID, backendEC2, advice)
	case b.ec2 != nil && i.Region != b.aws.Region:
		return fmt.Errorf("the journal has instances of the region %s (%s), and the region is %s; %s", i.Region, i.ID, b.aws.Region, advice)
	}
	return nil
}

// fleetError lists everything that is wrong with the instances and faults of a fleet file.
func fleetError(name string, err error) error {
	e, ok := errors.AsType[*instance.Error](err)
	if !ok || len(e.Violations) == 0 {
		return cli.Usagef("invalid fleet file %s: %v", name, err)
	}
	lines := make([]string, len(e.Violations))
	for i, v := range e.Violations {
		lines[i] = v.Field + ": " + v.Description
	}
	return cli.Usagef("invalid fleet file %s: %s", name, strings.Join(lines, "; "))
}

// readFleet returns the initial instances and faults.
func readFleet(name string) ([]sim.Spec, []sim.Fault, error) {
	if name == "" {
		return sim.BuiltinFleet(), sim.BuiltinFaults(), nil
	}
	file, err := os.ReadFile(name)
	if err != nil {
		return nil, nil, cli.Usagef("cannot read the fleet file %s: %v", name, innermost(err))
	}
	req, err := simulator.ParseFleet(file)
	if err != nil {
		return nil, nil, cli.Usagef("invalid fleet file %s: %v", name, err)
	}
	fleet, faults := simulator.Fleet(req)
	return fleet, faults, nil
}
