package ec2

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/instanced/instanced/internal/instance"
)

// Level is the severity of a finding.
type Level string

const (
	// LevelOK needs no attention.
	LevelOK Level = "ok"
	// LevelWarning is something that the service can do without, at a price that the text names.
	LevelWarning Level = "warning"
	// LevelProblem keeps the service, or a part of it, from working.
	LevelProblem Level = "problem"
)

// Finding is the result of checking one thing that a [Backend] needs.
type Finding struct {
	// Check names the thing, such as "credentials" or "StartInstances".
	Check string
	Level Level
	// Text describes what was found.
	Text string
	// Advice says what to grant or to fix; empty if nothing is wrong, or there is none.
	Advice string
}

// examination checks everything that the service uses, in the way that it uses it.
type examination struct {
	*Backend
	// sample is a managed instance that is not terminated; nil if there is none.
	sample *instance.Instance
	// stop is true once further checks would tell nothing.
	stop bool
}

// Examine checks what a [Backend] with this configuration needs, and yields at least one finding
// for each thing. Nothing is changed: verbs are dry runs, and one message of the queue may be
// hidden from other consumers for a second. Each call takes at most cfg.CallTimeout.
func Examine(ctx context.Context, cfg Config) iter.Seq[Finding] {
	return func(yield func(Finding) bool) {
		cfg.Metrics = nil
		x := &examination{Backend: New(cfg)}
		defer x.Close()
		for _, look := range []func(context.Context) []Finding{
			x.region, x.credentials, x.identity, x.describes, x.verbs, x.mailbox,
		} {
			for _, f := range look(ctx) {
				if !yield(f) {
					return
				}
			}
			if x.stop || ctx.Err() != nil {
				return
			}
		}
	}
}

func (x *examination) region(context.Context) []Finding {
	const check = "Region"
	if x.cfg.AWS.Region == "" {
		x.stop = true
		return []Finding{{check, LevelProblem, "no Region is set", "set --aws-region, AWS_REGION, or region in the profile"}}
	}
	endpoint := ""
	if own := aws.ToString(x.client.api.Options().BaseEndpoint); own != "" {
		endpoint = ", with EC2 at " + own
	}
	return []Finding{{Check: check, Level: LevelOK, Text: x.cfg.AWS.Region + endpoint}}
}

func (x *examination) credentials(ctx context.Context) []Finding {
	const check = "credentials"
	ctx, cancel := context.WithTimeout(ctx, x.cfg.CallTimeout)
	defer cancel()
	err := errors.New("there is no source of credentials")
	var found aws.Credentials
	if source := x.cfg.AWS.Credentials; source != nil {
		found, err = source.Retrieve(ctx)
	}
	if err != nil {
		x.stop = true
		return []Finding{{
			check, LevelProblem, "there are none: " + err.Error(),
			"attach a role to this machine, or set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
		}}
	}
	text := fmt.Sprintf("access key %s from %s", found.AccessKeyID, cmp.Or(found.Source, "an unnamed source"))
	if found.CanExpire {
		text += ", renewed before " + found.Expires.UTC().Format(time.RFC3339)
	}
	return []Finding{{Check: check, Level: LevelOK, Text: text}}
}

// identity asks STS for the caller's identity. The service does not use STS, and may not reach it.
func (x *examination) identity(ctx context.Context) []Finding {
	const check = "identity"
	ctx, cancel := context.WithTimeout(ctx, x.cfg.CallTimeout)
	defer cancel()
	api := sts.NewFromConfig(x.cfg.AWS, func(o *sts.Options) { o.Retryer = aws.NopRetryer{} })
	out, err := api.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		return []Finding{{
			check, LevelWarning, "STS does not say who this is: " + sentence(err),
			"the service does without STS; where the following is right, nothing has to be done",
		}}
	}
	return []Finding{{Check: check, Level: LevelOK, Text: aws.ToString(out.Arn)}}
}

// describes asks for managed instances, and for one of them by its id, as the service does.
func (x *examination) describes(ctx context.Context) []Finding {
	const check = "DescribeInstances"
	unreadable := make(map[instance.ID]error)
	for query := (instance.DescribeQuery{All: true}); ; {
		p, err := x.Describe(ctx, query)
		if err != nil {
			return []Finding{x.refused(check, err)}
		}
		maps.Copy(unreadable, p.Unreadable)
		if i := slices.IndexFunc(p.Instances, alive); i >= 0 {
			x.sample = p.Instances[i]
		}
		if query.PageToken = p.NextPageToken; query.PageToken == "" || x.sample != nil {
			break
		}
	}
	odd := oddFindings(check, unreadable)
	if x.sample == nil && len(odd) > 0 {
		return odd
	}
	if x.sample == nil {
		text, advice := "no instance is there, but for terminated ones", "check the Region and the account"
		if len(x.cfg.Manage) > 0 {
			text, advice = "no instance has the tags of --manage-filter, but for terminated ones", "check the tags, the Region and the account"
		}
		return []Finding{{check, LevelWarning, text, advice}}
	}
	findings := append([]Finding{{Check: check, Level: LevelOK, Text: fmt.Sprintf("allowed; %s is managed", x.sample.ID)}}, odd...)
	const byID = "DescribeInstances by id"
	p, err := x.Describe(ctx, instance.DescribeQuery{IDs: []instance.ID{x.sample.ID}})
	switch {
	case err != nil:
		return append(findings, x.refused(byID, err))
	case len(p.Instances) == 0:
		return append(findings, Finding{
			byID, LevelWarning, fmt.Sprintf("%s was there, and is not found by its id", x.sample.ID),
			"look again: it may have vanished just now",
		})
	}
	return append(findings, Finding{Check: byID, Level: LevelOK, Text: fmt.Sprintf("%s is %s", x.sample.ID, p.Instances[0].State)})
}

// oddFindings names instances whose descriptions cannot be decoded.
func oddFindings(check string, unreadable map[instance.ID]error) (findings []Finding) {
	const (
		maxNamed = 5
		advice   = "look whether there is a newer version of instanced; until then they keep the states that they had, and all others are served"
	)
	for i, id := range slices.Sorted(maps.Keys(unreadable)) {
		if i == maxNamed {
			text := fmt.Sprintf("%d more instances are described in a way that cannot be understood", len(unreadable)-maxNamed)
			return append(findings, Finding{check, LevelWarning, text, advice})
		}
		text := fmt.Sprintf("%s is described in a way that cannot be understood: %v", id, unreadable[id])
		findings = append(findings, Finding{check, LevelWarning, text, advice})
	}
	return findings
}

func alive(i *instance.Instance) bool {
	return i.State != instance.StateTerminated && i.State != instance.StateShuttingDown
}

// verbs makes a dry run of each verb on the sample.
func (x *examination) verbs(ctx context.Context) (findings []Finding) {
	for _, verb := range []instance.Verb{instance.VerbStart, instance.VerbStop, instance.VerbReboot, instance.VerbTerminate} {
		if x.sample == nil {
			findings = append(findings, Finding{
				string(verb), LevelProblem, "cannot be tried without a managed instance that is described",
				"look again when there is one: permission may depend on its tags",
			})
			continue
		}
		_, err := x.Execute(ctx, instance.Command{Verb: verb, IDs: []instance.ID{x.sample.ID}, DryRun: true})
		e, ok := errors.AsType[*instance.Error](err)
		switch {
		case ok && e.Kind == instance.KindDryRun:
			findings = append(findings, Finding{Check: string(verb), Level: LevelOK, Text: fmt.Sprintf("allowed on %s", x.sample.ID)})
		case ok && e.Kind == instance.KindPrecondition:
			findings = append(findings, Finding{
				string(verb), LevelWarning, "EC2 did not get as far as to say whether it is allowed: " + sentence(err), "look again when the instance is in another state",
			})
		case err == nil:
			findings = append(findings, Finding{string(verb), LevelProblem, fmt.Sprintf("the endpoint carried out a dry run on %s", x.sample.ID), "this is not EC2: check the endpoint"})
		default:
			findings = append(findings, x.refused(string(verb), err))
		}
	}
	return findings
}

// refused returns what an error of EC2 means for the operator.
func (x *examination) refused(action string, err error) Finding {
	f := Finding{Check: action, Level: LevelProblem, Text: sentence(err)}
	e, ok := errors.AsType[*instance.Error](err)
	if !ok {
		return f
	}
	switch {
	case e.Kind == instance.KindPermission && strings.HasPrefix(action, string(actionDescribe)):
		f.Advice = "grant ec2:DescribeInstances on *: it cannot be narrowed down"
	case e.Kind == instance.KindPermission:
		f.Advice = fmt.Sprintf("grant ec2:%s on arn:%s:ec2:%s:%s:instance/*, under a condition that the tags of %s meet; or leave such instances out by --manage-filter",
			action, partition(x.cfg.AWS.Region), x.cfg.AWS.Region, cmp.Or(x.sample.AccountID, "ACCOUNT"), x.sample.ID)
	case e.Code == "RequestExpired":
		f.Advice = "set the clock of this machine"
	case e.Code == "ExpiredToken", e.Code == "ExpiredTokenException":
		f.Advice = "renew the session of the credentials"
	case codes[e.Code].credentials:
		f.Advice = "check the access key, and that the Region is enabled for the account"
	case codes[e.Code].reaction == throttled, e.Reason == instance.ReasonRequestLimitExceeded:
		f.Advice = "look again later: the account's request limits are used up"
	case e.Reason == instance.ReasonEndlessPages, e.Reason == instance.ReasonAnswerLost && e.Cause != nil && answeredSomehow(e.Cause):
		f.Advice = "check the endpoint: what answers there is not EC2, or something on the way changes its answers"
	case e.Reason == instance.ReasonBackendUnavailable, e.Reason == instance.ReasonAnswerLost:
		f.Advice = "check the endpoint, and the way there: names, routes, proxy, VPC endpoint"
	}
	return f
}

// answeredSomehow reports whether there was an HTTP response.
func answeredSomehow(err error) bool {
	_, ok := errors.AsType[*smithyhttp.ResponseError](err)
	return ok
}

// partition is the AWS partition of a Region, as in ARNs.
func partition(region string) string {
	switch {
	case strings.HasPrefix(region, "cn-"):
		return "aws-cn"
	case strings.HasPrefix(region, "us-gov-"):
		return "aws-us-gov"
	}
	return "aws"
}

// sentence is an error's message, without what only AWS can decode.
func sentence(err error) string {
	code, text := "", plainly(err)
	if e, ok := errors.AsType[*instance.Error](err); ok {
		code, text = e.Code, e.Message
		if code == "" && e.Cause != nil {
			text += ": " + plainly(e.Cause)
		}
	} else if api, ok := errors.AsType[smithy.APIError](err); ok && api.ErrorCode() != sdkUnknownCode {
		code, text = api.ErrorCode(), api.ErrorMessage()
	}
	text, _, _ = strings.Cut(text, " Encoded authorization failure message")
	switch {
	case code == "":
		return text
	case text == "":
		return code
	}
	return strings.TrimSuffix(text, ".") + " (" + code + ")"
}

// plainly is an error's message without the SDK's wrapping.
func plainly(err error) string {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err.Error()
	}
	if e, ok := errors.AsType[*smithy.OperationError](err); ok {
		return e.Err.Error()
	}
	return err.Error()
}
