package journal

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/instanced/instanced/internal/tracing"
)

const spans tracing.Scope = "github.com/instanced/instanced/internal/journal"

// startSpan begins the span of a batch that is about to be written. It belongs to the trace of
// the first update in the batch that has one; it and the others are linked to it.
func (b *batch) startSpan() trace.Span {
	var updates []trace.Span
	for _, x := range b.waiting {
		if span := x.update.span; span != nil && span.IsRecording() { // else its caller has left
			updates = append(updates, span)
		}
	}
	if len(updates) == 0 {
		return trace.SpanFromContext(context.Background())
	}
	changes := 0
	if b.record != nil {
		changes = len(b.record.Events)
	}
	var links []trace.Link
	for _, other := range updates[1:] {
		links = append(links, tracing.Link(other))
	}
	_, span := spans.Start(trace.ContextWithSpan(context.Background(), updates[0]), "journal.commit", trace.WithLinks(links...), trace.WithAttributes(
		attribute.Int("instanced.journal.updates", len(b.waiting)),
		attribute.Int("instanced.journal.changes", changes),
		attribute.Int("instanced.journal.bytes", len(b.encoded)+b.tokenBytes),
	))
	for _, update := range updates {
		update.AddLink(tracing.Link(span))
	}
	return span
}
