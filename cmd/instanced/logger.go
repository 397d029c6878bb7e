package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/instanced/instanced/internal/cli"
)

// The formats of the log. logAuto is text on a terminal, and otherwise JSON.
const (
	logAuto = "auto"
	logText = "text"
	logJSON = "json"
)

// durationAsText makes a duration as readable in JSON as in text: slog writes nanoseconds.
func durationAsText(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}

// newLogger returns the service's logger, which never blocks, and a function that flushes it.
func newLogger(format string, level slog.Leveler, w io.Writer) (log *slog.Logger, closeLog func()) {
	if f, ok := w.(*os.File); format == logAuto && (!ok || !cli.IsTTY(int(f.Fd()))) {
		format = logJSON
	}
	handlerOf := func(w io.Writer) slog.Handler {
		if format == logJSON {
			return slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: durationAsText})
		}
		return slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})
	}
	w = &wholeLines{destination: w}
	direct := handlerOf(w)
	queue := newLogQueue(w, func(lines int, why error) error {
		line := slog.NewRecord(time.Now(), slog.LevelError, "log lines dropped: standard error was not read fast enough", 0)
		if why != nil {
			line.Message = "log lines dropped: standard error cannot be written to"
			line.AddAttrs(slog.Any("error", innermost(why)))
		}
		line.AddAttrs(slog.Int("lines", lines))
		return direct.Handle(context.Background(), line)
	})
	repeats := newLogRepeats()
	return slog.New(repeats.handler(traceIDs{handlerOf(queue)})), func() {
		repeats.Close()
		queue.Close()
	}
}
