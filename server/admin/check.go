package admin

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

const (
	// checkInterval is how often checks are evaluated without requests, so that it is known
	// since when they fail.
	checkInterval = time.Second
	// checkTimeout is how long a request waits for the checks; the last results are served then.
	checkTimeout = 100 * time.Millisecond
	// A check that has not returned after that time has failed. Liveness is slow to judge, since the
	// process is restarted for it.
	maxReadySilence = 5 * time.Second
	maxLiveSilence  = 30 * time.Second
)

// Check is one condition of /livez or /readyz.
type Check struct {
	// Name is one word.
	Name string
	// Informational is whether the check is only shown: the probe passes although it fails.
	Informational bool
	// Look returns what is known. It is called at least once a second, in one goroutine at a
	// time. It may take locks, but should not call anything that can take long: if it does not
	// return within 5 seconds (/readyz) or 30 seconds (/livez), the check has failed.
	Look func() Evidence
}

// Evidence is the result of a [Check].
type Evidence struct {
	// Err is why the check fails, in one sentence; nil if it passes.
	Err error
	// At is when the evidence was obtained; zero if it is as of now.
	At time.Time
	// Since is when the check began to fail, if that is known better than by looking
	// every second.
	Since time.Time
	// Note is a remark on a check that passes.
	Note string
}

// monitor evaluates a check apart from the requests that ask for it, so that none of them
// waits for one that hangs. It is safe for concurrent use.
type monitor struct {
	Check
	maxSilence time.Duration

	mu sync.Mutex
	// running is closed when the evaluation that began at began returns; nil if there is none.
	running chan struct{}
	began   time.Time
	// last is nil before the first evaluation has returned.
	last *Evidence
	// failingSince is zero while the check passes.
	failingSince time.Time
}

// evaluate begins to evaluate the check, unless that is under way already. The channel is closed
// when it is done.
func (m *monitor) evaluate() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running != nil {
		return m.running
	}
	done := make(chan struct{})
	m.running, m.began = done, time.Now()
	go func() {
		defer close(done)
		e := m.Look()
		m.mu.Lock()
		defer m.mu.Unlock()
		m.running, m.last = nil, &e
		switch {
		case e.Err == nil:
			m.failingSince = time.Time{}
		case !e.Since.IsZero():
			m.failingSince = e.Since
		case m.failingSince.IsZero():
			m.failingSince = time.Now()
		}
	}()
	return done
}

// result returns what is known of the check at a time, without waiting.
func (m *monitor) result(now time.Time) result {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := result{name: m.Name, informational: m.Informational}
	silent := now.Sub(m.began)
	switch {
	case m.running != nil && (silent > m.maxSilence || m.last == nil):
		r.age = &silent
		r.err = fmt.Errorf("the check has not returned for %s", age(silent))
	case m.last.Err != nil:
		r.err, r.age = m.last.Err, new(now.Sub(m.failingSince))
	default:
		r.note = m.last.Note
		if !m.last.At.IsZero() {
			r.age = new(now.Sub(m.last.At))
		}
	}
	return r
}

// result is how a check ended.
type result struct {
	name          string
	informational bool
	excluded      bool
	err           error
	// age is that of the evidence, or how long the check has been failing; nil if there is none.
	age  *time.Duration
	note string
}

// passed reports whether the probe may pass.
func (r result) passed() bool { return r.err == nil || r.informational || r.excluded }

// String returns a line such as "[+]journal ok 0.4s ago".
func (r result) String() string {
	var b strings.Builder
	switch {
	case r.excluded:
		fmt.Fprintf(&b, "[+]%s excluded: ok", r.name)
	case r.err != nil:
		fmt.Fprintf(&b, "[-]%s failed %s: %s", r.name, age(*r.age), oneLine(r.err.Error()))
		if r.informational {
			b.WriteString(" (informational)")
		}
	default:
		fmt.Fprintf(&b, "[+]%s ok", r.name)
		if r.age != nil {
			fmt.Fprintf(&b, " %s ago", age(*r.age))
		}
		if r.note != "" {
			b.WriteString(": " + oneLine(r.note))
		}
	}
	return b.String()
}

// age returns a duration with a tenth of a second below a minute, and whole seconds above.
func age(d time.Duration) string {
	if d = max(d, 0); d < time.Minute {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// oneLine replaces the control characters of a text from elsewhere.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "\uFFFD"))
}
