package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
	"github.com/spf13/pflag"

	"github.com/instanced/instanced/internal/backend/ec2"
	"github.com/instanced/instanced/internal/cli"
	"github.com/instanced/instanced/internal/instance"
)

const (
	// dialTimeout bounds how long connecting to AWS may take, so that commands fail fast where
	// packets are dropped silently.
	dialTimeout = 5 * time.Second
	// checkTimeout bounds each check of the AWS settings at startup.
	checkTimeout = 10 * time.Second
	// renewal is how long before they expire the credentials of a role are replaced.
	renewal = 5 * time.Minute
)

// awsFlags say how to reach AWS and which instances to manage. Other settings come from the
// usual places of the AWS SDKs: environment, profile, role.
type awsFlags struct {
	region      string
	endpointURL string
	roleARN     string
	limitsFile  string
	manage      manageFilter
	queueURL    string
}

// bind declares the flags.
func (f *awsFlags) bind(flags *pflag.FlagSet) {
	section(flags, "aws", "aws-", func(flags *pflag.FlagSet) {
		flags.StringVar(&f.region, "aws-region", "", "AWS `region` (default: from AWS_REGION or the profile)")
		cli.Bind(flags, &f.endpointURL, "aws-endpoint-url", "url", "", "endpoint of all AWS services, such as http://127.0.0.1:8580 (default: AWS itself, or AWS_ENDPOINT_URL and AWS_ENDPOINT_URL_EC2)", parseURL)
		cli.Bind(flags, &f.roleARN, "assume-role-arn", "arn", "", "assume this role in AWS", parseRoleARN)
		flags.StringVar(&f.limitsFile, "ec2-limits", "", "JSON `file` of EC2's token buckets, for an account with raised limits (default: the documented limits)")
		flags.Var(&f.manage, "manage-filter", "manage only instances with this tag, `KEY=VALUE`, or KEY for any value; may be repeated: values of one key are alternatives, several keys must all match")
		cli.Bind(flags, &f.queueURL, "sqs-queue-url", "url", "", "SQS queue that receives state changes from EventBridge (default: none; instances in transition are polled)", parseURL)
	})
}

// awsFlagNames returns the names of the flags that bind declares.
func awsFlagNames() []string {
	var f awsFlags
	var names []string
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.bind(flags)
	flags.VisitAll(func(flag *pflag.Flag) { names = append(names, flag.Name) })
	return names
}

// loadAWS loads the settings of the backend from flags, environment and files. It makes no
// requests; checkCredentials and checkDescribe do.
func loadAWS(ctx context.Context, f awsFlags, log *slog.Logger) (ec2.Config, error) {
	limits, err := readLimits(f.limitsFile)
	if err != nil {
		return ec2.Config{}, err
	}
	options := []func(*config.LoadOptions) error{
		config.WithLogger(sdkLogger(log)),
		config.WithAppID("instanced"),
		config.WithHTTPClient(awshttp.NewBuildableClient().WithDialerOptions(func(d *net.Dialer) { d.Timeout = dialTimeout })),
	}
	if f.region != "" {
		options = append(options, config.WithRegion(f.region))
	}
	if f.endpointURL != "" {
		options = append(options, config.WithBaseEndpoint(f.endpointURL))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return ec2.Config{}, fmt.Errorf("cannot use the AWS settings: %w", err)
	}
	if cfg.Region == "" {
		return ec2.Config{}, errors.New("no AWS region is set; set it by --aws-region, AWS_REGION or the profile, such as us-east-1")
	}
	if f.endpointURL != "" {
		// Otherwise AWS_ENDPOINT_URL_EC2 and the like would take precedence over the flag.
		cfg.ConfigSources = nil
	}
	if f.roleARN != "" {
		role := stscreds.NewAssumeRoleProvider(sts.NewFromConfig(cfg), f.roleARN, func(o *stscreds.AssumeRoleOptions) {
			o.RoleSessionName = "instanced"
		})
		cfg.Credentials = aws.NewCredentialsCache(role, func(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = renewal })
	}
	return ec2.Config{
		AWS:      cfg,
		Manage:   f.manage,
		Limits:   limits,
		QueueURL: f.queueURL,
		Logger:   log,
	}, nil
}

// errUnreachable is wrapped by the errors of the checks when AWS cannot be reached.
var errUnreachable = errors.New("AWS cannot be reached")

// checkCredentials returns an error unless there are AWS credentials. Whether AWS accepts them
// shows with the first request.
func checkCredentials(ctx context.Context, cfg aws.Config) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	_, err := cfg.Credentials.Retrieve(ctx)
	switch {
	case err == nil:
		return nil
	case outOfReach(err):
		return fmt.Errorf("%w for credentials: %w", errUnreachable, lastSaid(err))
	default:
		return fmt.Errorf("no usable AWS credentials: %w; set AWS_PROFILE or AWS_ACCESS_KEY_ID, or give this machine a role", lastSaid(err))
	}
}

// outOfReach reports whether credentials are missing only because the service that issues them
// cannot be reached. A missing metadata service only means that this machine is not in EC2.
func outOfReach(err error) bool {
	if _, answered := errors.AsType[smithy.APIError](err); answered {
		return false
	}
	asked := false
	for e := err; e != nil; e = errors.Unwrap(e) {
		if op, ok := e.(*smithy.OperationError); ok { //nolint:errorlint // each of the chain is looked at
			if op.ServiceID == imds.ServiceID {
				return false
			}
			asked = true
		}
	}
	return asked
}

// lastSaid returns the innermost message of an SDK error, that of the service or of the
// network.
func lastSaid(err error) error {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return fmt.Errorf("%s: %s", api.ErrorCode(), api.ErrorMessage())
	}
	if network, ok := errors.AsType[*net.OpError](err); ok {
		return network
	}
	return innermost(err)
}

// checkDescribe asks EC2 for the first instances and returns why it rejects that. Being
// throttled is fine.
func checkDescribe(ctx context.Context, backend *ec2.Backend) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	_, err := backend.Describe(ctx, instance.DescribeQuery{All: true, PageSize: 5})
	if err == nil {
		return nil
	}
	e, ok := errors.AsType[*instance.Error](err)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: EC2 did not respond within %v", errUnreachable, checkTimeout)
	case !ok:
		return err
	case e.Kind == instance.KindExhausted:
		return nil
	case e.Kind == instance.KindUnavailable:
		return fmt.Errorf("%w: %w", errUnreachable, lastSaid(err))
	case e.Kind == instance.KindPermission:
		return fmt.Errorf("EC2 does not let this service describe instances: %s (%s); its policy must allow ec2:DescribeInstances", e.Message, e.Code)
	case e.Kind == instance.KindInternal:
		return fmt.Errorf("EC2 does not accept this service's credentials: %s (%s)", e.Message, e.Code)
	default:
		return fmt.Errorf("EC2 does not describe instances: %s (%s)", e.Message, e.Code)
	}
}

// readLimits returns the documented limits without a file.
func readLimits(name string) (ec2.Limits, error) {
	if name == "" {
		return ec2.Limits{}, nil
	}
	file, err := os.ReadFile(name)
	if err != nil {
		return ec2.Limits{}, cli.Usagef("cannot read the limits file %s: %v", name, innermost(err))
	}
	limits, err := ec2.ParseLimits(file)
	if err != nil {
		return ec2.Limits{}, cli.Usagef("invalid limits file %s: %v", name, err)
	}
	return limits, nil
}

// sdkLogger writes the AWS SDK's log lines to ours as information: whatever makes a request
// fail is returned as its error too.
func sdkLogger(log *slog.Logger) logging.Logger {
	return logging.LoggerFunc(func(class logging.Classification, format string, v ...any) {
		level := slog.LevelDebug
		if class == logging.Warn {
			level = slog.LevelInfo
		}
		log.Log(context.Background(), level, "AWS SDK", "says", fmt.Sprintf(format, v...))
	})
}

// manageFilter is the value of a flag that may be repeated: tag keys with their alternative
// values, or none for any value.
type manageFilter map[string][]string

// String returns the tags as given, sorted.
func (m *manageFilter) String() string { return strings.Join(m.tags(), " ") }

// Type returns the placeholder of the value in the help.
func (m *manageFilter) Type() string { return "tag" }

// Set adds a tag.
func (m *manageFilter) Set(text string) error {
	key, value, hasValue := strings.Cut(text, "=")
	if key == "" {
		return fmt.Errorf("%q is neither KEY=VALUE nor KEY", text)
	}
	if *m == nil {
		*m = make(manageFilter)
	}
	values, given := (*m)[key]
	switch {
	case given && hasValue != (len(values) > 0):
		return fmt.Errorf("%q: the tag %s is given both with and without a value", text, key)
	case hasValue:
		(*m)[key] = append(values, value)
	default:
		(*m)[key] = nil
	}
	return nil
}

// tags returns the tags as given, sorted.
func (m *manageFilter) tags() []string {
	var list []string
	for _, key := range slices.Sorted(maps.Keys(*m)) {
		if len((*m)[key]) == 0 {
			list = append(list, key)
		}
		for _, value := range (*m)[key] {
			list = append(list, key+"="+value)
		}
	}
	return list
}

// parseURL accepts an HTTP URL, or none.
func parseURL(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return "", fmt.Errorf("%q is not a URL such as https://example.com", masked(text))
	}
	return text, nil
}

var roleARN = regexp.MustCompile(`^arn:[a-z0-9-]+:iam::\d{12}:role/.+$`)

// parseRoleARN accepts the ARN of a role, or none.
func parseRoleARN(text string) (string, error) {
	if text != "" && !roleARN.MatchString(text) {
		return "", fmt.Errorf("%q is not the ARN of a role, such as arn:aws:iam::123456789012:role/instanced", text)
	}
	return text, nil
}
