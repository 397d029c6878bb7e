package tracing_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/instanced/instanced/internal/instance"
	"github.com/instanced/instanced/internal/tracing"
)

const spans tracing.Scope = "github.com/instanced/instanced/internal/tracing_test"

func TestASpanThatIsNotRecordedCostsNoAllocation(t *testing.T) {
	unsampled, span := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample())).Tracer("test").Start(t.Context(), "call")
	defer span.End()
	failed := errors.New("failed")
	for name, ctx := range map[string]context.Context{"no span": t.Context(), "a span that is not sampled": unsampled} {
		if n := testing.AllocsPerRun(1000, func() {
			ctx, span := spans.Start(ctx, "below")
			if tracing.Recorded(ctx) != nil {
				t.Error("it is recorded")
			}
			tracing.End(span, failed)
		}); n != 0 {
			t.Errorf("below %s it costs %v allocations", name, n)
		}
	}
}

func TestASpanBeginsUnderThatOfTheContextWithItsProvider(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	ctx, parent := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder)).Tracer("test").Start(t.Context(), "parent")
	_, span := spans.Start(ctx, "child")
	tracing.End(span, fmt.Errorf("in a context: %w", &instance.Error{Kind: instance.KindExhausted, Reason: instance.ReasonNotSentInTime, Message: "too late"}))
	parent.End()
	child := recorder.Ended()[0]
	if child.Parent().SpanID() != parent.SpanContext().SpanID() || child.InstrumentationScope().Name != string(spans) {
		t.Errorf("the span is of %s, under %v", child.InstrumentationScope().Name, child.Parent())
	}
	if child.Status().Code != codes.Error || child.Attributes()[0] != attribute.String("error.type", instance.ReasonNotSentInTime) {
		t.Errorf("the status is %v, and the attributes are %v", child.Status(), child.Attributes())
	}
}

func TestASpanNamesAtMostTenInstances(t *testing.T) {
	ids := make([]instance.ID, 1000)
	for i := range ids {
		ids[i] = instance.ID(fmt.Sprintf("i-%017x", i))
	}
	for _, n := range []int{0, 1, 10, 1000} {
		set := attribute.NewSet(tracing.Instances(ids[:n])...)
		count, _ := set.Value("instanced.instance.count")
		names, _ := set.Value("instanced.instance.ids")
		if count.AsInt64() != int64(n) || len(names.AsStringSlice()) != min(n, 10) {
			t.Errorf("of %d instances, %d are counted and %d named", n, count.AsInt64(), len(names.AsStringSlice()))
		}
	}
}
