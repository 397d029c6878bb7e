package server

import (
	"context"
	"path"
	"slices"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	rpc "google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const scope = "github.com/instanced/instanced/server"

// startSpan begins the span of a call, in the trace of the caller if its metadata has one, and
// returns a context with it.
func (c chain) startSpan(ctx context.Context, of *call) context.Context {
	if c.tracer == nil {
		return ctx
	}
	method := strings.TrimPrefix(of.method, "/")
	if service, _ := path.Split(method); !worthLogging(strings.Trim(service, "/")) {
		return ctx
	}
	ctx = propagation.TraceContext{}.Extract(ctx, traceHeaders{ctx})
	ctx, span := c.tracer.Start(ctx, method, trace.WithSpanKind(trace.SpanKindServer))
	if span.IsRecording() {
		of.span = span
		caller := callerOf(ctx)
		span.SetAttributes(
			attribute.String("rpc.system.name", "grpc"),
			attribute.String("rpc.method", method),
			attribute.String("instanced.principal", caller.Principal),
			attribute.String("instanced.request_id", caller.RequestID),
		)
	}
	return ctx
}

// serverFaults are the status codes that make a span of a server an error, by OpenTelemetry's
// conventions.
var serverFaults = []codes.Code{codes.Unknown, codes.DeadlineExceeded, codes.Unimplemented, codes.Internal, codes.Unavailable, codes.DataLoss}

// endSpan ends the span of a call with the error that the caller sees.
func (of *call) endSpan(err error) {
	if of.span == nil {
		return
	}
	_, _, reason, failed := logOutcome(err)
	code := rpc.Code_OK.String()
	if failed {
		code = rpc.Code(status.Code(err)).String()
	}
	of.span.SetAttributes(attribute.String("rpc.response.status_code", code))
	if reason != "" {
		of.span.SetAttributes(attribute.String("instanced.reason", reason))
	}
	if failed {
		of.span.SetAttributes(attribute.String("error.type", code))
	}
	if failed && slices.Contains(serverFaults, status.Code(err)) {
		of.span.SetStatus(otelcodes.Error, err.Error())
	}
	of.span.End()
}

// traceHeaders is the metadata of a call, for reading the trace of the caller.
type traceHeaders struct{ ctx context.Context }

// Get returns the only value of a key; none if there are several.
func (h traceHeaders) Get(key string) string {
	if values := metadata.ValueFromIncomingContext(h.ctx, key); len(values) == 1 {
		return values[0]
	}
	return ""
}

// Set does nothing: headers are only read.
func (traceHeaders) Set(string, string) {}

// Keys returns nothing, since no propagator that is used here asks for it.
func (traceHeaders) Keys() []string { return nil }
