package ec2

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/instanced/instanced/internal/instance"
)

// failure is an error of a call to EC2, classified.
type failure struct {
	reaction reaction
	err      *instance.Error
	// named are the instances of the call that the message names. isNamed is built from it
	// when first needed.
	named   []instance.ID
	isNamed map[instance.ID]bool
	// asked is the number of instances in the call.
	asked int
	// credentials is true when EC2 rejected this service's own credentials.
	credentials bool
	// answered is true when the error is EC2's own.
	answered bool
	// fenced is true when the call was not made: its term has ended.
	fenced bool
	// unreachable is true when EC2 could not be reached, or did not answer in time.
	unreachable bool
}

// credentialsError is an error of the source of credentials: nothing was sent.
type credentialsError struct{ err error }

func (e *credentialsError) Error() string { return "no credentials: " + e.err.Error() }
func (e *credentialsError) Unwrap() error { return e.err }

// failureOf classifies an error that the SDK returned for a call about instances.
func failureOf(err error, asked []instance.ID) *failure {
	f := &failure{asked: len(asked)}
	if fenced, ok := errors.AsType[*instance.Error](err); ok {
		f.reaction, f.err, f.fenced = failAll, fenced, true
		return f
	}
	f.err = &instance.Error{Kind: instance.KindUnavailable, Cause: err, RetryAfter: retryUnavailable}
	status := 0
	if response, ok := errors.AsType[*smithyhttp.ResponseError](err); ok {
		status = response.HTTPStatusCode()
	}
	dial, dialed := errors.AsType[*net.OpError](err)
	_, unresolved := errors.AsType[*net.DNSError](err)
	source, none := errors.AsType[*credentialsError](err)
	api, named := errors.AsType[smithy.APIError](err)
	_, unreadable := errors.AsType[*smithy.DeserializationError](err)
	switch {
	case none && (unresolved || dialed || status >= http.StatusInternalServerError || status == http.StatusTooManyRequests):
		f.reaction, f.unreachable = failAll, true
		f.err.Reason, f.err.Message = instance.ReasonBackendUnavailable, "the source of this service's own credentials cannot be reached; nothing was changed by this call"
	case none:
		f.reaction, f.credentials = failAll, true
		f.err = &instance.Error{Kind: instance.KindInternal, Code: instance.ReasonCredentialsRefused, Message: source.Error(), Cause: err}
	case named && codeForm.MatchString(api.ErrorCode()) && api.ErrorCode() != sdkUnknownCode:
		f.fromEC2(api, status, asked)
	case status != 0 && (status < 200 || status > 299):
		f.fromStatus(status)
	case unresolved, dialed && dial.Op == "dial":
		f.reaction, f.unreachable = failAll, true
		f.err.Reason, f.err.Message = instance.ReasonBackendUnavailable, "EC2 cannot be reached; nothing was changed by this call"
	default:
		f.reaction = unknownOutcome
		f.err.Reason, f.err.Message = instance.ReasonAnswerLost, "the connection to EC2 was lost before it answered"
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			f.err.Message, f.unreachable = "EC2 did not answer in time", true
		case unreadable && status != 0:
			f.err.Message = fmt.Sprintf("the EC2 endpoint answered with status %d and something that is not an answer of EC2, or only a part of one", status)
		}
	}
	return f
}

// withoutCredentials reports whether the call was not made because there were no credentials.
func (f *failure) withoutCredentials() bool {
	_, none := errors.AsType[*credentialsError](f.err.Cause)
	return none
}

// fromEC2 completes a failure from EC2's code and message and the HTTP status.
func (f *failure) fromEC2(api smithy.APIError, status int, asked []instance.ID) {
	f.answered = true
	f.err.Code, f.err.Message, f.err.RetryAfter = api.ErrorCode(), api.ErrorMessage(), 0
	if response, ok := errors.AsType[*awshttp.ResponseError](f.err.Cause); ok && response.ServiceRequestID() != "" {
		f.err.Metadata = map[string]string{"ec2_request_id": response.ServiceRequestID()}
	}
	meaning := f.class(status)
	f.err.Kind, f.reaction, f.credentials = meaning.kind, meaning.reaction, meaning.credentials
	if meaning.kind == instance.KindUnavailable || meaning.reaction == throttled {
		f.err.RetryAfter = retryUnavailable
	}
	if f.reaction == rejected || f.reaction == noCapacity {
		f.named = namedIn(f.err.Message, asked)
	}
	if f.err.Code == instance.CodeNotFound && len(f.named) == 0 && len(asked) == 1 {
		f.named = slices.Clone(asked)
	}
}

// class returns the class of an error of EC2, by the HTTP status if the code is unknown.
func (f *failure) class(status int) errorClass {
	known, ok := codes[f.err.Code]
	switch {
	case f.err.Code == codeInvalidValue && strings.Contains(f.err.Message, "does not have a volume attached at root"):
		return classPrecondition
	case ok:
		return known
	case status >= http.StatusInternalServerError:
		return classUnknown
	case status == http.StatusTooManyRequests:
		return classThrottled
	}
	return classPrecondition
}

// fromStatus is for a status without an error of EC2: something in front of EC2 answered. With
// a 5xx it may have passed the call on before.
func (f *failure) fromStatus(status int) {
	f.err.Message = strings.TrimSpace(fmt.Sprintf("the EC2 endpoint answered with status %d %s", status, http.StatusText(status))) + " and without an error of EC2"
	switch {
	case status == http.StatusTooManyRequests:
		f.reaction, f.err.Kind, f.err.Reason = throttled, instance.KindExhausted, instance.ReasonRequestLimitExceeded
		f.err.Message += "; nothing was changed by this call"
	case status >= http.StatusInternalServerError, status == http.StatusRequestTimeout:
		f.reaction, f.err.Reason = unknownOutcome, instance.ReasonAnswerLost
	default:
		f.reaction, f.err.Reason = failAll, instance.ReasonBackendUnavailable
		f.err.Message += "; nothing was changed by this call"
	}
}

// sdkUnknownCode is the SDK's name for an error without a code.
const sdkUnknownCode = "UnknownError"

// codeForm is what an error code of AWS looks like. What does not is text from elsewhere.
var codeForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]{0,99}$`)

// errorFor returns the error as EC2 would have returned it for these instances alone.
func (f *failure) errorFor(ids []instance.ID) *instance.Error {
	e := *f.err
	if f.isNamed == nil {
		f.isNamed = setOf(f.named)
	}
	var own []instance.ID
	for _, id := range ids {
		if f.isNamed[id] {
			own = append(own, id)
		}
	}
	if len(own) == 0 && len(f.named) == 1 {
		// EC2 would have named one of these: the error concerns a whole pool, and names one instance.
		own = ids[:1]
	}
	e.Message = textFor(e.Code, e.Message, f.named, own)
	if e.Code == instance.CodeInstanceLimitExceeded {
		e.Message = textForCount(e.Message, len(ids))
	}
	e.InstanceIDs = own
	if e.Kind == instance.KindExhausted && f.reaction == noCapacity && len(own) == 0 && len(ids) == 1 {
		e.InstanceIDs = slices.Clone(ids)
	}
	return &e
}

// unknownOutcome returns the error for callers when it cannot be found out what became of the
// call.
func (f *failure) unknownOutcome() *instance.Error {
	return f.err.UnknownOutcome()
}

// isServiceWide reports whether an error concerns the service rather than an instance. If all
// instances of a request failed with such errors, the request fails as a whole.
func isServiceWide(e *instance.Error) bool {
	switch e.Kind {
	case instance.KindInternal, instance.KindUnavailable:
		return true
	case instance.KindExhausted:
		return e.Reason == instance.ReasonRequestLimitExceeded || codes[e.Code].reaction == throttled
	case instance.KindInvalid, instance.KindNotFound, instance.KindPrecondition, instance.KindDryRun,
		instance.KindPermission, instance.KindConflict, instance.KindOutOfRange, instance.KindUnauthenticated:
	}
	return false
}
