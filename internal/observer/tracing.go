package observer

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/instanced/instanced/internal/expiring"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/tracing"
)

const spans tracing.Scope = "github.com/instanced/instanced/internal/observer"

func commandAttributes(cmd instance.Command, cause instance.Cause) []attribute.KeyValue {
	return append(tracing.Instances(cmd.IDs),
		attribute.String("instanced.verb", string(cmd.Verb)),
		attribute.String("instanced.principal", cause.Principal),
		attribute.String("instanced.request_id", cause.RequestID),
	)
}

// origin is the span of a command, for the changes that it causes after it has ended.
type origin struct {
	span     trace.SpanContext
	provider trace.TracerProvider
}

// originOf returns the span of ctx, nil if it is not recorded.
func originOf(ctx context.Context) *origin {
	span := tracing.Recorded(ctx)
	if span == nil {
		return nil
	}
	return &origin{span.SpanContext(), span.TracerProvider()}
}

const (
	// originTTL is how long changes are traced to the command that caused them.
	originTTL = time.Hour
	// maxOrigins bounds the memory for that to about 8 MiB.
	maxOrigins = 1 << 14
)

// origins remembers the spans of the traced commands that changed an instance, in memory only:
// another process, or this one after a restart, traces no change to them.
type origins struct {
	byCause *expiring.Cache[causeOnInstance, *origin]
}

type causeOnInstance struct {
	id    instance.ID
	cause instance.Cause
}

func newOrigins() origins {
	return origins{expiring.New[causeOnInstance, *origin](originTTL, maxOrigins)}
}

// add remembers that a command is about to be recorded as a cause.
func (o origins) add(id instance.ID, command *inflightCommand) {
	if command.origin != nil {
		o.byCause.Set(causeOnInstance{id, command.cause}, command.origin)
	}
}

// traceChange returns a context with the span that caused a recorded change of state, for its
// log line. A change that is not part of the answer to the command, such as that from pending to
// running, has a span of its own: in the trace of the command, and linked to it, because the
// command does not wait for it.
func (o *Observer) traceChange(ctx context.Context, c *instance.Change, recordedAt time.Time) context.Context {
	if c.Type != instance.ChangeState || c.Cause.External() {
		return ctx
	}
	from, ok := o.tracker.origins.byCause.Get(causeOnInstance{c.ID(), c.Cause})
	if !ok {
		return ctx
	}
	ctx = trace.ContextWithSpanContext(ctx, from.span)
	if c.Source == instance.SourceAnswer {
		return ctx
	}
	ctx, span := from.provider.Tracer(string(spans)).Start(ctx, "state change",
		trace.WithTimestamp(c.ObservedAt),
		trace.WithLinks(trace.Link{SpanContext: from.span}),
		trace.WithAttributes(
			attribute.String("instanced.instance.id", string(c.ID())),
			attribute.String("instanced.state.from", c.Before.State.String()),
			attribute.String("instanced.state.to", c.After.State.String()),
			attribute.String("instanced.occurred_at", c.OccurredAt.Format(time.RFC3339Nano)),
			attribute.Bool("instanced.inferred", c.Inferred),
			attribute.String("instanced.request_id", c.Cause.RequestID),
		))
	span.End(trace.WithTimestamp(recordedAt))
	return ctx
}
