package admin

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// probed is what a probe answered.
type probed struct {
	status int
	body   string
}

// ask asks a server that does not listen.
func ask(s *Server, path string) probed {
	w := httptest.NewRecorder()
	s.http.Handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return probed{w.Code, w.Body.String()}
}

// inBubble runs a test with checks that are evaluated every second.
func inBubble(t *testing.T, test func(t *testing.T, s *Server)) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Metrics: prometheus.NewRegistry()})
		go s.evaluateRegularly()
		defer s.stop()
		test(t, s)
	})
}

func TestReadyzShowsTheAgeOfEachCheck(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Server) {
		heard := time.Now()
		var away atomic.Pointer[error]
		s.AddReady(
			Check{Name: "journal", Look: func() Evidence { return Evidence{At: heard} }},
			Check{Name: "owner", Look: func() Evidence { return Evidence{At: heard, Note: "10.0.0.1:50051\nx"} }},
			Check{Name: "backend", Informational: true, Look: func() (e Evidence) {
				if err := away.Load(); err != nil {
					e.Err = *err
				}
				return e
			}},
			Check{Name: "drain", Look: func() Evidence { return Evidence{} }},
		)
		time.Sleep(400 * time.Millisecond)
		away.Store(new(errors.New("EC2 cannot\x1b[31m be reached")))
		want := probed{200, `[+]journal ok 0.4s ago
[+]owner ok 0.4s ago: 10.0.0.1:50051 x
[-]backend failed 0.0s: EC2 cannot [31m be reached (informational)
[+]drain ok
readyz check passed
`}
		if got := ask(s, "/readyz?verbose"); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
		if got := ask(s, "/readyz"); got != (probed{200, "ok\n"}) {
			t.Errorf("without details: %v", got)
		}
		time.Sleep(12 * time.Second)
		if got := ask(s, "/readyz?verbose"); !strings.Contains(got.body, "[-]backend failed 12.0s: EC2") {
			t.Errorf("12 seconds later: %v", got)
		}
	})
}

func TestReadyzFailsWithTheReason(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Server) {
		since := time.Now().Add(-90 * time.Second)
		s.AddReady(
			Check{Name: "journal", Look: func() Evidence { return Evidence{Err: errors.New("etcd is away"), Since: since} }},
			Check{Name: "drain", Look: func() Evidence { return Evidence{} }},
		)
		want := probed{503, `[-]journal failed 1m30s: etcd is away
[+]drain ok
readyz check failed
`}
		if got := ask(s, "/readyz"); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
		want = probed{200, `[+]journal excluded: ok
[+]drain ok
warn: no check is called ["nosuch"]
readyz check passed
`}
		if got := ask(s, "/readyz?verbose&exclude=journal&exclude=nosuch"); got != want {
			t.Errorf("with exclude: got %v, want %v", got, want)
		}
	})
}

// TestACheckThatHangsIsToldFromKeptState shows that no request waits for a check, and that one
// that hangs runs once, however many ask.
func TestACheckThatHangsIsToldFromKeptState(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Server) {
		goOn := make(chan struct{})
		var hang atomic.Bool
		var looks atomic.Int64
		look := func() Evidence {
			looks.Add(1)
			if hang.Load() {
				<-goOn
			}
			return Evidence{At: time.Now()}
		}
		s.AddReady(Check{Name: "journal", Look: look})
		if got := ask(s, "/readyz"); got.status != http.StatusOK {
			t.Fatalf("at first: %v", got)
		}
		hang.Store(true)
		time.Sleep(checkInterval)
		before, began := looks.Load(), time.Now()
		for range 20 {
			if got := ask(s, "/readyz?verbose"); got.status != http.StatusOK || !strings.Contains(got.body, "s ago\n") {
				t.Errorf("the last result still counts: %v", got)
			}
		}
		if took := time.Since(began); took > 20*checkTimeout {
			t.Errorf("20 requests took %v", took)
		}
		time.Sleep(maxReadySilence)
		if got := ask(s, "/readyz"); got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, "[-]journal failed ") ||
			!strings.Contains(got.body, "the check has not returned for ") {
			t.Errorf("after %v: %v", maxReadySilence, got)
		}
		if n := looks.Load() - before; n > 1 {
			t.Errorf("the check was evaluated %d times while it hung", n)
		}
		hang.Store(false)
		close(goOn)
		synctest.Wait()
		if got := ask(s, "/readyz"); got.status != http.StatusOK {
			t.Errorf("after it: %v", got)
		}
	})
}

func TestLivezFailsOnlyAfterALongHang(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Server) {
		if got := ask(s, "/livez"); got != (probed{200, "ok\n"}) {
			t.Errorf("without checks: %v", got)
		}
		goOn := make(chan struct{})
		defer close(goOn)
		s.AddLive(Check{Name: "loops", Look: func() Evidence { <-goOn; return Evidence{} }})
		s.live.list()[0].last = &Evidence{} // it passed before
		ask(s, "/livez")
		time.Sleep(maxLiveSilence - checkTimeout)
		if got := ask(s, "/livez"); got.status != http.StatusOK {
			t.Errorf("early: %v", got)
		}
		time.Sleep(checkTimeout)
		want := probed{503, "[-]loops failed 30.2s: the check has not returned for 30.2s\nlivez check failed\n"}
		if got := ask(s, "/livez"); got != want {
			t.Errorf("late: got %v, want %v", got, want)
		}
	})
}
