package ec2

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsec2 "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go/middleware"

	"github.com/instanced/instanced/internal/backend/ec2/dispatch"
	"github.com/instanced/instanced/internal/instance"
)

// retryUnavailable is when to retry a call that EC2 could not serve.
const retryUnavailable = time.Second

func ended(term instance.Term) <-chan struct{} {
	if term == nil {
		return nil
	}
	return term.Done()
}

// client makes single calls to EC2 and converts the results. It retries nothing.
type client struct {
	api     *awsec2.Client
	region  string
	timeout time.Duration
	log     *slog.Logger
	breaker *breaker
	metrics *metrics
}

// instant is a time that is set and read without a lock; zero before it is set.
type instant struct{ atomic.Pointer[time.Time] }

func (i *instant) set(t time.Time) { i.Store(&t) }

func (i *instant) get() time.Time {
	if t := i.Load(); t != nil {
		return *t
	}
	return time.Time{}
}

// markedCredentials marks errors of the source of credentials, and notes when the credentials
// expire; zero for never.
type markedCredentials struct {
	aws.CredentialsProvider
	expiry *instant
}

func (s markedCredentials) Retrieve(ctx context.Context) (aws.Credentials, error) {
	c, err := s.CredentialsProvider.Retrieve(ctx)
	if err != nil && ctx.Err() == nil {
		err = &credentialsError{err}
	}
	switch {
	case err != nil:
	case c.CanExpire && !c.Expires.Equal(s.expiry.get()):
		s.expiry.set(c.Expires)
	case !c.CanExpire && !s.expiry.get().IsZero():
		s.expiry.set(time.Time{})
	}
	return c, err
}

func newClient(cfg Config, m *metrics, expiry *instant) *client {
	api := awsec2.NewFromConfig(cfg.AWS, func(o *awsec2.Options) {
		o.Retryer = aws.NopRetryer{}
		o.APIOptions = append(o.APIOptions, withLenientDecoding)
		o.HTTPClient = newFencedClient(o.HTTPClient)
		if o.Credentials != nil {
			o.Credentials = markedCredentials{o.Credentials, expiry}
		}
	})
	return &client{
		api:     api,
		region:  cfg.AWS.Region,
		timeout: cfg.CallTimeout,
		log:     cfg.Logger,
		breaker: &breaker{openFor: cfg.CallTimeout + openMargin},
		metrics: m,
	}
}

// fail classifies an error, and logs what only the operator can fix.
func (c *client) fail(action instance.Verb, err error, asked []instance.ID) *failure {
	f := failureOf(err, asked)
	if f.credentials {
		c.log.Error("EC2 cannot be used: this service's own credentials are missing or refused", "action", string(action), "error", err)
	}
	return f
}

// record notes how a call ended; f is nil if it succeeded.
func (c *client) record(ctx context.Context, action instance.Verb, sent time.Time, f *failure) {
	c.metrics.actions[action].countCall(time.Since(sent), f)
	c.breaker.record(ctx, sent, f)
}

// mutate carries a verb out on instances. EC2 returns no states for a reboot. Changes that cannot
// be decoded are left out.
func (c *client) mutate(ctx context.Context, k dispatch.Key, ids []instance.ID) (map[instance.ID]instance.StateChange, *failure) {
	sent := time.Now()
	calling, cancel := context.WithTimeout(withFence(ctx, k.Term), c.timeout)
	calling, span := c.startAttempt(calling, k.Verb, ids)
	lines, metadata, err := c.send(calling, k, ids)
	cancel()
	if err != nil {
		f := c.fail(k.Verb, err, ids)
		endAttempt(span, metadata, f)
		c.record(ctx, k.Verb, sent, f)
		return nil, f
	}
	endAttempt(span, metadata, nil)
	c.record(ctx, k.Verb, sent, nil)
	changes := make(map[instance.ID]instance.StateChange, len(lines))
	for _, line := range lines {
		before, errBefore := stateOf(line.PreviousState)
		after, errAfter := stateOf(line.CurrentState)
		if errBefore == nil && errAfter == nil {
			id := instance.ID(aws.ToString(line.InstanceId))
			changes[id] = instance.StateChange{ID: id, Previous: before, Current: after, At: instance.WallClock(sent)}
		}
	}
	return changes, nil
}

// send makes the call and returns the changes in EC2's response, and the SDK's notes on it.
func (c *client) send(ctx context.Context, k dispatch.Key, ids []instance.ID) ([]types.InstanceStateChange, middleware.Metadata, error) {
	var none middleware.Metadata
	names := instance.Strings(ids)
	set := func(b bool) *bool {
		if b {
			return &b
		}
		return nil
	}
	dryRun := set(k.DryRun)
	switch k.Verb {
	case instance.VerbStart:
		in := &awsec2.StartInstancesInput{InstanceIds: names, DryRun: dryRun}
		if k.AdditionalInfo != "" {
			in.AdditionalInfo = &k.AdditionalInfo
		}
		out, err := c.api.StartInstances(ctx, in)
		if err != nil {
			return nil, none, err
		}
		return out.StartingInstances, out.ResultMetadata, nil
	case instance.VerbStop:
		out, err := c.api.StopInstances(ctx, &awsec2.StopInstancesInput{
			InstanceIds: names, DryRun: dryRun,
			Hibernate: set(k.Hibernate), Force: set(k.Force), SkipOsShutdown: set(k.SkipOSShutdown),
		})
		if err != nil {
			return nil, none, err
		}
		return out.StoppingInstances, out.ResultMetadata, nil
	case instance.VerbTerminate:
		out, err := c.api.TerminateInstances(ctx, &awsec2.TerminateInstancesInput{
			InstanceIds: names, DryRun: dryRun,
			Force: set(k.Force), SkipOsShutdown: set(k.SkipOSShutdown),
		})
		if err != nil {
			return nil, none, err
		}
		return out.TerminatingInstances, out.ResultMetadata, nil
	case instance.VerbReboot:
		out, err := c.api.RebootInstances(ctx, &awsec2.RebootInstancesInput{InstanceIds: names, DryRun: dryRun})
		if err != nil {
			return nil, none, err
		}
		return nil, out.ResultMetadata, nil
	}
	return nil, none, &instance.Error{Kind: instance.KindInternal, Message: "no such verb: " + string(k.Verb)}
}

// Limits of DescribeInstances. Source: EC2 API Reference.
const (
	maxFilterValues = 200
	minPage         = 5
	maxPage         = 1000
)

// page is a page of DescribeInstances.
type page struct {
	instances []describedInstance
	// unreadable has the errors of the descriptions that cannot be decoded.
	unreadable map[instance.ID]error
	next       string
}

// describedInstance is an instance, and the capacity pool that it starts in.
type describedInstance struct {
	*instance.Instance
	pool pool
}

// describe returns a page of the instances that match the filters.
func (c *client) describe(ctx context.Context, filters []types.Filter, size int, token string) (page, *failure) {
	in := &awsec2.DescribeInstancesInput{Filters: filters, MaxResults: new(int32(size))}
	if token != "" {
		in.NextToken = &token
	}
	sent := time.Now()
	calling, cancel := context.WithTimeout(ctx, c.timeout)
	calling, span := c.startAttempt(calling, actionDescribe, nil)
	out, err := c.api.DescribeInstances(calling, in)
	cancel()
	if err != nil {
		f := c.fail(actionDescribe, err, nil)
		endAttempt(span, middleware.Metadata{}, f)
		c.record(ctx, actionDescribe, sent, f)
		return page{}, f
	}
	endAttempt(span, out.ResultMetadata, nil)
	c.record(ctx, actionDescribe, sent, nil)
	p := page{next: aws.ToString(out.NextToken), unreadable: undecoded(out.ResultMetadata)}
	for i := range out.Reservations {
		for j := range out.Reservations[i].Instances {
			inst, err := c.instanceOf(&out.Reservations[i], &out.Reservations[i].Instances[j])
			if err != nil {
				if p.unreadable == nil {
					p.unreadable = make(map[instance.ID]error)
				}
				p.unreadable[instance.ID(aws.ToString(out.Reservations[i].Instances[j].InstanceId))] = err
				continue
			}
			p.instances = append(p.instances, describedInstance{inst, poolOf(&out.Reservations[i].Instances[j])})
		}
	}
	return p, nil
}

// byIDs is the filter for these instances, at most 200.
func byIDs(ids []instance.ID) types.Filter {
	return types.Filter{Name: new("instance-id"), Values: instance.Strings(ids)}
}

// literal escapes the wildcards of filter values.
var literal = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`)

// byTags are the filters for instances with all of the tags.
func byTags(tags map[string][]string) (filters []types.Filter, values int) {
	for key, wanted := range tags {
		f := types.Filter{Name: new("tag:" + key)}
		if len(wanted) == 0 {
			f = types.Filter{Name: new("tag-key"), Values: []string{literal.Replace(key)}}
		}
		for _, value := range wanted {
			f.Values = append(f.Values, literal.Replace(value))
		}
		values += len(f.Values)
		filters = append(filters, f)
	}
	return filters, values
}
