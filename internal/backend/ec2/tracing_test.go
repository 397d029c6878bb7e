package ec2

import (
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/instanced/instanced/internal/instance"
)

// named returns the spans with a name.
func named(spans []sdktrace.ReadOnlySpan, name string) (list []sdktrace.ReadOnlySpan) {
	for _, s := range spans {
		if s.Name() == name {
			list = append(list, s)
		}
	}
	return list
}

func attributesOf(s sdktrace.ReadOnlySpan) attribute.Set { return attribute.NewSet(s.Attributes()...) }

func TestCallersOfOneCallAreLinkedToTheSameBatch(t *testing.T) {
	inBubble(t, "two traced callers and one that is not", func(t *testing.T) {
		recorder := tracetest.NewSpanRecorder()
		tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder)).Tracer("test")
		e := &endpoint{answer: (&fleet{}).answer, latency: always(300 * time.Millisecond)}
		b := connect(t, e)
		first := background(t.Context(), b, start(id(0)))
		time.Sleep(100 * time.Millisecond)
		untraced := background(t.Context(), b, start(id(1)))
		ctx2, caller2 := tracer.Start(t.Context(), "caller 2")
		second := background(ctx2, b, start(id(2)))
		ctx3, caller3 := tracer.Start(t.Context(), "caller 3")
		// Each of its instances is an item of its own.
		third := background(ctx3, b, each(start(ids(3, 21)...)))
		for _, outcome := range []func() outcome{first, untraced, second, third} {
			if o := outcome(); o.err != nil {
				t.Fatal(o.err)
			}
		}
		caller2.End()
		caller3.End()
		b.Close() // the batches have ended
		spans := recorder.Ended()
		batches, queues, attempts := named(spans, "ec2.batch"), named(spans, "ec2.queue"), named(spans, "EC2/StartInstances")
		if len(batches) != 1 || len(queues) != 2 || len(attempts) != 1 || len(e.of(instance.VerbStart)) != 2 {
			t.Fatalf("%d batches, %d queues and %d attempts are traced, of %d calls", len(batches), len(queues), len(attempts), len(e.of(instance.VerbStart)))
		}
		batch := batches[0]
		if batch.Parent().SpanID() != caller2.SpanContext().SpanID() {
			t.Error("the batch does not belong to the first traced caller")
		}
		if links := batch.Links(); len(links) != 1 || !links[0].SpanContext.Equal(caller3.SpanContext()) {
			t.Errorf("the batch has the links %v, want one to the other caller", links)
		}
		callers := map[trace.SpanID]bool{caller2.SpanContext().SpanID(): true, caller3.SpanContext().SpanID(): true}
		for _, q := range queues {
			if links := q.Links(); len(links) != 1 || !links[0].SpanContext.Equal(batch.SpanContext()) {
				t.Errorf("the time in the queue has the links %v, want one to the batch", links)
			}
			if took := q.EndTime().Sub(q.StartTime()); took != 200*time.Millisecond {
				t.Errorf("the time in the queue is %v", took)
			}
			delete(callers, q.Parent().SpanID())
		}
		if len(callers) != 0 {
			t.Errorf("no time in the queue for %v", callers)
		}
		of := attributesOf(batch)
		if n, _ := of.Value("instanced.batch.commands"); n.AsInt64() != 3 {
			t.Errorf("the batch is said to have %d commands", n.AsInt64())
		}
		of = attributesOf(attempts[0])
		count, _ := of.Value("instanced.instance.count")
		names, _ := of.Value("instanced.instance.ids")
		if count.AsInt64() != 20 || len(names.AsStringSlice()) != 10 {
			t.Errorf("the attempt is said to be for %d instances, %d of which it names", count.AsInt64(), len(names.AsStringSlice()))
		}
		if attempts[0].Parent().SpanID() != batch.SpanContext().SpanID() {
			t.Error("the attempt does not belong to the batch")
		}
	})
}

func TestAnAttemptHasEC2sErrorAndRequestID(t *testing.T) {
	inBubble(t, "an error that names the instance", func(t *testing.T) {
		recorder := tracetest.NewSpanRecorder()
		tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder)).Tracer("test")
		e := &endpoint{answer: (&fleet{refuse: func(c call) (reply, bool) {
			return refusal(400, "IncorrectInstanceState", "The instance '"+string(id(1))+"' is not in a state from which it can be started."), true
		}}).answer}
		b := connect(t, e)
		ctx, caller := tracer.Start(t.Context(), "caller")
		if _, err := b.Execute(ctx, start(id(1))); err == nil {
			t.Fatal("it was started")
		}
		caller.End()
		b.Close()
		attempts := named(recorder.Ended(), "EC2/StartInstances")
		if len(attempts) != 1 {
			t.Fatalf("%d attempts are traced", len(attempts))
		}
		of := attributesOf(attempts[0])
		for key, want := range map[attribute.Key]string{"error.type": "IncorrectInstanceState", "http.response.status_code": "400"} {
			if got, _ := of.Value(key); got.String() != want {
				t.Errorf("%s is %q, want %q", key, got.String(), want)
			}
		}
	})
}
