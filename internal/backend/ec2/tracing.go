package ec2

import (
	"context"
	"errors"
	"time"

	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/instanced/instanced/internal/backend/ec2/dispatch"
	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/tracing"
)

const spans tracing.Scope = "github.com/instanced/instanced/internal/backend/ec2"

// enqueued is the tag of a traced request: the span of its command, and when it was queued.
type enqueued struct {
	span trace.Span
	at   time.Time
}

// startBatchSpan begins the span of a batch, under the first traced command in it, with links to
// the others. Each of these commands gets a span for its time in the queue that is linked to the
// span of the batch. A batch without a traced command has no span.
func startBatchSpan(ctx context.Context, batch *dispatch.Batch) (context.Context, trace.Span) {
	var traced []*enqueued
	var last *dispatch.Request
	requests := 0
	for _, it := range batch.Items {
		if it.Request == last { // the items of a request are adjacent
			continue
		}
		last = it.Request
		requests++
		if e, ok := it.Tag.(*enqueued); ok && e.span.IsRecording() { // else its caller has left
			traced = append(traced, e)
		}
	}
	if len(traced) == 0 {
		return ctx, trace.SpanFromContext(ctx)
	}
	var links []trace.Link
	for _, other := range traced[1:] {
		links = append(links, tracing.Link(other.span))
	}
	ids := dispatch.DistinctIDs(batch.Items)
	ctx, span := spans.Start(trace.ContextWithSpan(ctx, traced[0].span), "ec2.batch",
		trace.WithLinks(links...),
		trace.WithAttributes(tracing.Instances(ids)...),
		trace.WithAttributes(
			attribute.String("instanced.verb", string(batch.Verb)),
			attribute.Int("instanced.batch.commands", requests),
		))
	for _, e := range traced {
		_, queue := spans.Start(trace.ContextWithSpan(ctx, e.span), "ec2.queue",
			trace.WithTimestamp(e.at), trace.WithLinks(tracing.Link(span)))
		queue.End()
	}
	return ctx, span
}

// traceWait notes in the span of a batch that it waits for tokens.
func traceWait(ctx context.Context, wait time.Duration) {
	if span := tracing.Recorded(ctx); span != nil {
		span.AddEvent("waiting for tokens", trace.WithAttributes(attribute.Float64("instanced.wait_seconds", wait.Seconds())))
	}
}

// startAttempt begins the span of a call to EC2, if ctx has one.
func (c *client) startAttempt(ctx context.Context, action instance.Verb, ids []instance.ID) (context.Context, trace.Span) {
	if parent := trace.SpanFromContext(ctx); !parent.IsRecording() {
		return ctx, parent
	}
	name := "EC2/" + string(action)
	ctx, span := spans.Start(ctx, name, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
		attribute.String("rpc.system.name", "aws-api"),
		attribute.String("rpc.method", name),
		attribute.String("cloud.provider", "aws"),
		attribute.String("cloud.region", c.region),
	))
	if len(ids) > 0 {
		span.SetAttributes(tracing.Instances(ids)...)
	}
	return ctx, span
}

// endAttempt ends the span of a call to EC2 with what the SDK says of the response, or with the
// failure.
func endAttempt(span trace.Span, metadata middleware.Metadata, f *failure) {
	if !span.IsRecording() {
		return
	}
	id, _ := awsmiddleware.GetRequestIDMetadata(metadata)
	response, _ := awsmiddleware.GetRawResponse(metadata).(*smithyhttp.Response)
	var err error
	if f != nil {
		err = f.err
		if answered, ok := errors.AsType[*awshttp.ResponseError](err); ok {
			id, response = answered.ServiceRequestID(), answered.Response
		}
	}
	if id != "" {
		span.SetAttributes(attribute.String("aws.request_id", id))
	}
	if response != nil {
		span.SetAttributes(attribute.Int("http.response.status_code", response.StatusCode))
	}
	tracing.End(span, err)
}
