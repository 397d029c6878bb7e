package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/spf13/pflag"

	"github.com/instanced/instanced/internal/backend/ec2"
	"github.com/instanced/instanced/internal/backend/sim"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/journal"
	"github.com/instanced/instanced/internal/lifecycle"
	"github.com/instanced/instanced/server/simulator"
)

// The words of --backend.
const (
	backendSimulator = "simulator"
	backendEC2       = "ec2"
)

// suitBackend refuses flags that say something of another backend.
func suitBackend(backend string, flags *pflag.FlagSet) (err error) {
	ofAWS := make(map[string]bool)
	for _, name := range awsFlagNames() {
		ofAWS[name] = true
	}
	flags.Visit(func(flag *pflag.Flag) {
		switch {
		case backend == backendEC2 && strings.HasPrefix(flag.Name, "sim-"):
			err = errors.Join(err, usagef("--%s is the simulator's; --backend ec2 has EC2's own instances", flag.Name))
		case backend == backendSimulator && ofAWS[flag.Name]:
			err = errors.Join(err, usagef("--%s is for --backend ec2; the simulator needs no AWS", flag.Name))
		}
	})
	return err
}

// backing is the backend that the flags choose.
type backing struct {
	lifecycle.Backend
	log *slog.Logger

	simulator *sim.Backend // nil with EC2
	// faults is whether the fleet file has some.
	faults bool

	ec2 *ec2.Backend // nil with the simulator
	aws aws.Config
	// credentials are those of aws, as they were found last; cache has them for use.
	credentials *awsCredentials
	cache       *aws.CredentialsCache
}

func newBacking(ctx context.Context, cfg serveConfig, log *slog.Logger) (*backing, error) {
	if cfg.backend == backendEC2 {
		log = log.With("part", "ec2")
		settings, err := loadAWS(ctx, cfg.aws, log)
		if err != nil {
			return nil, err
		}
		credentials, cache := replaceable(&settings.AWS)
		b := ec2.New(settings)
		return &backing{Backend: b, log: log, ec2: b, aws: settings.AWS, credentials: credentials, cache: cache}, nil
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
	})
	if err := b.Err(); err != nil {
		b.Close()
		return nil, fleetError(cfg.simFleet, err)
	}
	return &backing{Backend: b, log: log, simulator: b, faults: cfg.simFleet != "" && len(faults) > 0}, nil
}

// Close ends what is under way at the backend.
func (b *backing) Close() {
	if b.ec2 != nil {
		b.ec2.Close()
		return
	}
	b.simulator.Close()
}

// check returns in a sentence why the backend cannot be used with what the journal knows.
// AWS that cannot be reached is no such reason when there is something to serve meanwhile.
func (b *backing) check(ctx context.Context, records []*journal.Record) error {
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
		return nil // told to end before it began
	case len(records) > 0 && errors.Is(err, errUnreachable):
		b.log.Warn("what the journal knows is served meanwhile, and commands are refused", "error", err)
		return nil
	}
	return err
}

// belongs returns an error for an instance that can only be another backend's: compared
// with this one, everything in its journal would be removed.
func (b *backing) belongs(i *instance.Instance) error {
	const advice = "--data-dir or --etcd-prefix names another"
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

// fleetError lists all that is wrong with the instances and faults of a fleet file.
func fleetError(name string, err error) error {
	e, ok := errors.AsType[*instance.Error](err)
	if !ok || len(e.Violations) == 0 {
		return usagef("the fleet file %s is wrong: %v", name, err)
	}
	lines := make([]string, len(e.Violations))
	for i, v := range e.Violations {
		lines[i] = v.Field + ": " + v.Description
	}
	return usagef("the fleet file %s is wrong: %s", name, strings.Join(lines, "; "))
}

// readFleet returns the instances and the faults to begin with.
func readFleet(name string) ([]sim.Spec, []sim.Fault, error) {
	if name == "" {
		return sim.BuiltinFleet(), sim.BuiltinFaults(), nil
	}
	file, err := os.ReadFile(name)
	if err != nil {
		return nil, nil, usagef("the fleet file %s cannot be read: %v", name, innermost(err))
	}
	req, err := simulator.ParseFleet(file)
	if err != nil {
		return nil, nil, usagef("the fleet file %s is wrong: %v", name, err)
	}
	fleet, faults := simulator.Fleet(req)
	return fleet, faults, nil
}
