package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	instancedv1 "github.com/instanced/instanced/gen/instanced/v1"
)

// repeatsLog returns a logger that holds repeats back, and what it has written.
func repeatsLog(t *testing.T) (log *slog.Logger, repeats *logRepeats, written func() []string) {
	t.Helper()
	var mu sync.Mutex
	var text bytes.Buffer
	repeats = newLogRepeats()
	log = slog.New(repeats.handler(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return text.Write(p)
	}), &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})))
	return log, repeats, func() (lines []string) {
		mu.Lock()
		defer mu.Unlock()
		for line := range strings.Lines(text.String()) {
			lines = append(lines, strings.TrimSuffix(line, "\n"))
		}
		text.Reset()
		return lines
	}
}

func expectLines(t *testing.T, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("the log has:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestRepeatedWarningsAreWrittenOnceAnIntervalWithTheirNumber(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, repeats, written := repeatsLog(t)
		defer repeats.Close()
		journal := log.With("part", "journal")
		for n := range 1001 {
			journal.Warn("not written", "attempt", n, "error", fmt.Errorf("failure %d", n))
		}
		expectLines(t, written(), `level=WARN msg="not written" part=journal attempt=0 error="failure 0"`)
		time.Sleep(logRepeatInterval - time.Nanosecond)
		expectLines(t, written())
		time.Sleep(2 * time.Nanosecond)
		synctest.Wait()
		expectLines(t, written(), `level=WARN msg="not written" part=journal attempt=1000 error="failure 1000" repeated=1000`)

		// It is still held back in the next interval, and not after one without.
		journal.Warn("not written", "attempt", 1)
		expectLines(t, written())
		time.Sleep(logRepeatInterval)
		synctest.Wait()
		expectLines(t, written(), `level=WARN msg="not written" part=journal attempt=1 repeated=1`)
		time.Sleep(logRepeatInterval)
		synctest.Wait()
		journal.Warn("not written", "attempt", 2)
		expectLines(t, written(), `level=WARN msg="not written" part=journal attempt=2`)
	})
}

func TestLinesThatDifferAreNoRepeats(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, repeats, written := repeatsLog(t)
		defer repeats.Close()
		log.Warn("a", "key", "x")
		log.Warn("a", "key", "y")       // another text
		log.Error("a", "key", "x")      // another level
		log.With("part", "p").Warn("a") // another part
		log.WithGroup("g").Warn("a")    // the same text in a group
		log.Warn("b", "key", "x")       // another message
		for range 3 {
			log.Info("a", "key", "x")             // news, not trouble
			log.Error("call", "code", "INTERNAL") // one line a call
		}
		if lines := written(); len(lines) != 12 || strings.Contains(strings.Join(lines, ""), "repeated") {
			t.Errorf("of 12 lines the log has:\n%s", strings.Join(lines, "\n"))
		}
	})
}

func TestHeldBackLinesAreWrittenAtTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log, repeats, written := repeatsLog(t)
		for range 3 {
			log.Warn("a")
		}
		repeats.Close()
		log.Warn("a")
		expectLines(t, written(), "level=WARN msg=a", "level=WARN msg=a repeated=2", "level=WARN msg=a")
	})
}

// TestAFloodOfDifferentWarningsIsBounded has texts and messages that never repeat: neither the
// log nor the memory for it grows with them, and each line is counted.
func TestAFloodOfDifferentWarningsIsBounded(t *testing.T) {
	t.Parallel()
	repeated := regexp.MustCompile(`repeated=(\d+)`)
	for name, line := range map[string]func(log *slog.Logger, n int){
		"texts":    func(log *slog.Logger, n int) { log.Warn("refused", "principal", strconv.Itoa(n)) },
		"messages": func(log *slog.Logger, n int) { log.Warn("refused " + strconv.Itoa(n)) },
		"loggers":  func(log *slog.Logger, n int) { log.With("n", n).Warn("refused") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				log, repeats, written := repeatsLog(t)
				const flood = 20_000
				for n := range flood {
					line(log, n)
				}
				kept := func() (lines, variants int) {
					repeats.mu.Lock()
					defer repeats.mu.Unlock()
					return len(repeats.lines), len(repeats.variants)
				}
				if lines, variants := kept(); max(lines, variants) > maxRepeatedLines+1 {
					t.Errorf("%d lines and %d variants are kept", lines, variants)
				}
				time.Sleep(2*logRepeatInterval + 1)
				synctest.Wait()
				if lines, variants := kept(); lines+variants != 0 {
					t.Errorf("%d lines and %d variants are kept when all is quiet", lines, variants)
				}
				repeats.Close()
				lines, sum := written(), 0
				for _, l := range lines {
					if found := repeated.FindStringSubmatch(l); found != nil {
						n, err := strconv.Atoi(found[1])
						if err != nil {
							t.Fatal(err)
						}
						sum += n
					} else {
						sum++
					}
				}
				if sum != flood || len(lines) > maxRepeatedLines+2 || name == "texts" && len(lines) != maxLogVariants+2 {
					t.Errorf("%d lines stand for %d of %d", len(lines), sum, flood)
				}
			})
		})
	}
}

func TestLinesThatTheDestinationRejectsAreReportedWhenItTakesLinesAgain(t *testing.T) {
	t.Parallel()
	full := errors.New("no space left on device")
	var mu sync.Mutex
	var written bytes.Buffer
	room := 15 // of what comes until there is room again
	queue := newLogQueue(&wholeLines{destination: writerFunc(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		n := min(len(p), room)
		room -= n
		written.Write(p[:n])
		if n < len(p) {
			return n, full
		}
		return n, nil
	})}, nil)
	rejected := make(chan struct{}, 10_000)
	queue.report = func(lines int, why error) error {
		_, err := fmt.Fprintf(queue.destination, "lost %d: %v\n", lines, why)
		if err != nil {
			rejected <- struct{}{}
		}
		return err
	}
	// The third line is torn, and later ones come until a report of that has been rejected too.
	lines := 0
	eventually(t, "a report is rejected", func() bool {
		lines++
		_, _ = queue.Write(fmt.Appendf(nil, "line %d\n", lines%10))
		return len(rejected) > 0
	})
	mu.Lock()
	room = 1 << 20
	mu.Unlock()
	lines++
	_, _ = queue.Write([]byte("line x\n"))
	queue.Close()
	// How many came before there was room is the goroutine's to say.
	text := written.String()
	lost, kept := 0, 0
	for line := range strings.Lines(text) {
		if _, err := fmt.Sscanf(line, "lost %d: no space left on device\n", &lost); err != nil && len(line) == len("line 1\n") {
			kept++
		}
	}
	if !strings.HasPrefix(text, "line 1\nline 2\nl\nlost ") || lost == 0 || kept+lost != lines {
		t.Errorf("%d lines were kept and %d reported, of %d:\n%s", kept, lost, lines, text)
	}
}

// TestEachChangeOfStateIsOneLineOfTheLog compares the log with the recorded history.
func TestEachChangeOfStateIsOneLineOfTheLog(t *testing.T) {
	t.Parallel()
	s := runService(t, "--sim-speed", "0", "--log-format", "json")
	const id = "i-1234567890abcdef0"
	if _, stderr, status := s.ask("start", id, "--wait", "--principal", "alice"); status != 0 {
		t.Fatal(stderr)
	}
	if _, stderr, status := s.ask("stop", id, "--wait", "--principal", "bob"); status != 0 {
		t.Fatal(stderr)
	}
	history, err := s.instances().ListEvents(patient(t), &instancedv1.ListEventsRequest{InstanceIds: []string{id}})
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, e := range history.GetEvents() {
		if e.GetType() == instancedv1.EventType_EVENT_TYPE_STATE_CHANGED {
			want = append(want, fmt.Sprintf("%d: %s to %s by %s of %s, request %s", e.GetRevision(), words(e.GetPreviousState().GetName()), words(e.GetInstance().GetState().GetName()),
				e.GetCause().GetVerb(), e.GetCause().GetPrincipal(), e.GetCause().GetRequestId()))
		}
	}
	var got, sources []string
	eventually(t, "the changes are in the log", func() bool {
		got, sources = nil, nil
		for line := range strings.Lines(s.log()) {
			var said struct {
				Level, Msg, From, To, Cause, Principal, Source string
				InstanceID                                     string `json:"instance_id"`
				RequestID                                      string `json:"request_id"`
				Revision                                       uint64
			}
			if json.Unmarshal([]byte(line), &said) == nil && said.Msg == "state change" && said.InstanceID == id && said.Level == "INFO" {
				got = append(got, fmt.Sprintf("%d: %s to %s by %s of %s, request %s", said.Revision, said.From, said.To, said.Cause, said.Principal, said.RequestID))
				sources = append(sources, said.Source)
			}
		}
		return len(got) >= len(want)
	})
	if len(want) != 4 {
		t.Errorf("history has %d changes of state", len(want))
	}
	expectLines(t, got, want...)
	expectLines(t, sources, "answer", "simulator", "answer", "simulator")
}

// words is a state as the log names it.
func words(state instancedv1.InstanceStateName) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(state.String(), "INSTANCE_STATE_NAME_")), "_", "-")
}
