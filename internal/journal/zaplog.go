package journal

import (
	"context"
	"log/slog"
	"slices"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// newZap returns a logger for etcd that writes to ours: warnings and errors as
// they are, information as debug. What etcd calls debug is left out: dozens of lines for each
// write, with what is written.
func newZap(log *slog.Logger) *zap.Logger {
	return zap.New(&zapCore{log: log.With(slog.String("component", "etcd"))})
}

// harmless are warnings and errors of etcd that say nothing is wrong with an
// embedded one that listens nowhere, by message and, where it matters, cause.
var harmless = map[string]string{
	"Running http and grpc server on single port. This is not recommended for production.": "",
	"simple token is not cryptographically signed":                                         "",
	// When the caller has left.
	"retrying of unary invoker failed": "code = Canceled",
	// In a new directory, until the first commit.
	"Failed to detect schema version":  "missing term information",
	"failed to update storage version": "missing term information",
}

// zapCore is a zapcore.Core on a slog.Logger.
type zapCore struct {
	log *slog.Logger
}

func level(l zapcore.Level) slog.Level {
	switch {
	case l >= zapcore.ErrorLevel:
		return slog.LevelError
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	default:
		return slog.LevelDebug
	}
}

// Enabled, With, Check, Write and Sync implement zapcore.Core.
func (c *zapCore) Enabled(l zapcore.Level) bool {
	return l > zapcore.DebugLevel && c.log.Enabled(context.Background(), level(l))
}

func (c *zapCore) With(fields []zapcore.Field) zapcore.Core {
	return &zapCore{log: slog.New(c.log.Handler().WithAttrs(attrs(fields)))}
}

func (c *zapCore) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !c.Enabled(e.Level) {
		return checked
	}
	return checked.AddCore(e, c)
}

func (c *zapCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	l, fieldAttrs := level(e.Level), attrs(fields)
	if cause, ok := harmless[e.Message]; ok && mentionsCause(fieldAttrs, cause) {
		l = slog.LevelDebug
	}
	c.log.LogAttrs(context.Background(), l, e.Message, fieldAttrs...)
	return nil
}

func mentionsCause(fields []slog.Attr, cause string) bool {
	return cause == "" || slices.ContainsFunc(fields, func(a slog.Attr) bool {
		return a.Key == "error" && strings.Contains(a.Value.String(), cause)
	})
}

func (c *zapCore) Sync() error { return nil }

func attrs(fields []zapcore.Field) []slog.Attr {
	encoded := zapcore.NewMapObjectEncoder()
	result := make([]slog.Attr, 0, len(fields))
	for _, f := range fields {
		f.AddTo(encoded)
		if value, ok := encoded.Fields[f.Key]; ok {
			result = append(result, slog.Any(f.Key, value))
		}
	}
	return result
}
