// Package tracing has what the spans of all packages have in common. A call is traced or not
// where it enters the service; below that, a span begins under the one in the context, with the
// same provider, so that no package has to be given one. It is a package of its own because the
// edge, the service layer, the journal and a backend use it, and none may import another for it.
package tracing

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/instanced/instanced/internal/instance"
)

// Scope is the name of an instrumentation scope: the import path of a package.
type Scope string

// Start begins a span under that of ctx, and returns it with a context that has it. If the span
// of ctx is not recorded, neither is this one, and it costs no allocation. The span must be ended.
func (s Scope) Start(ctx context.Context, name string, opts ...trace.SpanStartOption) (context.Context, trace.Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, parent // which does nothing
	}
	return parent.TracerProvider().Tracer(string(s)).Start(ctx, name, opts...)
}

// End ends a span with the error of what it covers, if there is one.
func End(span trace.Span, err error) {
	if span.IsRecording() && err != nil {
		span.SetAttributes(attribute.String("error.type", typeOf(err)))
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

// typeOf returns EC2's code of an error, or the service's reason.
func typeOf(err error) string {
	e, ok := errors.AsType[*instance.Error](err)
	switch {
	case ok && e.Code != "":
		return e.Code
	case ok && e.Reason != "":
		return e.Reason
	case errors.Is(err, context.Canceled):
		return instance.ReasonCanceled
	case errors.Is(err, context.DeadlineExceeded):
		return instance.ReasonDeadlineExceeded
	}
	return "_OTHER"
}

// Recorded returns the span of ctx if it is recorded, and nil if not.
func Recorded(ctx context.Context) trace.Span {
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		return span
	}
	return nil
}

// Link returns a link to a span.
func Link(to trace.Span) trace.Link { return trace.Link{SpanContext: to.SpanContext()} }

// maxIDs is how many instances a span names.
const maxIDs = 10

// Instances returns attributes that name instances, the first ten of them, and say how many
// there are.
func Instances(ids []instance.ID) []attribute.KeyValue {
	names := make([]string, min(len(ids), maxIDs))
	for i := range names {
		names[i] = string(ids[i])
	}
	return []attribute.KeyValue{
		attribute.Int("instanced.instance.count", len(ids)),
		attribute.StringSlice("instanced.instance.ids", names),
	}
}
