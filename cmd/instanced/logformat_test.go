package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestDurationsInJSONAreReadable(t *testing.T) {
	var out bytes.Buffer
	log, closeLog := newLogger(logJSON, slog.LevelInfo, &out)
	log.With("limit", 10*time.Second).Info("call", "took", 350*time.Microsecond)
	closeLog()
	if got := out.String(); !strings.Contains(got, `"limit":"10s"`) || !strings.Contains(got, `"took":"350µs"`) {
		t.Errorf("the line is %s", got)
	}
}
