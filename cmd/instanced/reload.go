package main

import (
	"context"
	"log/slog"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/instanced/instanced/server/ec2query"
)

// reload is what SIGHUP does to the service: it reads the credentials again. Flags and
// environment variables are not read again.
type reload struct {
	log     *slog.Logger
	cfg     serveConfig
	backend *backendSetup
	// door is nil without an EC2 endpoint.
	door atomic.Pointer[ec2query.Server]
}

// run reads the credentials again. Unusable ones are logged, and the old ones stay.
func (r *reload) run(ctx context.Context) {
	done := []string{}
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
	r.log.Info("reloaded", "what", done, "ignored", "flags and environment, until a restart")
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
