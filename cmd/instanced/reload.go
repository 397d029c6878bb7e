package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/spf13/pflag"

	"github.com/instanced/instanced/internal/cli"
	"github.com/instanced/instanced/server/ec2query"
)

// reload is what SIGHUP does to the service: it reads the configuration file and the
// credentials again. Flags and environment variables are not read again.
type reload struct {
	log     *slog.Logger
	cfg     serveConfig
	backend *backendSetup
	// door is nil without an EC2 endpoint.
	door atomic.Pointer[ec2query.Server]

	environ cli.Environment
	// settings are the ones in effect.
	settings *settings
	parts    changeableParts
}

// changeableParts are what settings can change while the service runs.
type changeableParts struct {
	level    *slog.LevelVar
	deadline *drainDeadline
}

// changeable applies the settings that can change while the service runs, by flag.
var changeable = map[string]func(parts changeableParts, cfg serveConfig){
	"log-level":     func(parts changeableParts, cfg serveConfig) { parts.level.Set(cfg.logLevel) },
	"drain-timeout": func(parts changeableParts, cfg serveConfig) { parts.deadline.timeout.Store(int64(cfg.drainTimeout)) },
}

// run reads the configuration file and the credentials again. Unusable ones are logged, and the
// old ones stay.
func (r *reload) run(ctx context.Context) {
	done := []string{}
	if r.settings.file != "" && r.reloadFile(ctx) {
		done = append(done, "configuration file")
	}
	if door := r.door.Load(); door != nil && r.cfg.ec2Credentials != "" {
		credentials, err := readCredentials(r.cfg.ec2Credentials, r.log)
		if err != nil {
			r.log.Error("cannot reload the access keys of the EC2 endpoint; keeping the old ones", "error", err)
		} else {
			door.SetCredentials(credentials)
			done = append(done, "access keys of the EC2 endpoint")
		}
	}
	if r.backend.ec2 != nil {
		if err := r.backend.reloadAWS(ctx, r.cfg.aws); err != nil {
			r.log.Error("cannot reload the AWS credentials; keeping the old ones", "error", err)
		} else {
			done = append(done, "AWS credentials")
		}
	}
	if len(done) == 0 {
		r.log.Warn("nothing was reloaded", "ignored", "flags and environment, until a restart")
		return
	}
	r.log.Info("reloaded", "what", done, "ignored", "flags and environment, until a restart")
}

// reloadFile applies the changes of the configuration file that can be applied, and logs each.
// If anything is wrong with the file, nothing is applied.
func (r *reload) reloadFile(ctx context.Context) bool {
	cfg, next, err := r.settings.reread(r.environ)
	if err != nil {
		for problem := range strings.Lines(err.Error()) {
			r.log.Error("cannot reload the configuration file; keeping the old settings", "error", strings.TrimSuffix(problem, "\n"))
		}
		return false
	}
	next.flags.VisitAll(func(flag *pflag.Flag) {
		old := r.settings.flags.Lookup(flag.Name)
		if slices.Equal(textsOf(old.Value), textsOf(flag.Value)) {
			return
		}
		attrs := []any{"key", keyOf(flag), "was", shown(old), "is", shown(flag), "source", next.sources.of(flag).String()}
		apply, ok := changeable[flag.Name]
		if !ok {
			r.log.Warn("a changed setting is ignored until a restart", attrs...)
			return
		}
		apply(r.parts, cfg)
		if err := old.Value.Set(flag.Value.String()); err != nil {
			panic(fmt.Sprintf("a value that was accepted: %v", err))
		}
		line := slog.NewRecord(time.Now(), slog.LevelInfo, "setting changed", 0)
		line.Add(attrs...)
		// Straight to the handler, so that a level that was just set does not hide it.
		_ = r.log.Handler().Handle(ctx, line) // there is nowhere to report a failure to log
	})
	return true
}

// awsCredentials can be replaced while in use.
type awsCredentials struct {
	now atomic.Pointer[aws.CredentialsProvider]
}

// Retrieve implements [aws.CredentialsProvider].
func (c *awsCredentials) Retrieve(ctx context.Context) (aws.Credentials, error) {
	return (*c.now.Load()).Retrieve(ctx)
}

// replaceable makes the credentials of a configuration replaceable.
func replaceable(cfg *aws.Config) (*awsCredentials, *aws.CredentialsCache) {
	c := &awsCredentials{}
	found := cfg.Credentials
	c.now.Store(&found)
	cache := aws.NewCredentialsCache(c)
	cfg.Credentials = cache
	return c, cache
}

// reloadAWS loads the AWS credentials again, and uses them if there are any.
func (b *backendSetup) reloadAWS(ctx context.Context, flags awsFlags) error {
	settings, err := loadAWS(ctx, flags, b.log)
	if err != nil {
		return err
	}
	if err := checkCredentials(ctx, settings.AWS); err != nil {
		return err
	}
	b.credentials.now.Store(&settings.AWS.Credentials)
	b.cache.Invalidate()
	return nil
}
