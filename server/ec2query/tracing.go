package ec2query

import (
	"context"
	"net/http"

	attr "go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

const scope = "github.com/instanced/instanced/server/ec2query"

// startSpan begins the span of a request, in the trace of the caller if its header has one.
func (s *Server) startSpan(ctx context.Context, r *http.Request) (context.Context, trace.Span) {
	if s.tracer == nil {
		return ctx, trace.SpanFromContext(ctx)
	}
	ctx = propagation.TraceContext{}.Extract(ctx, propagation.HeaderCarrier(r.Header))
	return s.tracer.Start(ctx, "EC2", trace.WithSpanKind(trace.SpanKindServer))
}

// endSpan ends the span of a request. It is named after the action if there is such an action.
func (s *Server) endSpan(span trace.Span, c *call, status int, code string, err error) {
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(
		attr.String("rpc.system.name", "aws-api"),
		attr.Int("http.response.status_code", status),
		attr.String("rpc.response.status_code", code),
		attr.String("aws.request_id", c.caller.RequestID),
		attr.String("instanced.principal", c.caller.Principal),
		attr.String("instanced.request_id", c.caller.RequestID),
	)
	if actions[c.action] != nil || simulated[c.action] != nil {
		method := "EC2/" + c.action
		span.SetName(method)
		span.SetAttributes(attr.String("rpc.method", method))
	}
	if err != nil {
		span.SetAttributes(attr.String("error.type", code))
	}
	if status >= http.StatusInternalServerError {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}
