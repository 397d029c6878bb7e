package ec2query

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/instanced/instanced/internal/instance"
)

func TestAnAnswerIsRememberedForAsLongAsSDKsTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r retries
		runs := 0
		command := func(key invocation, lines int) {
			t.Helper()
			if _, err := r.once(t.Context(), key, func() ([]instance.StateChange, error) {
				runs++
				return make([]instance.StateChange, lines), nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		command(invocation{1}, 1)
		time.Sleep(remembered)
		command(invocation{1}, 1)
		if runs != 1 {
			t.Errorf("a later try made %d runs of it", runs)
		}
		time.Sleep(time.Second)
		command(invocation{1}, 1)
		if runs != 2 {
			t.Errorf("%d runs, want a second one when the answer is too old", runs)
		}
		for n := range 100 {
			command(invocation{2, byte(n)}, 1000)
		}
		if r.lines > maxRemembered || len(r.tries) != len(r.order) {
			t.Errorf("%d lines of %d answers, %d in order", r.lines, len(r.tries), len(r.order))
		}
	})
}
