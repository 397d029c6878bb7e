package admin

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// probe is /livez or /readyz: the checks that it consists of.
type probe struct {
	name       string
	maxSilence time.Duration

	mu     sync.Mutex
	checks []*monitor // guarded by mu; only appended to
}

func (p *probe) add(checks []Check) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range checks {
		p.checks = append(p.checks, &monitor{Check: c, maxSilence: p.maxSilence})
	}
}

func (p *probe) list() []*monitor {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.checks
}

// evaluate evaluates all checks, and waits for them no longer than checkTimeout.
func (p *probe) evaluate() []*monitor {
	checks := p.list()
	timeout := time.NewTimer(checkTimeout)
	defer timeout.Stop()
	pending := make([]<-chan struct{}, len(checks))
	for i, m := range checks {
		pending[i] = m.evaluate()
	}
	for _, done := range pending {
		select {
		case <-done:
		case <-timeout.C:
			return checks
		}
	}
	return checks
}

// ServeHTTP answers "ok", or 503 with the line of each check. ?verbose shows them in any case,
// and ?exclude=NAME, which may be repeated, ignores a check.
func (p *probe) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	unknown := query["exclude"]
	excluded := slices.Clone(unknown)
	var b strings.Builder
	verdict := "passed"
	now := time.Now()
	for _, m := range p.evaluate() {
		outcome := m.result(now)
		outcome.excluded = slices.Contains(excluded, m.Name)
		unknown = slices.DeleteFunc(unknown, func(name string) bool { return name == m.Name })
		if !outcome.passed() {
			verdict = "failed"
		}
		fmt.Fprintln(&b, outcome)
	}
	if len(unknown) > 0 {
		fmt.Fprintf(&b, "warn: no check is called %s\n", oneLine(fmt.Sprintf("%q", unknown)))
	}
	fmt.Fprintf(&b, "%s check %s\n", p.name, verdict)
	status, text := http.StatusOK, "ok\n"
	if verdict == "failed" {
		status = http.StatusServiceUnavailable
	}
	if verdict == "failed" || query.Has("verbose") {
		text = b.String()
	}
	writeText(w, status, text)
}

// writeText answers with plain text.
func writeText(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text)) // the client may be gone
}
