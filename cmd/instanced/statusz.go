package main

import (
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/instanced/instanced/internal/cli"
	"github.com/instanced/instanced/internal/lifecycle"
	"github.com/instanced/instanced/server"
	"github.com/instanced/instanced/server/admin"
)

// maxLaggingWatches is how many watches the status page shows.
const maxLaggingWatches = 10

// statusPage is what /statusz shows. It is safe for concurrent use.
type statusPage struct {
	cfg     serveConfig
	level   *slog.LevelVar
	stage   *stage
	started time.Time
	// parts are nil before the service is there.
	parts atomic.Pointer[statusParts]
}

type statusParts struct {
	lifecycle *lifecycle.Service
	server    *server.Server
}

func (p *statusPage) sections() []admin.Section {
	sections := []admin.Section{p.process()}
	parts := p.parts.Load()
	if parts == nil {
		return sections
	}
	info, load := parts.lifecycle.Info(), parts.server.Load()
	return append(sections,
		ownership(parts.lifecycle, info), buckets(info), streams(parts.server), slowCalls(parts.server),
		kept(info), memory(load), limits(load))
}

func (p *statusPage) process() admin.Section {
	state := "serving"
	if what := p.stage.waitingFor.Load(); what != nil {
		state = "waiting for " + *what
	}
	if p.stage.draining.Load() {
		state = "shutting down"
	}
	return admin.Section{Title: "Process", Rows: [][]string{
		{"version", cli.Version() + " (" + runtime.Version() + ")"},
		{"started", p.started.UTC().Format(time.RFC3339) + ", " + ago(p.started)},
		{"state", state},
		{"backend", p.cfg.backend},
		{"log level", strings.ToLower(p.level.Level().String())},
	}}
}

func ownership(svc *lifecycle.Service, info lifecycle.Info) admin.Section {
	owner := info.OwnerAddress
	switch {
	case info.IsOwner:
		owner += " (this process)"
	case owner == "":
		owner = "none"
	}
	s := admin.Section{Title: "Owner", Rows: [][]string{{"owner", owner}}}
	if epoch, remaining, ok := svc.OwnTerm(); ok {
		lease := "until this process ends"
		if remaining != math.MaxInt64 {
			lease = "ends in " + rounded(remaining) + " unless renewed"
		}
		s.Rows = append(s.Rows, []string{"term", strconv.FormatUint(epoch, 16)}, []string{"lease", lease})
	}
	reconciled := "never by this process"
	if !info.LastReconciled.IsZero() {
		reconciled = ago(info.LastReconciled)
	}
	s.Rows = append(s.Rows, []string{"compared with the backend", reconciled})
	if err := svc.Impairment(); err != nil {
		s.Rows = append(s.Rows, []string{"impaired", err.Error()})
	}
	return s
}

func buckets(info lifecycle.Info) admin.Section {
	s := admin.Section{Title: "Token buckets", Columns: []string{"bucket", "level", "capacity", "refill a second", "instances waiting"}, Note: "None here: either this process is not the owner, or the backend has no limits."}
	for _, b := range info.Buckets {
		s.Rows = append(s.Rows, []string{b.Name, fmt.Sprintf("%.1f", b.Level), fmt.Sprintf("%g", b.Capacity), fmt.Sprintf("%.2f", b.Refill), strconv.Itoa(b.Waiting)})
	}
	return s
}

func streams(srv *server.Server) admin.Section {
	worst, total := srv.LaggingWatches(maxLaggingWatches)
	s := admin.Section{
		Title:   fmt.Sprintf("Watches: the %d of %d that lag most", len(worst), total),
		Columns: []string{"principal (unverified)", "state", "behind", "revisions behind", "open for"}, Note: "There are none.",
	}
	for _, w := range worst {
		s.Rows = append(s.Rows, []string{w.Principal, w.State, rounded(w.Age), strconv.FormatUint(w.Behind, 10), rounded(time.Since(w.Began))})
	}
	return s
}

func slowCalls(srv *server.Server) admin.Section {
	s := admin.Section{
		Title:   "Slowest calls of the last minutes",
		Columns: []string{"method", "principal (unverified)", "took", "code", "ended", "request id"}, Note: "There were none.",
	}
	for _, c := range srv.SlowCalls() {
		s.Rows = append(s.Rows, []string{c.Method, c.Principal, c.Took.Round(10 * time.Microsecond).String(), c.Code, ago(c.Ended), c.RequestID})
	}
	return s
}

func kept(info lifecycle.Info) admin.Section {
	return admin.Section{Title: "Journal", Rows: [][]string{
		{"log id", info.LogID},
		{"instances", strconv.Itoa(info.InstanceCount)},
		{"history", fmt.Sprintf("%s of %s", mib(info.JournalBytes), mib(info.JournalMaxBytes))},
		{"retention", info.Retention.String()},
	}}
}

func memory(load server.Load) admin.Section {
	m := load.Memory
	limit := "none"
	if bytes := debug.SetMemoryLimit(-1); bytes != math.MaxInt64 {
		limit = mib(bytes)
	}
	return admin.Section{Title: "Memory", Rows: [][]string{
		{"process", mib(m.GetProcessBytes())},
		{"limit", limit},
		{"heap", mib(m.GetHeapBytes())},
		{"recent history", fmt.Sprintf("%s of %s", mib(m.GetRecentHistoryBytes()), mib(m.GetMaxRecentHistoryBytes()))},
		{"instances", mib(m.GetInstancesBytes())},
		{"client tokens", mib(m.GetClientTokensBytes())},
		{"index", mib(m.GetIndexBytes())},
	}}
}

func limits(load server.Load) admin.Section {
	return admin.Section{Title: "Limits", Columns: []string{"", "now", "maximum"}, Rows: [][]string{
		{"requests", strconv.Itoa(load.Requests), strconv.Itoa(load.Limits.Requests)},
		{"watches and waits", strconv.Itoa(load.Streams), strconv.Itoa(load.Limits.Streams)},
		{"connections", "", strconv.Itoa(load.Limits.Connections)},
		{"goroutines", strconv.Itoa(runtime.NumGoroutine()), ""},
		{"processors", "", strconv.Itoa(runtime.GOMAXPROCS(0))},
	}}
}

func ago(t time.Time) string { return rounded(time.Since(t)) + " ago" }

// rounded returns a duration with a tenth of a second below a minute, and whole seconds above.
func rounded(d time.Duration) string {
	if d < time.Minute {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

func mib(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }
