package server

import (
	"context"
	"crypto/rand"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/metadata"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/lifecycle"
)

// Keys of the metadata of a request.
const (
	principalKey = "instanced-principal"
	requestIDKey = "request-id"
)

// anonymous is the principal of a caller who does not name one.
const anonymous = "anonymous"

type refusalKey struct{}

// callerOf returns the caller of the call with this context.
func callerOf(ctx context.Context) lifecycle.Caller { return lifecycle.CallerOf(ctx) }

// identify determines the caller, and returns the request id in the header. It rejects no
// call itself, so that rejections are logged and mapped like other errors: see [refusalOf].
//
// On a connection with TLS the caller is whom the client certificate names, and the metadata
// that claims a name is ignored.
func identify(ctx context.Context) context.Context {
	var violations []instance.Violation
	read := func(key string, maxLength int) string {
		value, problem := single(metadata.ValueFromIncomingContext(ctx, key), maxLength)
		if prefix := instance.ReservedPrefix(value); key == principalKey && prefix != "" {
			problem = fmt.Sprintf("begins with %s, which is reserved for verified names", prefix)
		}
		if problem != "" {
			violations = append(violations, instance.Violation{Field: "metadata." + key, Description: problem})
			return ""
		}
		return value
	}
	var caller lifecycle.Caller
	var refusal error
	if tls := connectionOf(ctx).tls; tls != nil {
		caller.Principal, caller.Authenticated = tls.principal, tls.principal != ""
		refusal = tls.refusal()
	} else {
		caller.Principal = read(principalKey, lifecycle.MaxClaimedNameLength)
	}
	caller.RequestID = read(requestIDKey, lifecycle.MaxRequestIDLength)
	if caller.Principal == "" {
		caller.Principal = anonymous
	}
	if caller.RequestID == "" {
		caller.RequestID = rand.Text()
	}
	if refusal == nil && len(violations) > 0 {
		refusal = &instance.Error{
			Kind:       instance.KindInvalid,
			Reason:     instance.ReasonInvalidMetadata,
			Message:    fmt.Sprintf("%s: %s", violations[0].Field, violations[0].Description),
			Violations: violations,
		}
	}
	sendPlain(ctx)
	// It fails if the caller has gone, who needs no header then.
	_ = grpc.SetHeader(ctx, metadata.Pairs(requestIDKey, caller.RequestID))
	if refusal != nil {
		ctx = context.WithValue(ctx, refusalKey{}, refusal)
	}
	return lifecycle.WithCaller(ctx, caller)
}

// sendPlain sends responses uncompressed, even to callers that compress their requests:
// grpc-go does not tell when it frees a compressed response.
func sendPlain(ctx context.Context) {
	if s, ok := grpc.ServerTransportStreamFromContext(ctx).(interface{ SendCompress() string }); ok && s.SendCompress() != "" {
		_ = grpc.SetSendCompressor(ctx, encoding.Identity) // always allowed before the header
	}
}

// refusalOf returns the error for a caller that is not authenticated, or for malformed
// metadata; nil if there is none.
func refusalOf(ctx context.Context) error {
	err, _ := ctx.Value(refusalKey{}).(error)
	return err
}

// single returns the only value of a key, or what is wrong with it.
func single(values []string, maxLength int) (value, problem string) {
	switch {
	case len(values) == 0:
		return "", ""
	case len(values) > 1:
		return "", fmt.Sprintf("given %d times; give it once", len(values))
	case len(values[0]) > maxLength:
		return "", fmt.Sprintf("%d characters; at most %d are allowed", len(values[0]), maxLength)
	}
	for _, c := range []byte(values[0]) {
		if c < ' ' || c > '~' {
			return "", "only printable ASCII characters are allowed"
		}
	}
	return values[0], ""
}
