package main

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
)

const (
	// logRepeatInterval is how long repetitions of a warning or an error are held back.
	logRepeatInterval = 5 * time.Second
	// maxLogVariants is how many lines with the same message are told apart by their texts, and
	// maxRepeatedLines how many lines altogether. What is beyond shares one line.
	maxLogVariants   = 16
	maxRepeatedLines = 1000
	// callLine is the message of the lines of which there is one a call, whatever becomes of it.
	callLine = "call"
)

// logRepeats holds back lines of warnings and errors that repeat: the first is written at once, and
// then at most one an interval, which is the last, with the number of lines that it stands for in
// the attribute "repeated". A line repeats another if it is of the same part and level, has the
// same message, and its texts are equal; numbers and errors may differ. It is safe for
// concurrent use.
type logRepeats struct {
	mu    sync.Mutex
	lines map[repeatedKey]*repeatedLine
	// variants counts lines by message.
	variants map[repeatedMessage]int
	closed   bool
}

type repeatedMessage struct {
	level slog.Level
	// logger has the attributes of the logger.
	logger  string
	message string
}

type repeatedKey struct {
	repeatedMessage
	// texts has the attributes of the line that are texts.
	texts string
}

// repeatedLine is a line that was written in this interval or the one before.
type repeatedLine struct {
	timer *time.Timer
	// count is how many lines are held back, and write writes the last of them.
	count int
	write func()
}

func newLogRepeats() *logRepeats {
	return &logRepeats{lines: make(map[repeatedKey]*repeatedLine), variants: make(map[repeatedMessage]int)}
}

// handler returns a handler that passes on to another what is not held back.
func (l *logRepeats) handler(next slog.Handler) slog.Handler {
	return &repeatsHandler{repeats: l, next: next}
}

// hold reports whether a line repeats another, and holds it back then.
func (l *logRepeats) hold(message repeatedMessage, texts string, write func(repeated int)) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	key := repeatedKey{message, texts}
	line := l.lines[key]
	if line == nil {
		if len(l.lines) >= maxRepeatedLines {
			message = repeatedMessage{}
		}
		if message == (repeatedMessage{}) || l.variants[message] >= maxLogVariants {
			key = repeatedKey{message, "\x00"} // which is no text of a line
			line = l.lines[key]
		}
	}
	if line == nil {
		l.lines[key] = &repeatedLine{timer: time.AfterFunc(logRepeatInterval, func() { l.intervalEnds(key) })}
		l.variants[message]++
		return false
	}
	line.count++
	count := line.count
	line.write = func() { write(count) }
	return true
}

// intervalEnds writes what was held back of a line, or forgets the line.
func (l *logRepeats) intervalEnds(key repeatedKey) {
	l.mu.Lock()
	line := l.lines[key]
	if line == nil { // closed
		l.mu.Unlock()
		return
	}
	write := line.write
	line.count, line.write = 0, nil
	if write != nil {
		line.timer.Reset(logRepeatInterval)
	} else {
		delete(l.lines, key)
		if l.variants[key.repeatedMessage]--; l.variants[key.repeatedMessage] == 0 {
			delete(l.variants, key.repeatedMessage)
		}
	}
	l.mu.Unlock()
	if write != nil {
		write()
	}
}

// Close writes what is held back. Nothing is held back from then on.
func (l *logRepeats) Close() {
	l.mu.Lock()
	lines := l.lines
	l.lines, l.closed = nil, true
	l.mu.Unlock()
	for _, line := range lines {
		line.timer.Stop()
		if line.write != nil {
			line.write()
		}
	}
}

// repeatsHandler is the handler of one logger.
type repeatsHandler struct {
	repeats *logRepeats
	next    slog.Handler
	// logger has the attributes of the logger.
	logger string
}

// Enabled implements [slog.Handler].
func (h *repeatsHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

// Handle implements [slog.Handler].
func (h *repeatsHandler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelWarn || r.Message == callLine {
		return h.next.Handle(ctx, r)
	}
	var texts strings.Builder
	r.Attrs(func(a slog.Attr) bool {
		if a.Value.Kind() == slog.KindString {
			texts.WriteString(a.Key + "=" + a.Value.String() + "\n")
		}
		return true
	})
	held := h.repeats.hold(repeatedMessage{r.Level, h.logger, r.Message}, texts.String(), func(repeated int) {
		last := r.Clone()
		last.AddAttrs(slog.Int("repeated", repeated))
		_ = h.next.Handle(context.WithoutCancel(ctx), last) // there is nowhere to report a failure to log
	})
	if held {
		return nil
	}
	return h.next.Handle(ctx, r)
}

// WithAttrs implements [slog.Handler].
func (h *repeatsHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	var logger strings.Builder
	logger.WriteString(h.logger)
	for _, a := range attrs {
		logger.WriteString(a.String() + "\n")
	}
	return &repeatsHandler{repeats: h.repeats, next: h.next.WithAttrs(attrs), logger: logger.String()}
}

// WithGroup implements [slog.Handler].
func (h *repeatsHandler) WithGroup(name string) slog.Handler {
	return &repeatsHandler{repeats: h.repeats, next: h.next.WithGroup(name), logger: h.logger + name + ".\n"}
}
