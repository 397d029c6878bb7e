package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/instanced/instanced/internal/cli"
)

// traceFlushTimeout is how long the process waits at its end for the last spans to be exported.
const traceFlushTimeout = 2 * time.Second

// The protocols of OTLP that are supported.
const (
	otlpGRPC = "grpc"
	otlpHTTP = "http/protobuf"
)

// startTracing exports spans by OTLP if the standard environment variables of OpenTelemetry ask
// for it. The provider is nil if they do not. stop exports the last spans; it takes no longer
// than traceFlushTimeout.
//
// The SDK reads the variables itself, and goes on with a default where one is wrong. Here that
// is an error.
func startTracing(ctx context.Context, log *slog.Logger) (provider trace.TracerProvider, stop func(), err error) {
	on, err := tracingWanted()
	if err != nil || !on {
		return nil, func() {}, err
	}
	protocol, err := checkOTLP()
	if err != nil {
		return nil, nil, err
	}
	complaints := &sdkComplaints{}
	defer func() {
		otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("a problem with traces", "error", err) }))
		otel.SetLogger(logr.FromSlogHandler(log.Handler()))
	}()
	otel.SetErrorHandler(sdkErrors{complaints})
	otel.SetLogger(logr.FromSlogHandler(complaints))
	exporter, err := newSpanExporter(ctx, protocol)
	if err != nil {
		return nil, nil, cli.Usagef("traces cannot be exported: %v", err)
	}
	described, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", "instanced"), attribute.String("service.version", cli.Version())),
		resource.WithHost(), resource.WithProcessPID(), resource.WithTelemetrySDK(),
		resource.WithFromEnv(), // takes precedence
	)
	if err != nil {
		return nil, nil, cli.Usagef("OTEL_RESOURCE_ATTRIBUTES or OTEL_SERVICE_NAME is wrong: %v", err)
	}
	sdk := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(&reportingExporter{SpanExporter: exporter, log: log}),
		sdktrace.WithResource(described),
	)
	stop = func() {
		ctx, cancel := context.WithTimeout(context.Background(), traceFlushTimeout)
		defer cancel()
		if err := sdk.Shutdown(ctx); err != nil {
			log.Warn("the last spans could not be exported", "error", err)
		}
	}
	if wrong := complaints.all(); len(wrong) > 0 {
		stop()
		return nil, nil, cli.Usagef("the OTEL_* environment is wrong: %s", strings.Join(wrong, "; "))
	}
	log.Info("exporting traces", "protocol", protocol, "endpoint", masked(otlpVariable("ENDPOINT", "the default of the protocol")))
	return sdk, stop, nil
}

// variable returns the value of an environment variable without surrounding space, as the SDK
// reads it.
func variable(name string) string { return strings.TrimSpace(os.Getenv(name)) }

// otlpVariables returns the names of the two variables of a setting of OTLP; the first takes
// precedence.
func otlpVariables(setting string) [2]string {
	return [2]string{"OTEL_EXPORTER_OTLP_TRACES_" + setting, "OTEL_EXPORTER_OTLP_" + setting}
}

// otlpVariable returns a setting of OTLP.
func otlpVariable(setting, otherwise string) string {
	names := otlpVariables(setting)
	return cmp.Or(variable(names[0]), variable(names[1]), otherwise)
}

// tracingWanted reports whether the environment asks for traces: it names an endpoint or the
// exporter.
func tracingWanted() (bool, error) {
	if err := errors.Join(checkWord("OTEL_SDK_DISABLED", "true", "false"), checkWord("OTEL_TRACES_EXPORTER", "otlp", "none")); err != nil {
		return false, err
	}
	if strings.EqualFold(variable("OTEL_SDK_DISABLED"), "true") {
		return false, nil
	}
	switch strings.ToLower(variable("OTEL_TRACES_EXPORTER")) {
	case "none":
		return false, nil
	case "otlp":
		return true, nil
	}
	return otlpVariable("ENDPOINT", "") != "", nil
}

// checkOTLP checks the variables that the SDK does not, and returns the protocol to use.
func checkOTLP() (protocol string, err error) {
	var wrong []error
	words := func(setting string, words ...string) {
		for _, name := range otlpVariables(setting) {
			wrong = append(wrong, checkWord(name, words...))
		}
	}
	words("PROTOCOL", otlpGRPC, otlpHTTP)
	words("COMPRESSION", "gzip", "none")
	words("INSECURE", "true", "false")
	for _, name := range otlpVariables("ENDPOINT") {
		wrong = append(wrong, checkEndpoint(name))
	}
	numbers := otlpVariables("TIMEOUT")
	for _, name := range append(numbers[:],
		"OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_EXPORT_TIMEOUT", "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE") {
		wrong = append(wrong, checkNumber(name))
	}
	return strings.ToLower(otlpVariable("PROTOCOL", otlpHTTP)), errors.Join(wrong...)
}

// checkWord returns an error unless a variable is empty or one of some words.
func checkWord(name string, words ...string) error {
	if value := variable(name); value != "" && !slices.Contains(words, strings.ToLower(value)) {
		return cli.Usagef("%s is %q; want %s", name, value, strings.Join(words, " or "))
	}
	return nil
}

// checkEndpoint returns an error unless a variable is empty or a URL that OTLP can be sent to.
func checkEndpoint(name string) error {
	value := variable(name)
	if value == "" {
		return nil
	}
	if u, err := url.Parse(value); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return cli.Usagef("%s is %q; want a URL such as http://127.0.0.1:4318, or http://127.0.0.1:4317 with OTEL_EXPORTER_OTLP_PROTOCOL=grpc", name, masked(value))
	}
	return nil
}

// checkNumber returns an error unless a variable is empty or a positive whole number.
func checkNumber(name string) error {
	value := variable(name)
	if n, err := strconv.Atoi(value); value != "" && (err != nil || n <= 0) {
		return cli.Usagef("%s is %q; want a whole number above 0", name, value)
	}
	return nil
}

func newSpanExporter(ctx context.Context, protocol string) (sdktrace.SpanExporter, error) {
	if protocol == otlpGRPC {
		return otlptracegrpc.New(ctx)
	}
	return otlptracehttp.New(ctx)
}

// reportingExporter logs when exporting begins to fail and when it works again. The processor
// exports one batch after the other.
type reportingExporter struct {
	sdktrace.SpanExporter
	log *slog.Logger
	// lost is how many spans were lost since it works no more.
	lost int
}

// ExportSpans exports spans. It returns no error, since it has logged it.
func (e *reportingExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	switch {
	case err != nil:
		if e.lost == 0 {
			e.log.Warn("traces cannot be exported; spans are lost until they can", "error", err)
		}
		e.lost += len(spans)
	case e.lost > 0:
		e.log.Info("traces are exported again", "lost_spans", e.lost)
		e.lost = 0
	}
	return nil
}

// sdkComplaints collects what the SDK finds wrong while it is set up, as its error handler and
// as the handler of its log.
type sdkComplaints struct {
	mu    sync.Mutex
	found []string
}

func (c *sdkComplaints) all() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.found)
}

func (c *sdkComplaints) add(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.found = append(c.found, text)
}

// sdkErrors is the error handler: both interfaces have a method Handle.
type sdkErrors struct{ *sdkComplaints }

// Handle adds an error.
func (e sdkErrors) Handle(err error) { e.add(err.Error()) }

// Enabled reports whether a level is that of an error.
func (c *sdkComplaints) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelError
}

// Handle adds an error. Values that go with it may be secret, such as headers.
func (c *sdkComplaints) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool {
		if err, ok := a.Value.Any().(error); ok {
			text = fmt.Sprintf("%s: %v", text, err)
		}
		return true
	})
	c.add(text)
	return nil
}

// WithAttrs changes nothing.
func (c *sdkComplaints) WithAttrs([]slog.Attr) slog.Handler { return c }

// WithGroup changes nothing.
func (c *sdkComplaints) WithGroup(string) slog.Handler { return c }

// traceIDs is a handler that adds the ids of the span in the context, if it is sampled.
type traceIDs struct{ slog.Handler }

// Handle handles a record.
func (h traceIDs) Handle(ctx context.Context, r slog.Record) error {
	if span := trace.SpanContextFromContext(ctx); span.IsSampled() {
		r.AddAttrs(slog.String("trace_id", span.TraceID().String()), slog.String("span_id", span.SpanID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs returns a handler with more attributes.
func (h traceIDs) WithAttrs(attrs []slog.Attr) slog.Handler {
	return traceIDs{h.Handler.WithAttrs(attrs)}
}

// WithGroup returns a handler with a group.
func (h traceIDs) WithGroup(name string) slog.Handler { return traceIDs{h.Handler.WithGroup(name)} }
