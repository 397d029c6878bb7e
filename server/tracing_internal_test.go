package server

import (
	"context"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc/metadata"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

func TestACallThatIsNotSampledCostsFewAllocations(t *testing.T) {
	of := func(traceparent string) context.Context {
		return metadata.NewIncomingContext(t.Context(), metadata.Pairs("traceparent", traceparent))
	}
	never := chain{tracer: sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.NeverSample()))).Tracer("test")}
	for _, c := range []struct {
		name  string
		chain chain
		ctx   context.Context
		max   float64
	}{
		{"without tracing", chain{}, of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), 0},
		{"of a caller without a trace", never, t.Context(), 5},
		{"of a caller that does not sample", never, of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"), 9},
	} {
		n := testing.AllocsPerRun(1000, func() {
			of := call{method: instancedv1.InstanceService_StartInstances_FullMethodName}
			c.chain.startSpan(c.ctx, &of)
			if of.span != nil {
				t.Error("it is recorded")
			}
			of.endSpan(nil)
		})
		if n > c.max {
			t.Errorf("a call %s costs %v allocations, want at most %v", c.name, n, c.max)
		}
		t.Logf("a call %s costs %v allocations", c.name, n)
	}
}
