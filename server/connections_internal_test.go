package server

import (
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

func TestAConnectionWhoseCallsAreRefusedIsReadSlowly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAdmission(slog.New(slog.DiscardHandler), 2, 2, 2)
		near, far := net.Pipe()
		conn, err := a.connect(near)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for range 4 {
				_, _ = far.Write([]byte{1})
			}
		}()
		for _, refused := range []struct {
			calls int
			pause time.Duration
		}{{0, 0}, {10, 10 * pausePerRefusal}, {100_000, maxPause}, {0, 0}} {
			for range refused.calls {
				_ = a.refuse(brief, anonymous, conn)
			}
			begun := time.Now()
			if _, err := conn.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begun); took != refused.pause {
				t.Errorf("after %d refusals it takes %v to read, want %v", refused.calls, took, refused.pause)
			}
		}
		_, _ = conn.Close(), far.Close()
	})
}
